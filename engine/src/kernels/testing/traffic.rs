//! What a kernel really moves, from the virtual node's counters.

use std::sync::{Mutex, PoisonError};

use virtual_node::client::Node;
use virtual_node::report::KernelCounters;

use crate::device::cuda::testing::TestDevice;

/// A device that few tests use: what others launch there would be counted as well.
pub(crate) const QUIET_DEVICE: usize = 7;

/// Most bytes that a kernel may move for each byte that it must.
const EXCESS_MAX: f64 = 1.10;

/// Least share of the bytes in moved sectors that somebody asked for.
const SECTOR_EFFICIENCY_MIN: f64 = 0.90;

/// Held by whoever uses the quiet device.
static QUIET: Mutex<()> = Mutex::new(());

/// Runs `run` while nobody else of this crate's kernel tests uses the quiet device.
pub(crate) fn undisturbed<R>(run: impl FnOnce() -> R) -> R {
    let _guard = QUIET.lock().unwrap_or_else(PoisonError::into_inner);
    run()
}

/// Asserts that `launch`, one launch of `kernel`, moves hardly more than `fewest_bytes`: whole
/// sectors of 32 bytes, each counted once for every access of a warp, and little in them that
/// nobody asked for.
#[track_caller]
pub(crate) fn assert_frugal(kernel: &str, fewest_bytes: usize, launch: impl Fn(&TestDevice)) {
    let Moved { n_bytes, n_bytes_asked, .. } = undisturbed(|| moved(kernel, launch));
    let excess = n_bytes as f64 / fewest_bytes as f64;
    let efficiency = n_bytes_asked as f64 / n_bytes as f64;
    assert!(n_bytes > 0, "{kernel}: sectors are counted");
    assert!(excess <= EXCESS_MAX, "{kernel} moves {n_bytes} bytes for {fewest_bytes}: {excess:.3}");
    assert!(
        efficiency >= SECTOR_EFFICIENCY_MIN,
        "{kernel} moves {n_bytes} bytes, {n_bytes_asked} of them for somebody: {efficiency:.3}"
    );
}

/// Bytes that `launch`, one launch of `kernel`, asks for ahead.
pub(crate) fn prefetched_bytes(kernel: &str, launch: impl Fn(&TestDevice)) -> u64 {
    undisturbed(|| moved(kernel, launch)).n_bytes_prefetched
}

/// What a launch moved.
struct Moved {
    /// In whole sectors.
    n_bytes: u64,
    /// That threads asked for; lanes that ask for the same byte are counted each.
    n_bytes_asked: u64,
    /// Into the cache alone.
    n_bytes_prefetched: u64,
}

fn moved(kernel: &str, launch: impl Fn(&TestDevice)) -> Moved {
    const N_TRIES: usize = 20;
    let device = TestDevice::open(QUIET_DEVICE);
    let node = Node::open().expect("the tests run on the virtual node");
    node.set_checks("sectors").expect("it counts sectors");
    let counted = || {
        let counters = node.counters();
        let kernels = counters.devices.get(QUIET_DEVICE).map(|device| &device.kernels);
        kernels.and_then(|kernels| kernels.get(kernel)).copied().unwrap_or_default()
    };
    for _ in 0..N_TRIES {
        let before = counted();
        launch(&device);
        device.exec.synchronize().expect("it runs");
        let after = counted();
        // Else somebody outside of these tests has launched the same kernel there.
        if after.n_launches == before.n_launches + 1 {
            let sectors = |c: &KernelCounters| c.sectors_read + c.sectors_written;
            let asked = |c: &KernelCounters| c.bytes_read + c.bytes_written;
            return Moved {
                n_bytes: 32 * (sectors(&after) - sectors(&before)),
                n_bytes_asked: asked(&after) - asked(&before),
                n_bytes_prefetched: after.bytes_prefetched - before.bytes_prefetched,
            };
        }
    }
    panic!("{kernel} was never launched alone on device {QUIET_DEVICE}");
}
