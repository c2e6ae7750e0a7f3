//! What a kernel really moves, from the virtual node's counters.

use std::sync::{Mutex, PoisonError};

use virtual_node::client::Node;

use crate::device::cuda::testing::TestDevice;

/// A device that few tests use: what others launch there would be counted as well.
pub(crate) const QUIET_DEVICE: usize = 7;

/// Most bytes that a kernel may move for each byte that it must.
const EXCESS_MAX: f64 = 1.10;

/// Held by whoever uses the quiet device.
static QUIET: Mutex<()> = Mutex::new(());

/// Runs `run` while nobody else of this crate's kernel tests uses the quiet device.
pub(crate) fn undisturbed<R>(run: impl FnOnce() -> R) -> R {
    let _guard = QUIET.lock().unwrap_or_else(PoisonError::into_inner);
    run()
}

/// Asserts that `launch`, one launch of `kernel`, moves hardly more than `fewest_bytes`: whole
/// sectors of 32 bytes, each counted once for every access of a warp.
#[track_caller]
pub(crate) fn assert_frugal(kernel: &str, fewest_bytes: usize, launch: impl Fn(&TestDevice)) {
    let n_bytes = undisturbed(|| moved_bytes(kernel, launch));
    let excess = n_bytes as f64 / fewest_bytes as f64;
    assert!(n_bytes > 0, "{kernel}: sectors are counted");
    assert!(excess <= EXCESS_MAX, "{kernel} moves {n_bytes} bytes for {fewest_bytes}: {excess:.3}");
}

fn moved_bytes(kernel: &str, launch: impl Fn(&TestDevice)) -> u64 {
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
            let sectors =
                |c: &virtual_node::report::KernelCounters| c.sectors_read + c.sectors_written;
            return 32 * (sectors(&after) - sectors(&before));
        }
    }
    panic!("{kernel} was never launched alone on device {QUIET_DEVICE}");
}
