//! The table of kernels, and what none of them may do.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::manifest::{KernelFacts, Manifest};
use crate::sass::Sass;
use crate::source::{Claim, Unit};
use crate::toolchain::Toolchain;

/// Registers of a multiprocessor, given out in runs of 8 a thread.
const N_REGISTERS: usize = 65_536;
/// Shared memory that a source may fix; more must be asked for at launch.
const STATIC_SHARED_BYTES_MAX: usize = 48 * 1024;
const N_THREADS_MAX: usize = 1024;

/// Prints the table; an error names everything that is not as it must be.
pub(crate) fn report(folder: &Path, tools: &Toolchain) -> Result<()> {
    let manifest = Manifest::read(folder)?;
    let units = Unit::all(folder)?;
    let mut findings = manifest.stale(&units);
    println!(
        "{:<34} {:>7} {:>9} {:>6} {:>8} {:>6} {:>6} {:>6} {:>6}",
        "kernel", "threads", "registers", "spills", "shared", "SASS", "LDG", "128", "STG128"
    );
    for unit in &units {
        let Some(facts) = manifest.unit(&unit.name) else { continue };
        let kernels = Sass::of_cubin(&tools.nvdisasm, &unit.cubin_path())?;
        for (name, kernel) in &facts.kernels {
            let sass = kernels.get(name).with_context(|| format!("no machine code of {name}"))?;
            print(name, kernel, sass);
            findings.extend(faults(name, kernel, sass));
        }
        findings.extend(broken_claims(&unit.claims()?, &kernels));
    }
    ensure!(findings.is_empty(), "{}", findings.join("\n"));
    Ok(())
}

fn print(name: &str, kernel: &KernelFacts, sass: &Sass) {
    println!(
        "{name:<34} {:>7} {:>9} {:>6} {:>8} {:>6} {:>6} {:>6} {:>6}",
        kernel.n_threads_max,
        kernel.n_registers,
        kernel.spill_bytes,
        kernel.static_shared_bytes,
        sass.n_instructions(),
        sass.count("LDG"),
        sass.count("LDG.128"),
        sass.count("STG.128"),
    );
}

/// What no kernel may do.
fn faults(name: &str, kernel: &KernelFacts, sass: &Sass) -> Vec<String> {
    let mut faults = Vec::new();
    if kernel.spill_bytes + kernel.stack_bytes > 0 {
        let (spills, stack) = (kernel.spill_bytes, kernel.stack_bytes);
        faults.push(format!("{name} spills {spills} bytes and has a stack of {stack} bytes"));
    }
    if sass.n_local() > 0 {
        faults.push(format!("{name} has {} local loads and stores", sass.n_local()));
    }
    let n_registers = kernel.n_registers.next_multiple_of(8) * kernel.n_threads_max;
    if n_registers > N_REGISTERS || kernel.n_threads_max > N_THREADS_MAX {
        let (each, n_threads) = (kernel.n_registers, kernel.n_threads_max);
        faults.push(format!("{name} cannot launch: {each} registers, {n_threads} threads"));
    }
    if kernel.static_shared_bytes > STATIC_SHARED_BYTES_MAX {
        let n_bytes = kernel.static_shared_bytes;
        faults.push(format!("{name} fixes {n_bytes} bytes of shared memory"));
    }
    faults
}

/// Claims of a source that its machine code does not keep.
fn broken_claims(claims: &[Claim], kernels: &BTreeMap<String, Sass>) -> Vec<String> {
    let mut broken = Vec::new();
    for Claim { kernel, opcode, n_min } in claims {
        let n = kernels.get(kernel).map_or(0, |sass| sass.count(opcode));
        if n < *n_min {
            broken.push(format!("{kernel} claims {n_min} {opcode} and has {n}"));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that may be as it is.
    const HEALTHY: KernelFacts = KernelFacts {
        n_registers: 128,
        spill_bytes: 0,
        stack_bytes: 0,
        static_shared_bytes: STATIC_SHARED_BYTES_MAX,
        n_threads_max: 512,
    };

    #[test]
    fn each_fault_of_a_kernel_is_refused() {
        let count = |kernel: &KernelFacts, opcode: &str| {
            faults("a", kernel, &Sass::from_counts(&[(opcode, 1)])).len()
        };
        assert_eq!(count(&HEALTHY, "LDG.E.128"), 0);
        assert_eq!(count(&HEALTHY, "LDL.64"), 1);
        assert_eq!(count(&HEALTHY, "STL"), 1);
        let sick = [
            KernelFacts { spill_bytes: 4, ..HEALTHY },
            KernelFacts { stack_bytes: 8, ..HEALTHY },
            // Registers are given out in runs of eight.
            KernelFacts { n_registers: 129, ..HEALTHY },
            KernelFacts { n_registers: 32, n_threads_max: 1056, ..HEALTHY },
            KernelFacts { static_shared_bytes: STATIC_SHARED_BYTES_MAX + 1, ..HEALTHY },
        ];
        for kernel in sick {
            assert_eq!(count(&kernel, "LDG.E.128"), 1, "{kernel:?}");
        }
    }

    #[test]
    fn a_claim_that_machine_code_does_not_keep_is_refused() {
        let kernels =
            BTreeMap::from([("a".to_owned(), Sass::from_counts(&[("LDG.E.128.CONSTANT", 2)]))]);
        let broken = |kernel: &str, opcode: &str, n_min| {
            let (kernel, opcode) = (kernel.to_owned(), opcode.to_owned());
            broken_claims(&[Claim { kernel, opcode, n_min }], &kernels).len()
        };
        assert_eq!(broken("a", "LDG.128", 2), 0);
        assert_eq!(broken("a", "LDG.128", 3), 1);
        assert_eq!(broken("a", "LDG.64", 1), 1);
        assert_eq!(broken("b", "LDG.128", 1), 1, "there is no such kernel");
    }
}
