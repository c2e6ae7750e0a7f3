//! The other ranks' devices: their memory, which exchange carries a sum, and how a rank waits for
//! its device without waiting for ever.
//!
//! Partial results are summed over ranks in one of three ways. **One shot**: a kernel reads every
//! rank's partial result over NVLink and goes on with the sum (`reduce_norm`). **Two shots**: the
//! same kernel does so for this rank's share of the tokens, and gives what it has made of them to
//! all ranks. **NCCL**: it sums in place, and the kernel then runs as if the rank were alone. All
//! add in an order that does not depend on timing, so runs repeat bit by bit; the first two give
//! the same bits.

use std::time::{Duration, Instant};

use parallel::{CollectiveError, Communicator};

use crate::device::cuda::{CudaExec, Event, Pinned, Stream};
use crate::device::{DeviceError, DevicePtr};
use crate::kernels::launching::{
    Exchange, FLAG_BYTES, N_RANKS_MAX, SPENT_OFFSET_BYTES, STATE_BYTES,
};
use crate::rank::StepError;

/// How long a rank asks its device without a pause: longer than a step's last kernels, shorter
/// than anyone minds a core to be busy.
const SPIN: Duration = Duration::from_micros(100);

/// How often it asks after that.
const PAUSE: Duration = Duration::from_micros(50);

/// Times that a device is told to go on before it is left to its end.
const N_LET_GO_MAX: usize = 5000;

/// How far a rank that gives up moves its flags ahead: more exchanges than any step has.
const EPOCHS_GIVEN_UP: u32 = 1 << 30;

/// Greatest partial result that is summed in two shots: 256 tokens of LN-Ultra.
const TWO_SHOT_BYTES_MAX: usize = 8 << 20;

/// How a sum over ranks is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Every rank reads all others' memory.
    OneShot,
    /// Every rank reads all others' memory for the tokens that it owns, and writes into it what it
    /// has made of them.
    TwoShot,
    /// The library.
    Nccl,
}

/// Which way a sum of `n_bytes` (of one rank's partial result) takes. Published times of an
/// all-reduce of bf16 on 8 × H100, in microseconds:
///
/// | bytes   | NCCL's default | one kernel, one stage | one kernel, two stages |
/// |--------:|---------------:|----------------------:|-----------------------:|
/// |  32 KiB | 22.7           | 7-9 (on B300)         |                        |
/// | 256 KiB | 24.8           | 7-9 (on B300)         |                        |
/// | 512 KiB | 24-25          | 13 (6 ranks)          | 15                     |
/// |   1 MiB | 25-32          |                       | 17                     |
/// |   2 MiB | 37             |                       | 22                     |
/// |   4 MiB | 50             |                       | 37                     |
/// |   8 MiB | 76             |                       | 65                     |
/// |  64 MiB | 316            |                       | 468                    |
///
/// NCCL up to 1 MiB: ByteDance-Seed/Triton-distributed#57 (eager, the launch included); from
/// 512 KiB: vllm-project/vllm#42324. One stage: vllm-project/vllm#24111 (H100, six ranks),
/// vllm-project/vllm#37756 (B300).
///
/// **One shot or two.** A rank of eight reads seven times the message, so that at 1 MiB some 20 µs
/// go into bytes alone (at about 370 GB/s of NVLink). Two shots move an eighth of that and the
/// finished rows, but ranks meet a second time, which costs 6 µs by the table. Both are even near
/// 512 KiB with eight ranks; four ranks read three times the message, two ranks once, and are even
/// near 1 MiB and 4 MiB.
///
/// **Two shots or NCCL.** By the table NCCL is the faster somewhere between 8 and 64 MiB, of which
/// nobody has published anything. Here two shots give away rows of e4m3 rather than of bf16 and
/// spare each rank most of the residual stream, while NCCL's sum is read again by a kernel of its
/// own: what holds at 8 MiB for the bare sum holds here. Fewer ranks move less, so that it holds
/// for them as well.
pub fn carrier(n_bytes: usize, n_ranks: usize) -> Carrier {
    let n_bytes_one_shot = match n_ranks {
        0..=2 => 4 << 20,
        3..=4 => 1 << 20,
        _ => 512 << 10,
    };
    if n_bytes <= n_bytes_one_shot {
        Carrier::OneShot
    } else if n_bytes <= TWO_SHOT_BYTES_MAX {
        Carrier::TwoShot
    } else {
        Carrier::Nccl
    }
}

/// What a rank knows of its peers' devices.
pub(crate) struct Peers {
    n_ranks: usize,
    rank_idx: usize,
    /// Of every rank, by rank.
    flags: [DevicePtr; N_RANKS_MAX],
    state: DevicePtr,
    /// What exchanges took and waited, as of the step that has the turn.
    spent: [Pinned; 2],
    deadline: Duration,
    escape: Escape,
}

/// What ends a kernel that waits for a peer which will never come.
struct Escape {
    /// Runs while the stream of steps stands.
    stream: Stream,
    epoch: Pinned,
}

impl Peers {
    /// Connects this rank's device with all others; every rank calls it. `deadline` is how long a
    /// device may take for a step.
    ///
    /// # Errors
    /// [`DeviceError::NoPeerAccess`] where the devices cannot reach each other's memory; what NCCL
    /// says.
    pub(crate) fn connect(
        exec: &CudaExec,
        communicator: &mut Communicator,
        deadline: Duration,
    ) -> Result<Peers, StepError> {
        let n_ranks = communicator.world().n_ranks();
        let rank_idx = communicator.rank().idx();
        assert!(n_ranks <= N_RANKS_MAX, "{n_ranks} ranks meet in a kernel, {N_RANKS_MAX} at most");
        let own = exec.info().ordinal;
        for ordinal in communicator.all_gather_word(own as u64)? {
            if ordinal as usize != own {
                exec.enable_peer(ordinal as usize)?;
            }
        }
        let (flags, state) = (exec.alloc(FLAG_BYTES)?, exec.alloc(STATE_BYTES)?);
        exec.zero(flags, FLAG_BYTES)?;
        exec.zero(state, STATE_BYTES)?;
        exec.synchronize()?;
        let escape = Escape { stream: exec.new_stream()?, epoch: exec.alloc_pinned(STATE_BYTES)? };
        // Whoever knows a peer's flags knows that they are zero: it has met the peer here.
        let flags = gather(communicator, flags)?;
        let spent = || exec.alloc_pinned(STATE_BYTES - SPENT_OFFSET_BYTES);
        let spent = [spent()?, spent()?];
        Ok(Peers { n_ranks, rank_idx, flags, state, spent, deadline, escape })
    }

    /// Every rank's `own`, by rank: memory that all ranks' kernels may then read. Every rank calls
    /// it, at boot, for the same purpose.
    ///
    /// # Errors
    /// If a peer failed.
    pub(crate) fn share(
        &self,
        communicator: &mut Communicator,
        own: DevicePtr,
    ) -> Result<[DevicePtr; N_RANKS_MAX], StepError> {
        Ok(gather(communicator, own)?)
    }

    /// How this rank's kernels meet the others'.
    pub(crate) fn exchange(&self) -> Exchange {
        let Peers { n_ranks, rank_idx: rank, flags, state, .. } = *self;
        Exchange { flags, state, n_ranks, rank }
    }

    /// Submits the copy of what exchanges took, to where the step of `turn` reads it.
    pub(crate) fn read_back(&self, exec: &CudaExec, turn: usize) -> Result<(), DeviceError> {
        let from = self.state.offset(SPENT_OFFSET_BYTES);
        exec.stream().copy_out(&self.spent[turn], 0, from, self.spent[turn].n_bytes())
    }

    /// What all exchanges so far took, and what of it they waited for other ranks, once the stream
    /// has got there. Both in nanoseconds.
    pub(crate) fn spent_ns(&self, turn: usize) -> [u64; 2] {
        let mut spent_ns = [0; 2];
        self.spent[turn].read(0, &mut spent_ns);
        spent_ns
    }

    /// Waits until the stream has passed `event`, and looks after the peers meanwhile.
    ///
    /// # Errors
    /// What a kernel did wrong, a peer that failed, or a device that stands still. What waits for
    /// a peer on this rank's device has then been told to go on, so that the device can be closed.
    pub(crate) fn wait(
        &self,
        event: &Event,
        communicator: &mut Communicator,
    ) -> Result<(), StepError> {
        let waited = self.wait_or_fail(event, communicator);
        if waited.is_err() {
            self.let_go();
        }
        waited
    }

    /// Tells what waits for a peer on this rank's device to go on, now that nobody wants what comes
    /// of it.
    pub(crate) fn let_go(&self) {
        if let Err(error) = self.escape.release(self) {
            tracing::warn!(%error, "a device that failed could not be told to go on");
        }
    }

    /// The same until the stream has passed `event`: a peer that is late itself may write over what
    /// was said once.
    pub(crate) fn let_go_until(&self, event: &Event) {
        for _ in 0..N_LET_GO_MAX {
            // A device that failed waits for nobody.
            if event.has_passed().unwrap_or(true) {
                return;
            }
            self.let_go();
            std::thread::sleep(PAUSE);
        }
        tracing::warn!("a device still waits for its peers");
    }

    fn wait_or_fail(
        &self,
        event: &Event,
        communicator: &mut Communicator,
    ) -> Result<(), StepError> {
        let begin = Instant::now();
        while !event.has_passed()? {
            let waited = begin.elapsed();
            if waited < SPIN {
                std::hint::spin_loop();
                continue;
            }
            communicator.check()?;
            if waited > self.deadline {
                return Err(communicator.time_out(waited).into());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Escape {
    /// Writes to this rank's own flags what the peers would have written, far beyond the present
    /// epoch: kernels that wait for them go on, with sums that nobody uses.
    fn release(&self, peers: &Peers) -> Result<(), DeviceError> {
        self.stream.copy_out(&self.epoch, 0, peers.state, size_of::<u32>())?;
        self.stream.synchronize()?;
        let mut epoch = [0u32];
        self.epoch.read(0, &mut epoch);
        self.epoch.write(0, &[epoch[0].wrapping_add(EPOCHS_GIVEN_UP)]);
        for rank_idx in 0..peers.n_ranks {
            let flag = peers.flags[peers.rank_idx].elements::<u32>(rank_idx);
            self.stream.copy_in(flag, &self.epoch, 0, size_of::<u32>())?;
        }
        self.stream.synchronize()
    }
}

/// Every rank's address, by rank; null beyond the last.
fn gather(
    communicator: &mut Communicator,
    own: DevicePtr,
) -> Result<[DevicePtr; N_RANKS_MAX], CollectiveError> {
    let mut of_ranks = [DevicePtr::NULL; N_RANKS_MAX];
    for (of_rank, address) in of_ranks.iter_mut().zip(communicator.all_gather_word(own.0)?) {
        *of_rank = DevicePtr(address);
    }
    Ok(of_ranks)
}

#[cfg(test)]
mod tests;
