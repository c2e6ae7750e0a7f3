//! Logits in this machine's memory: this rank's vocabulary entries, and on rank 0 everybody's.

use parallel::{Communicator, Rank};
use weights::ModelSpec;

use super::N_LOGIT_ROWS;
use crate::device::Aligned;
use crate::rank::StepError;

/// Memory for [`N_LOGIT_ROWS`] positions.
pub(super) struct Logits {
    vocab_size: usize,
    n_local: usize,
    /// This rank's vocabulary entries, `[N_LOGIT_ROWS, n_local]`.
    local: Aligned,
    /// All of them, `[N_LOGIT_ROWS, vocab]`; only rank 0 of several has it.
    gathered: Vec<f32>,
}

impl Logits {
    pub(super) fn new(spec: &ModelSpec, n_local: usize, n_ranks: usize, rank: Rank) -> Logits {
        let gathers = n_ranks > 1 && rank.idx() == 0;
        Logits {
            vocab_size: spec.vocab_size,
            n_local,
            local: Aligned::new(N_LOGIT_ROWS * n_local),
            gathered: vec![0.0; if gathers { N_LOGIT_ROWS * spec.vocab_size } else { 0 }],
        }
    }

    /// `[n_rows, n_local]`, to be written.
    pub(super) fn local_mut(&mut self, n_rows: usize) -> &mut [f32] {
        &mut self.local[..n_rows * self.n_local]
    }

    /// Puts every rank's vocabulary entries side by side on rank 0.
    pub(super) fn gather(
        &mut self,
        communicator: &mut Communicator,
        n_rows: usize,
    ) -> Result<(), StepError> {
        if matches!(communicator, Communicator::Solo) {
            return Ok(());
        }
        let n_local = self.n_local;
        let (gathered, vocab_size) = (&mut self.gathered, self.vocab_size);
        let mut begin = 0;
        communicator.all_gather(&self.local[..n_rows * n_local], &mut |_, theirs| {
            let n_theirs = theirs.len() / n_rows;
            if n_theirs > 0 && !gathered.is_empty() {
                for (row_idx, row) in theirs.chunks_exact(n_theirs).enumerate() {
                    let at = row_idx * vocab_size + begin;
                    gathered[at..at + n_theirs].copy_from_slice(row);
                }
            }
            begin += n_theirs;
        })?;
        assert_eq!(begin, vocab_size, "the ranks' vocabulary entries make up the whole");
        Ok(())
    }

    /// The whole row of logits, where this rank has it.
    pub(super) fn row(&self, communicator: &Communicator, row_idx: usize) -> Option<&[f32]> {
        let whole = match communicator {
            Communicator::Solo => &*self.local,
            _ if self.gathered.is_empty() => return None,
            _ => &self.gathered,
        };
        Some(&whole[row_idx * self.vocab_size..(row_idx + 1) * self.vocab_size])
    }
}
