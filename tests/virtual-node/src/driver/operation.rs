//! What streams do: the kinds of work, in streams and in graphs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::context::Context;
use super::copy::{Copy, Fill};
use super::graph::Runs;
use super::launch::KernelCall;
use super::status::Status;
use crate::config::Config;
use crate::memory::{DeviceIdx, Fault, Memory};

/// Why work failed on the device: the context is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status:?}: {text}")]
pub struct Failure {
    /// What every call answers from now on.
    pub status: Status,
    /// What happened, for whoever reads stderr.
    pub text: String,
}

impl Failure {
    /// A failure of our own making.
    pub(super) fn panic() -> Failure {
        let text = "the virtual node itself panicked".to_owned();
        Failure { status: Status::UNKNOWN, text }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure { status: Status::ILLEGAL_ADDRESS, text: fault.to_string() }
    }
}

/// What work knows about the place where it runs.
pub struct WorkCx<'a> {
    /// The device of the work's stream.
    pub device: DeviceIdx,
    /// The memory of all devices.
    pub memory: &'static Memory,
    /// Whether work is only to be counted.
    pub is_dry: bool,
    clock_ns: &'a AtomicU64,
    gate: &'a dyn Fn(),
}

impl<'a> WorkCx<'a> {
    pub(super) fn new(
        context: &Context,
        clock_ns: &'a AtomicU64,
        gate: &'a dyn Fn(),
    ) -> WorkCx<'a> {
        WorkCx {
            device: context.device,
            memory: Memory::global(),
            is_dry: Config::get().is_dry(),
            clock_ns,
            gate,
        }
    }

    /// The same place, for a node that belongs to another context.
    pub(super) fn on(&self, device: DeviceIdx) -> WorkCx<'a> {
        WorkCx { device, ..*self }
    }

    /// Blocks until the host legally waits for this work. Whatever reads or writes host memory
    /// on behalf of an asynchronous call does this first.
    pub fn wait_for_the_host(&self) {
        (self.gate)();
    }

    /// Adds to the stream's virtual time.
    pub fn spend_ns(&self, n_ns: u64) {
        self.clock_ns.fetch_add(n_ns, Ordering::Relaxed);
    }
}

/// Work of another library: runs once for each launch, so a graph may hold it.
pub type Task = dyn Fn(&WorkCx<'_>) -> Result<(), Failure> + Send + Sync;

/// A moment in a stream's virtual time.
pub(super) type Moment = AtomicU64;

/// One piece of a stream's work.
#[derive(Clone)]
pub(super) enum Operation {
    Kernel(Arc<KernelCall>),
    Copy(Copy),
    Fill(Fill),
    Host(HostCall),
    /// Of cuBLASLt or NCCL.
    Task {
        name: &'static str,
        task: Arc<Task>,
    },
    Graph(Arc<Runs>),
    /// Gives memory back in the stream's order.
    Free(u64),
    /// Notes when an event happened.
    Note(Arc<Moment>),
    /// Nothing; others come before or after it.
    Empty,
}

/// A call back into the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostCall {
    pub(super) function: extern "C" fn(*mut std::ffi::c_void),
    /// Not followed here: it is handed to the function.
    pub(super) argument: usize,
}

impl Operation {
    /// `CUgraphNodeType`. Other libraries' work is kernels.
    pub(super) fn node_type(&self) -> i32 {
        match self {
            Operation::Kernel(_) | Operation::Task { .. } => 0,
            Operation::Copy(_) => 1,
            Operation::Fill(_) => 2,
            Operation::Host(_) => 3,
            Operation::Graph(_) => 4,
            Operation::Empty => 5,
            Operation::Note(_) => 7,
            Operation::Free(_) => 11,
        }
    }

    /// Whether it takes no time and no thread.
    pub(super) fn is_instant(&self) -> bool {
        matches!(self, Operation::Note(_) | Operation::Empty)
    }

    /// Whether a node that does not compute only counts it: then it takes no thread either.
    pub(super) fn is_only_counted(&self) -> bool {
        let is_dry = Config::get().is_dry();
        match self {
            Operation::Copy(copy) => is_dry && copy.goes_to_a_device(),
            Operation::Fill(_) => is_dry,
            _ => false,
        }
    }

    pub(super) fn run_instant(&self, clock_ns: &AtomicU64) {
        if let Operation::Note(moment) = self {
            moment.store(clock_ns.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    pub(super) fn run(&self, cx: &WorkCx<'_>) -> Result<(), Failure> {
        match self {
            Operation::Kernel(call) => call.run(cx),
            Operation::Copy(copy) => copy.run(cx),
            Operation::Fill(fill) => fill.run(cx),
            Operation::Host(call) => {
                cx.wait_for_the_host();
                (call.function)(call.argument as *mut std::ffi::c_void);
                Ok(())
            }
            Operation::Task { task, .. } => {
                let began = Instant::now();
                let done = task(cx);
                cx.spend_ns(began.elapsed().as_nanos() as u64);
                done
            }
            Operation::Graph(runs) => runs.run(cx),
            Operation::Free(address) => {
                super::alloc::free_now(*address);
                Ok(())
            }
            Operation::Note(_) | Operation::Empty => {
                self.run_instant(cx.clock_ns);
                Ok(())
            }
        }
    }

    /// What is still done after the context failed.
    pub(super) fn skip(&self, cx: &WorkCx<'_>) {
        match self {
            Operation::Free(address) => super::alloc::free_now(*address),
            _ => self.run_instant(cx.clock_ns),
        }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Kernel(call) => write!(f, "kernel {}", call.name()),
            Operation::Copy(copy) => write!(f, "{copy:?}"),
            Operation::Fill(fill) => write!(f, "{fill:?}"),
            Operation::Host(_) => f.write_str("host function"),
            Operation::Task { name, .. } => f.write_str(name),
            Operation::Graph(_) => f.write_str("graph"),
            Operation::Free(address) => write!(f, "free {address:#x}"),
            Operation::Note(_) => f.write_str("event"),
            Operation::Empty => f.write_str("empty"),
        }
    }
}
