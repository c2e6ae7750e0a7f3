//! A launch: its clusters over worker threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::exec::block::{Cluster, Stop};
use crate::exec::checks::Checks;
use crate::exec::fault::{Cause, KernelFault};
use crate::exec::pool;
use crate::exec::special::N_SM;
use crate::exec::warp::Warp;
use crate::memory::{DeviceIdx, Memory, Window};
use crate::ptx::Kernel;
use crate::report::KernelCounters;

/// How long a launch may stand still, unless it says otherwise, before it is taken for hanging.
pub const STALL_MAX: Duration = Duration::from_secs(300);
/// Threads of a block, and of a multiprocessor, at most.
const N_BLOCK_THREADS_MAX: usize = 1024;
const N_SM_THREADS: usize = 2048;
/// Shared memory of a multiprocessor.
const SM_SHARED_BYTES: usize = 228 << 10;
/// Clusters that are worth a further worker.
const N_CLUSTERS_PER_WORKER: usize = 2;

/// Everything that a kernel needs to run.
pub struct Launch {
    pub kernel: Arc<Kernel>,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Blocks of a cluster along each axis.
    pub cluster: [u32; 3],
    pub dynamic_shared_bytes: usize,
    /// The parameter block, laid out as [`Kernel::params`] says.
    pub params: Vec<u8>,
    pub device: DeviceIdx,
    pub memory: &'static Memory,
    /// Device addresses of the module's globals, in their order.
    pub globals: Arc<[u64]>,
    pub checks: Checks,
    /// Threads that may run blocks at the same time, the caller's among them.
    pub n_workers: usize,
    /// How long it may stand still before it is taken for hanging: as long as others may take to
    /// write what its threads look for.
    pub stall_max: Duration,
}

/// What the workers of a launch share.
struct Work<'a> {
    launch: &'a Launch,
    n_clusters: usize,
    next: AtomicUsize,
    has_failed: AtomicBool,
    fault: Mutex<Option<KernelFault>>,
    counters: Mutex<KernelCounters>,
    n_resident_max: usize,
}

impl Launch {
    /// Runs the kernel to its end.
    ///
    /// Counts what it did (`n_launches` is 1), or tells the first fault that was met.
    pub fn run(&self) -> Result<KernelCounters, KernelFault> {
        self.check()?;
        let n_blocks: usize = self.grid.iter().map(|n| *n as usize).product();
        let n_clusters = n_blocks / self.blocks_per_cluster();
        let n_workers = self.n_workers.min(n_clusters / N_CLUSTERS_PER_WORKER).max(1);
        let n_blocks_resident = N_SM as usize * self.blocks_per_sm();
        let n_resident_max = (n_blocks_resident / self.blocks_per_cluster() / n_workers).max(1);
        let work = Work {
            launch: self,
            n_clusters,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            fault: Mutex::new(None),
            counters: Mutex::new(KernelCounters::default()),
            n_resident_max,
        };
        if n_workers == 1 {
            work.run();
        } else {
            std::thread::scope(|scope| {
                for _ in 1..n_workers {
                    scope.spawn(|| work.run());
                }
                work.run();
            });
        }
        if let Some(fault) = work.fault.into_inner() {
            return Err(fault);
        }
        let mut counters = work.counters.into_inner();
        counters.n_launches = 1;
        counters.n_blocks = n_blocks as u64;
        Ok(counters)
    }

    /// What no kernel may ask for. The driver is stricter, and speaks of it in its own words.
    fn check(&self) -> Result<(), KernelFault> {
        let n_threads = self.threads_per_block();
        let limit = self.kernel.max_threads.map_or(N_BLOCK_THREADS_MAX, |n| n as usize);
        let limits = [
            ("threads", n_threads, limit.min(N_BLOCK_THREADS_MAX)),
            ("bytes of shared memory", self.shared_bytes(), SM_SHARED_BYTES - 1024),
        ];
        for (what, found, limit) in limits {
            if found > limit {
                return Err(self.unplaced(Cause::Launch { what, found, limit }));
            }
        }
        let axes = self.grid.iter().zip(&self.cluster);
        let fits = axes.into_iter().all(|(grid, cluster)| grid % (*cluster).max(1) == 0);
        let extents = [self.grid, self.block, self.cluster];
        let n_empty = extents.iter().flatten().filter(|n| **n == 0).count();
        let (what, found) = match (fits, n_empty) {
            (false, _) => ("a grid that clusters do not divide, blocks", self.grid[0] as usize),
            (true, 0) if self.params.len() < self.kernel.n_param_bytes => {
                ("bytes of parameters", self.params.len())
            }
            (true, 0) => return Ok(()),
            (true, n) => ("axes without extent", n),
        };
        Err(self.unplaced(Cause::Launch { what, found, limit: self.kernel.n_param_bytes }))
    }

    pub(super) fn threads_per_block(&self) -> usize {
        self.block.iter().map(|n| *n as usize).product()
    }

    pub(super) fn blocks_per_cluster(&self) -> usize {
        self.cluster.iter().map(|n| *n as usize).product::<usize>().max(1)
    }

    /// Static and dynamic shared memory of a block.
    pub(super) fn shared_bytes(&self) -> usize {
        if self.dynamic_shared_bytes == 0 {
            self.kernel.static_shared_bytes
        } else {
            self.kernel.dynamic_shared_offset + self.dynamic_shared_bytes
        }
    }

    /// Blocks that a multiprocessor runs at the same time, registers aside.
    fn blocks_per_sm(&self) -> usize {
        let by_threads = N_SM_THREADS / self.threads_per_block().next_multiple_of(32);
        let by_shared = SM_SHARED_BYTES / (self.shared_bytes() + 1024);
        by_threads.min(by_shared).clamp(1, 32)
    }

    /// Position in the grid of a cluster's block.
    pub(super) fn block_idx(&self, cluster_idx: usize, rank: usize) -> [u32; 3] {
        let clusters: [u32; 3] = std::array::from_fn(|axis| self.grid[axis] / self.cluster[axis]);
        let first = unravel(cluster_idx as u32, clusters);
        let inner = unravel(rank as u32, self.cluster);
        std::array::from_fn(|axis| first[axis] * self.cluster[axis] + inner[axis])
    }

    /// Position of a thread in its block.
    pub(super) fn thread_idx(&self, thread: u32) -> [u32; 3] {
        unravel(thread, self.block)
    }

    /// A fault that no thread is to blame for.
    fn unplaced(&self, cause: Cause) -> KernelFault {
        KernelFault {
            kernel: self.kernel.name.clone(),
            block: [0; 3],
            thread: [0; 3],
            line: 0,
            text: String::new(),
            cause: Box::new(cause),
        }
    }

    /// A fault of a lane, whose line is not known.
    pub(super) fn fault(
        &self,
        block: [u32; 3],
        warp: &Warp,
        lane: usize,
        cause: Cause,
    ) -> KernelFault {
        let thread = self.thread_idx((warp.idx * 32 + lane) as u32);
        KernelFault { block, thread, ..self.unplaced(cause) }
    }

    /// A fault of a warp where it stands.
    pub(super) fn fault_at(&self, block: [u32; 3], warp: &Warp, cause: Cause) -> KernelFault {
        let mut fault = self.fault(block, warp, warp.live.trailing_zeros() as usize & 31, cause);
        let inst = self.kernel.code.get(warp.pc as usize);
        self.blame(&mut fault, inst.map_or(0, |inst| inst.line));
        fault
    }

    /// Names the line of a fault.
    pub(super) fn blame(&self, fault: &mut KernelFault, line: u32) {
        fault.line = line;
        let text = line.checked_sub(1).and_then(|idx| self.kernel.source.get(idx as usize));
        fault.text = text.cloned().unwrap_or_default();
    }
}

/// The position of a linear index in a box, first axis fastest.
fn unravel(idx: u32, extents: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = extents;
    [idx % x, idx / x % y, idx / x / y]
}

impl Work<'_> {
    /// Runs clusters until none are left.
    fn run(&self) {
        let mut window = Window::new(self.launch.memory, self.launch.device);
        let mut counters = KernelCounters::default();
        if let Err(fault) = self.clusters(&mut window, &mut counters) {
            self.has_failed.store(true, Ordering::Release);
            self.fault.lock().get_or_insert(fault);
        }
        *self.counters.lock() += counters;
    }

    fn clusters(
        &self,
        window: &mut Window<'static>,
        counters: &mut KernelCounters,
    ) -> Result<(), KernelFault> {
        let launch = self.launch;
        let mut spare: Vec<Cluster> = Vec::new();
        let mut stalled: VecDeque<Cluster> = VecDeque::new();
        // Looks at stalled clusters since one of them moved, and since when.
        let mut n_idle = 0;
        let mut idle_since = None;
        while !self.has_failed.load(Ordering::Acquire) {
            let fresh = self.take(stalled.len());
            let is_fresh = fresh.is_some();
            let mut cluster = match fresh {
                Some(idx) => {
                    let cluster = spare.pop().or_else(|| pool::take(launch));
                    let mut cluster = cluster.unwrap_or_else(|| Cluster::new(launch));
                    cluster.begin(launch, idx);
                    cluster
                }
                None => match stalled.pop_front() {
                    Some(cluster) => cluster,
                    None => break,
                },
            };
            let before = counters.n_warp_instructions;
            match cluster.run(launch, window, counters)? {
                Stop::Done => {
                    spare.push(cluster);
                    (n_idle, idle_since) = (0, None);
                }
                Stop::Stalled => {
                    let n_run = counters.n_warp_instructions - before;
                    let waited = idle_since.get_or_insert_with(Instant::now).elapsed();
                    if waited > launch.stall_max {
                        return Err(cluster.hang(launch, launch.stall_max));
                    }
                    stalled.push_back(cluster);
                    n_idle = if is_fresh { 0 } else { n_idle + 1 };
                    // What a cluster runs only to look again was not work.
                    counters.n_warp_instructions -= if is_fresh { 0 } else { n_run };
                    rest(n_idle, stalled.len());
                }
            }
        }
        for cluster in spare {
            pool::give(launch, cluster);
        }
        Ok(())
    }

    /// The next cluster of the grid, if there is one and the device has room for it.
    fn take(&self, n_resident: usize) -> Option<usize> {
        if n_resident >= self.n_resident_max {
            return None;
        }
        let idx = self.next.fetch_add(1, Ordering::Relaxed);
        (idx < self.n_clusters).then_some(idx)
    }
}

/// Leaves the processor to others when all of a worker's clusters were looked at in vain.
fn rest(n_idle: usize, n_stalled: usize) {
    let n_rounds = n_idle / n_stalled.max(1);
    if n_rounds > 64 {
        std::thread::sleep(Duration::from_micros(50));
    } else if n_rounds > 0 {
        std::thread::yield_now();
    }
}
