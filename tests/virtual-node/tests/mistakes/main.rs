//! Planted mistakes: each correct program runs in silence under every check, and each change that
//! breaks it is noticed, as a fault of the right kind or as a wrong result.
//!
//! The programs run in the node's own executor, so that checks can be set for each of them.

mod programs;

use std::sync::{Arc, OnceLock};

use programs::{Mistake, Notice, PROGRAMS, Program};
use virtual_node::exec::{Checks, KernelFault, Launch, STALL_MAX};
use virtual_node::memory::{DeviceIdx, Memory};
use virtual_node::report::KernelCounters;

const DEVICE: DeviceIdx = DeviceIdx(0);

const ALL_CHECKS: Checks = Checks { races: true, init: true, sectors: true, banks: true };

fn memory() -> &'static Memory {
    static MEMORY: OnceLock<&'static Memory> = OnceLock::new();
    MEMORY.get_or_init(|| Box::leak(Box::new(Memory::new(1, true))))
}

/// Memory that lives as long as the process.
struct Buffer {
    address: u64,
    n_bytes: usize,
}

impl Buffer {
    /// Fresh memory, which nothing has written.
    fn fresh(n_bytes: usize) -> Buffer {
        let address = memory().allocate(DEVICE, n_bytes as u64).expect("room");
        Buffer { address, n_bytes }
    }

    fn of(bytes: &[u8]) -> Buffer {
        let buffer = Buffer::fresh(bytes.len());
        // SAFETY: the allocation is as long as `bytes`, and no kernel runs on it yet.
        unsafe { buffer.host().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        buffer
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: the allocation has so many bytes, and the kernel that wrote them is over.
        unsafe { std::slice::from_raw_parts(self.host(), self.n_bytes).to_vec() }
    }

    fn host(&self) -> *mut u8 {
        let at = memory().resolve(DEVICE, self.address, self.n_bytes as u64);
        at.expect("its own memory").as_ptr()
    }
}

/// Runs a program of one block; `ptx` may have been changed.
fn run(
    program: &Program,
    ptx: &str,
    checks: Checks,
) -> Result<(Vec<u8>, KernelCounters), Box<KernelFault>> {
    let module = virtual_node::ptx::load(ptx).unwrap_or_else(|error| panic!("{error}"));
    let kernel = module.kernel(program.kernel).expect("the kernel of the table");
    let (input, fresh) = (Buffer::of(&(program.input)()), Buffer::fresh(4096));
    let output = Buffer::of(&vec![0xee; (program.expected)().len()]);
    let addresses = [input.address, output.address, fresh.address];
    let n_params = kernel.params.len();
    let params = addresses[..n_params].iter().flat_map(|at| at.to_le_bytes()).collect();
    let launch = Launch {
        kernel: kernel.clone(),
        grid: [1; 3],
        block: [program.n_threads, 1, 1],
        cluster: [1; 3],
        dynamic_shared_bytes: 0,
        params,
        device: DEVICE,
        memory: memory(),
        globals: Arc::from([]),
        checks,
        n_workers: 1,
        stall_max: STALL_MAX,
    };
    let counters = launch.run().map_err(Box::new)?;
    Ok((output.bytes(), counters))
}

#[test]
fn correct_programs_run_in_silence() {
    for program in PROGRAMS {
        for checks in [Checks::default(), ALL_CHECKS] {
            match run(program, program.ptx, checks) {
                Ok((output, _)) => {
                    assert_eq!(output, (program.expected)(), "{} {checks:?}", program.name);
                }
                Err(fault) => panic!("{} {checks:?}: {fault}", program.name),
            }
        }
    }
}

#[test]
fn every_mistake_is_noticed() {
    let all = PROGRAMS.iter().flat_map(|program| {
        program.mistakes.iter().filter_map(|mistake| unnoticed(program, mistake))
    });
    let unnoticed: Vec<String> = all.collect();
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}

/// What happened instead of what the table says.
fn unnoticed(program: &Program, mistake: &Mistake) -> Option<String> {
    let name = format!("{}: {}", program.name, mistake.name);
    let kernel_at = program.ptx.find(&format!("entry {}(", program.kernel)).expect("its entry");
    let (before, kernel) = program.ptx.split_at(kernel_at);
    assert!(kernel.contains(mistake.find), "{name}: nothing to change");
    let ptx = before.to_owned() + &kernel.replacen(mistake.find, mistake.replace, 1);
    match (&mistake.notice, run(program, &ptx, mistake.checks)) {
        (Notice::Fault(text), Err(fault)) => {
            (!fault.to_string().contains(text)).then(|| format!("{name}: {fault}, not {text}"))
        }
        (Notice::Wrong, Ok((output, _))) => {
            (output == (program.expected)()).then(|| format!("{name}: the result is right"))
        }
        (Notice::Fault(text), Ok(_)) => Some(format!("{name}: no fault, instead of {text}")),
        (Notice::Wrong, Err(fault)) => Some(format!("{name}: {fault}, not a wrong result")),
    }
}

/// Two ways through the same data: neighbours together, and a row of 128 bytes for each lane.
#[test]
fn traffic_is_counted_on_request() {
    let names = ["neighbours", "strides"];
    let [good, bad] = names.map(|name| {
        let program = PROGRAMS.iter().find(|program| program.name == name).expect("in the table");
        let (_, counters) = run(program, program.ptx, ALL_CHECKS).expect("a correct program");
        let (_, unasked) = run(program, program.ptx, Checks::default()).expect("the same");
        assert_eq!((unasked.sectors_read, unasked.n_bank_conflicts), (0, 0), "{name}");
        assert_eq!(counters.bytes_read, unasked.bytes_read, "{name}");
        counters
    });
    assert_eq!((good.bytes_read, good.sectors_read, good.n_bank_conflicts), (128, 4, 0));
    // A write and a read of shared memory, 31 passes too many each.
    assert_eq!((bad.bytes_read, bad.sectors_read, bad.n_bank_conflicts), (128, 32, 62));
}
