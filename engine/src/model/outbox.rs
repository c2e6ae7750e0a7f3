//! What steps send to their device besides weights: pieces of any length, through pinned memory
//! that copies read when their turn comes.

use crate::device::DeviceError;
use crate::device::cuda::{CudaExec, DevicePtr, Pinned, Plain};

/// Two halves take turns: a step fills one while the copies of the step before it, which may still
/// wait for their turn, read the other.
pub(crate) struct Outbox {
    halves: [Pinned; 2],
    half_idx: usize,
    n_used_bytes: usize,
}

impl Outbox {
    /// With room for `n_bytes` of a step that need not wait for each other.
    pub(crate) fn new(exec: &CudaExec, n_bytes: usize) -> Result<Outbox, DeviceError> {
        let half = || exec.alloc_pinned(n_bytes.max(1));
        Ok(Outbox { halves: [half()?, half()?], half_idx: 0, n_used_bytes: 0 })
    }

    /// A step begins: what follows is its own. The step before the last must have run.
    pub(crate) fn begin(&mut self) {
        self.half_idx = 1 - self.half_idx;
        self.n_used_bytes = 0;
    }

    /// Submits the copy of `values` to `to`. Where a step sends more than there is room for, it
    /// waits until the device has what was sent so far.
    pub(crate) fn send<T: Plain>(
        &mut self,
        exec: &CudaExec,
        to: DevicePtr,
        values: &[T],
    ) -> Result<(), DeviceError> {
        let half = &self.halves[self.half_idx];
        let n_max = half.n_bytes() / size_of::<T>();
        assert!(n_max > 0, "room for no value of {} bytes", size_of::<T>());
        for (piece_idx, piece) in values.chunks(n_max).enumerate() {
            let n_bytes = size_of_val(piece);
            if self.n_used_bytes + n_bytes > half.n_bytes() {
                exec.stream().synchronize()?;
                self.n_used_bytes = 0;
            }
            half.write(self.n_used_bytes, piece);
            let to = to.elements::<T>(piece_idx * n_max);
            exec.stream().copy_in(to, half, self.n_used_bytes, n_bytes)?;
            self.n_used_bytes += n_bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::testing::TestDevice;

    /// Copies read pinned memory as late as they may on the virtual node: whoever writes over what
    /// was not sent yet is seen.
    #[test]
    fn what_is_sent_arrives_however_much_it_is() {
        let device = TestDevice::open(5);
        let mut outbox = Outbox::new(&device.exec, 40).expect("there is room");
        let pieces: [Vec<i32>; 5] = [3, 7, 1, 25, 2].map(|n| (0..n).map(|i| 100 * n + i).collect());
        let places = [3, 7, 1, 25, 2].map(|n| device.poisoned::<i32>(n));
        // Two steps of which neither is waited for: each has its own half.
        for step in [0..2, 2..3] {
            outbox.begin();
            for idx in step {
                outbox.send(&device.exec, places[idx], &pieces[idx]).expect("it is sent");
            }
        }
        device.exec.synchronize().expect("all is there");
        outbox.begin();
        for idx in 3..5 {
            outbox.send(&device.exec, places[idx], &pieces[idx]).expect("it is sent");
        }
        for (place, piece) in places.iter().zip(&pieces) {
            assert_eq!(device.download::<i32>(*place, piece.len()), *piece);
        }
    }
}
