//! The virtual node under test: faults are planted in the PTX of the product's own kernels, and
//! each must be noticed, as a fault that names it or as another result.
//!
//! A fault is a change of text in the committed `.ptx`. Where a kernel was compiled anew and the
//! text is no longer there, the test says so.
//!
//! What a node of this kind cannot notice is not here: a missing fence changes nothing where memory
//! is strongly ordered.

mod attention;
mod faults;
mod node;
mod plant;
mod scenarios;
mod two_shot;

use std::panic::{AssertUnwindSafe, catch_unwind};

use faults::{FAULTS, Fault, Noticed};
use scenarios::Outcome;

#[test]
fn every_planted_fault_is_noticed() {
    let mut findings = Vec::new();
    for fault in FAULTS {
        match notice(fault) {
            Ok(how) => println!("{:<44} {how}", fault.name),
            Err(why) => findings.push(format!("{}: {why}", fault.name)),
        }
    }
    assert!(FAULTS.len() >= 15, "{} faults", FAULTS.len());
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn kernels_as_they_are_run_twice_alike() {
    for fault in FAULTS {
        let run = || run(fault, &plant::committed(fault.unit));
        let first = run().unwrap_or_else(|fault| panic!("{fault}"));
        assert!(!first.is_empty(), "{}: a scenario has a result", fault.name);
        assert!(run().as_ref() == Ok(&first), "{}: another result the second time", fault.name);
    }
}

#[test]
fn memory_of_a_rank_that_is_not_connected_is_out_of_reach() {
    let module = virtual_node::ptx::load(&plant::committed("reduce_norm")).expect("PTX");
    let connected = scenarios::reduce_norm_of_two(&module, true);
    assert!(connected.is_ok(), "{connected:?}");
    let error = scenarios::reduce_norm_of_two(&module, false).expect_err("it is not connected");
    assert!(error.contains("without peer access"), "{error}");
}

/// How a fault was noticed, or why not.
fn notice(fault: &Fault) -> Result<String, String> {
    let healthy = plant::committed(fault.unit);
    let sick = plant::planted(fault, &healthy)?;
    let expected = run(fault, &healthy).map_err(|error| format!("the healthy kernel: {error}"))?;
    match (run(fault, &sick), fault.noticed) {
        (Err(error), Noticed::Fault(words)) if error.contains(words) => Ok(error),
        (Err(error), Noticed::Either) => Ok(error),
        (Err(error), _) => Err(format!("noticed otherwise: {error}")),
        (Ok(got), _) if got == expected => Err("not noticed".to_owned()),
        (Ok(_), Noticed::Result | Noticed::Either) => Ok("another result".to_owned()),
        (Ok(_), Noticed::Fault(words)) => Err(format!("another result, but no {words}")),
    }
}

/// A panic in a scenario is the test's own mistake and is told as such.
fn run(fault: &Fault, ptx: &str) -> Outcome {
    let module = virtual_node::ptx::load(ptx).map_err(|error| format!("not PTX: {error}"))?;
    catch_unwind(AssertUnwindSafe(|| (fault.scenario)(&module)))
        .unwrap_or_else(|_| Err("the scenario itself fails".to_owned()))
}
