//! Several devices that reach each other's memory, each on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Barrier, Mutex};

use super::traffic::{QUIET_DEVICE, undisturbed};
use crate::device::DevicePtr;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::launching::{Exchange, FLAG_BYTES, N_RANKS_MAX, STATE_BYTES};

/// One of the ranks of a test.
pub(crate) struct TestRank<'a> {
    pub(crate) rank: usize,
    pub(crate) n_ranks: usize,
    pub(crate) device: TestDevice,
    board: &'a Board,
}

/// Where ranks tell each other what they have.
struct Board {
    addresses: Mutex<[DevicePtr; N_RANKS_MAX]>,
    barrier: Barrier,
}

/// Runs `run` on ranks `0..n_ranks`, devices of the same numbers, all of them connected.
///
/// A rank that fails ends the process: others may be waiting for it in a kernel.
pub(crate) fn on_ranks(n_ranks: usize, run: impl Fn(&TestRank<'_>) + Sync) {
    if n_ranks > QUIET_DEVICE {
        undisturbed(|| run_ranks(n_ranks, run));
    } else {
        run_ranks(n_ranks, run);
    }
}

fn run_ranks(n_ranks: usize, run: impl Fn(&TestRank<'_>) + Sync) {
    let addresses = Mutex::new([DevicePtr::NULL; N_RANKS_MAX]);
    let board = Board { addresses, barrier: Barrier::new(n_ranks) };
    let on_rank = |rank: usize| {
        let device = TestDevice::open(rank);
        for peer in (0..n_ranks).filter(|&peer| peer != rank) {
            device.exec.enable_peer(peer).expect("all are connected");
        }
        let rank = TestRank { rank, n_ranks, device, board: &board };
        run(&rank);
        // Nobody's memory goes before the last has read it.
        rank.meet();
    };
    std::thread::scope(|scope| {
        for rank in 0..n_ranks {
            let on_rank = &on_rank;
            scope.spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| on_rank(rank))).is_err() {
                    std::process::abort();
                }
            });
        }
    });
}

/// One exchange of `device` alone, as the first of `n_ranks` ranks whose others have announced it
/// already: nobody waits, so what its kernel does depends on nobody's speed.
pub(crate) fn alone_as(device: &TestDevice, n_ranks: usize) -> Exchange {
    let own = device.upload(&[1u32; N_RANKS_MAX]);
    // Where the others would hear of this rank.
    let flags = std::array::from_fn(|rank| own.elements::<u32>(rank));
    let state = device.upload(&[0u8; STATE_BYTES]);
    Exchange { flags, state, n_ranks, rank: 0 }
}

impl TestRank<'_> {
    /// Waits for all ranks.
    pub(crate) fn meet(&self) {
        self.board.barrier.wait();
    }

    /// What every rank calls this with; null beyond the last.
    pub(crate) fn share(&self, own: DevicePtr) -> [DevicePtr; N_RANKS_MAX] {
        // The lock is not held over the barriers.
        self.board.addresses.lock().expect("no rank has failed")[self.rank] = own;
        self.meet();
        let addresses = *self.board.addresses.lock().expect("no rank has failed");
        self.meet();
        addresses
    }

    /// Flags and a state that nobody has used.
    pub(crate) fn exchange(&self) -> Exchange {
        let flags = self.share(self.device.upload(&[0u8; FLAG_BYTES]));
        let state = self.device.upload(&[0u8; STATE_BYTES]);
        Exchange { flags, state, n_ranks: self.n_ranks, rank: self.rank }
    }
}
