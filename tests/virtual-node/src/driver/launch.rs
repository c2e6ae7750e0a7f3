//! Launches: the limits of an H100, the parameter block, and what a kernel's fault means.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::complain;
use super::device::{BLOCK_MAX, GRID_MAX, N_BLOCK_THREADS_MAX, N_CLUSTER_BLOCKS};
use super::device::{N_CLUSTER_BLOCKS_MAX, SHARED_OPT_IN_BYTES};
use super::module::Function;
use super::occupancy::{self, Demand};
use super::operation::{Failure, WorkCx};
use super::status::{Answer, Status};
use crate::config::{self, Config};
use crate::exec::{Cause, Checks, KernelFault, Launch, STALL_MAX};
use crate::memory::Memory;
use crate::report::{self, KernelCounters};

/// Virtual time of any launch, beside what its kernel takes here.
const LAUNCH_NS: u64 = 3_000;

/// How a launch is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Blocks.
    pub(super) grid: [u32; 3],
    /// Threads of a block.
    pub(super) block: [u32; 3],
    /// Blocks of a cluster, where the launch says.
    pub(super) cluster: Option<[u32; 3]>,
    pub(super) dynamic_shared_bytes: u32,
    /// Whether all blocks run at the same time.
    pub(super) is_cooperative: bool,
}

/// A kernel with everything that one launch of it needs.
pub(super) struct KernelCall {
    pub(super) function: Arc<Function>,
    pub(super) layout: Layout,
    params: Vec<u8>,
    /// Where each parameter lies in `params`, for programs that ask a graph's node.
    pointers: OnceLock<Vec<usize>>,
}

fn product(dims: [u32; 3]) -> u64 {
    dims.iter().map(|n| u64::from(*n)).product()
}

fn is_within(dims: [u32; 3], limits: [u32; 3]) -> bool {
    dims.iter().zip(limits).all(|(n, limit)| (1..=limit).contains(n))
}

impl Layout {
    /// What the launch would break on an H100.
    fn check(&self, function: &Function) -> Result<(), (Status, String)> {
        let kernel = &function.kernel;
        let n_threads = product(self.block);
        if !is_within(self.grid, GRID_MAX) {
            return Err((Status::INVALID_VALUE, format!("a grid of {:?} blocks", self.grid)));
        }
        if !is_within(self.block, BLOCK_MAX) || n_threads > N_BLOCK_THREADS_MAX.into() {
            return Err((Status::INVALID_VALUE, format!("blocks of {:?} threads", self.block)));
        }
        if kernel.required_block.is_some_and(|required| required != self.block) {
            let text = format!("{:?} threads, only {:?}", self.block, kernel.required_block);
            return Err((Status::INVALID_VALUE, text));
        }
        let n_threads_max = function.n_threads_max();
        if n_threads > n_threads_max.into() {
            let text = format!(
                "{n_threads} threads of {} registers, at most {n_threads_max}",
                function.n_registers
            );
            return Err((Status::LAUNCH_OUT_OF_RESOURCES, text));
        }
        self.check_shared(function)?;
        self.check_cluster(function)?;
        self.check_cooperative(function)
    }

    fn check_shared(&self, function: &Function) -> Result<(), (Status, String)> {
        let n_bytes = self.dynamic_shared_bytes;
        let allowed = function.dynamic_shared_bytes_max.load(Ordering::Relaxed);
        let static_bytes = function.kernel.static_shared_bytes as u64;
        if n_bytes > allowed || static_bytes + u64::from(n_bytes) > SHARED_OPT_IN_BYTES.into() {
            let text = format!(
                "{n_bytes} bytes of dynamic shared memory beside {static_bytes} static ones, the \
                 function's attribute allows {allowed}"
            );
            return Err((Status::INVALID_VALUE, text));
        }
        Ok(())
    }

    fn check_cluster(&self, function: &Function) -> Result<(), (Status, String)> {
        let refuse = |text: String| Err((Status::INVALID_CLUSTER_SIZE, text));
        let required = function.kernel.required_cluster;
        if let (Some(asked), Some(required)) = (self.cluster, required)
            && asked != required
        {
            return refuse(format!("clusters of {asked:?} blocks, compiled for {required:?}"));
        }
        let Some(cluster) = self.cluster.or(required) else { return Ok(()) };
        let allows_large = function.allows_large_clusters.load(Ordering::Relaxed);
        let limit = if allows_large { N_CLUSTER_BLOCKS_MAX } else { N_CLUSTER_BLOCKS };
        if cluster.contains(&0) || product(cluster) > limit.into() {
            return refuse(format!("clusters of {cluster:?} blocks, at most {limit}"));
        }
        if self.grid.iter().zip(cluster).any(|(blocks, size)| blocks % size != 0) {
            return refuse(format!("{:?} blocks in clusters of {cluster:?}", self.grid));
        }
        Ok(())
    }

    fn check_cooperative(&self, function: &Function) -> Result<(), (Status, String)> {
        let room = occupancy::n_blocks_per_device(demand(function, self));
        if self.is_cooperative && product(self.grid) > room {
            let text = format!("{} blocks at once, at most {room}", product(self.grid));
            return Err((Status::COOPERATIVE_LAUNCH_TOO_LARGE, text));
        }
        Ok(())
    }
}

/// What one block takes.
pub(super) fn demand(function: &Function, layout: &Layout) -> Demand {
    Demand {
        n_threads: product(layout.block).min(u32::MAX.into()) as u32,
        n_registers: function.n_registers,
        shared_bytes: function.kernel.static_shared_bytes as u32 + layout.dynamic_shared_bytes,
    }
}

impl KernelCall {
    /// A launch that keeps within the limits.
    pub(super) fn new(
        function: Arc<Function>,
        layout: Layout,
        params: Vec<u8>,
    ) -> Answer<KernelCall> {
        let call = KernelCall { function, layout, params, pointers: OnceLock::new() };
        let checked = call.layout.check(&call.function).and_then(|()| call.check_pointers());
        match checked {
            Ok(()) => Ok(call),
            Err((status, text)) => {
                complain(format_args!("{} was not launched: {text} ({status:?})", call.name()));
                Err(status)
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.function.kernel.name
    }

    /// Addresses of the parameters, good as long as the call.
    pub(super) fn param_pointers(&self) -> &[usize] {
        self.pointers.get_or_init(|| {
            let params = self.function.kernel.params.iter();
            params.map(|param| self.params.as_ptr() as usize + param.offset).collect()
        })
    }

    /// In dry mode no access can tell a stale pointer, so every parameter that lies in a device's
    /// range must lie in a live allocation, or right behind one, that the device may reach. What
    /// the kernel reads as smaller numbers is no address.
    fn check_pointers(&self) -> Result<(), (Status, String)> {
        if !Config::get().is_dry() {
            return Ok(());
        }
        let memory = Memory::global();
        let kernel = &self.function.kernel;
        for (param_idx, param) in kernel.params.iter().enumerate() {
            let n_words = param.size / size_of::<u64>();
            for at in (0..n_words).map(|word_idx| param.offset + word_idx * size_of::<u64>()) {
                let Some(bytes) = self.params.get(at..).and_then(<[u8]>::first_chunk) else {
                    break;
                };
                let address = u64::from_le_bytes(*bytes);
                let is_narrow = kernel.narrow_params.binary_search(&at).is_ok();
                if is_narrow || memory.owner(address).is_none() {
                    continue;
                }
                let device = self.function.context.device;
                let behind = memory.check(device, address.wrapping_sub(1), 1);
                memory.check(device, address, 1).or(behind).map_err(|fault| {
                    (Status::ILLEGAL_ADDRESS, format!("parameter {param_idx}: {fault}"))
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn run(&self, cx: &WorkCx<'_>) -> Result<(), Failure> {
        cx.spend_ns(LAUNCH_NS);
        let layout = &self.layout;
        if cx.is_dry {
            let n_blocks = product(layout.grid);
            let launched = KernelCounters { n_launches: 1, n_blocks, ..KernelCounters::default() };
            report::record_kernel(cx.device.index(), self.name(), launched);
            return Ok(());
        }
        let (config, checks) = (Config::get(), config::current_checks());
        let running = Running::new();
        let cluster = layout.cluster.or(self.function.kernel.required_cluster);
        let launch = Launch {
            kernel: self.function.kernel.clone(),
            grid: layout.grid,
            block: layout.block,
            cluster: cluster.unwrap_or([1; 3]),
            dynamic_shared_bytes: layout.dynamic_shared_bytes as usize,
            params: self.params.clone(),
            device: cx.device,
            memory: cx.memory,
            globals: self.function.globals.clone(),
            checks: Checks {
                races: checks.races,
                init: checks.init,
                sectors: checks.sectors,
                banks: checks.banks,
            },
            n_workers: running.n_workers(config.n_threads),
            stall_max: STALL_MAX,
        };
        // What the kernel sees pass by `%globaltimer`, events see pass as well.
        let began = Instant::now();
        let counters = launch.run().map_err(failure)?;
        cx.spend_ns(began.elapsed().as_nanos() as u64);
        report::record_kernel(cx.device.index(), self.name(), counters);
        Ok(())
    }
}

/// A launch that runs, for as long as it lives.
struct Running {
    n_others: usize,
}

static N_RUNNING: AtomicUsize = AtomicUsize::new(0);

impl Running {
    fn new() -> Running {
        Running { n_others: N_RUNNING.fetch_add(1, Ordering::Relaxed) }
    }

    /// The launch's share of the processor's cores: devices that run at the same time have no use
    /// for more threads than that.
    fn n_workers(&self, n_threads: usize) -> usize {
        (n_threads / (self.n_others + 1)).max(1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        N_RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the real driver would answer for a kernel's fault.
fn failure(fault: KernelFault) -> Failure {
    let status = match &*fault.cause {
        Cause::Memory(_) | Cause::Bounds { .. } | Cause::ReadOnly { .. } => Status::ILLEGAL_ADDRESS,
        Cause::Misaligned { .. } => Status::MISALIGNED_ADDRESS,
        Cause::Deadlock { .. } | Cause::Hang { .. } => Status::LAUNCH_TIMEOUT,
        Cause::Assert { .. } => Status::ASSERT,
        Cause::Launch { .. } => Status::LAUNCH_OUT_OF_RESOURCES,
        _ => Status::LAUNCH_FAILED,
    };
    Failure { status, text: fault.to_string() }
}
