//! The block list, loaded: each block owns its weights and its region of the cache.
//!
//! An empty block is not in the list; an absent sub-block costs nothing.

mod attention;
mod linear;
mod swiglu;

use parallel::Communicator;
use weights::InputScale;

pub(crate) use attention::Attention;
pub(crate) use linear::Replacement;
pub(crate) use swiglu::SwiGlu;

use crate::batch::Batch;
use crate::device::{Aligned, Exec, RopeAngles, View, ViewMut};
use crate::kernels::attention::AttentionRow;
use crate::kernels::quantize;
use crate::rank::StepError;

/// A block with at least one sub-block.
pub(crate) struct Block {
    pub(crate) mixer: Option<Mixer>,
    pub(crate) ffn: Option<Ffn>,
}

/// What moves information between tokens, or stands in its place.
#[expect(clippy::large_enum_variant, reason = "one a block, and nearly all are the large one")]
pub(crate) enum Mixer {
    Attention(Attention),
    Linear(Replacement),
}

/// What works on each token alone.
pub(crate) enum Ffn {
    SwiGlu(SwiGlu),
    Linear(Replacement),
}

/// What a forward pass needs besides the blocks.
pub(crate) struct StepCx<'a> {
    pub(crate) exec: &'a mut Exec,
    pub(crate) communicator: &'a mut Communicator,
    pub(crate) batch: &'a Batch,
    /// The batch's rows with their pages, per cache group.
    pub(crate) rows: &'a [Vec<AttentionRow<'a>>],
    pub(crate) angles: &'a RopeAngles,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) norm_eps: f32,
}

/// Step-local memory, allocated at boot for the widest block and the fullest step, on cache lines'
/// boundaries: a vector that straddles two lines costs two loads.
pub(crate) struct Scratch {
    hidden_size: usize,
    /// The residual stream, `[n_tokens, hidden]`.
    pub(crate) residual: Aligned,
    /// A projection's input, `[n_tokens, hidden]`.
    pub(crate) normed: Aligned,
    /// A sub-block's result on this rank, then over all ranks, `[n_tokens, hidden]`.
    pub(crate) partial: Aligned,
    /// The widest first projection, `[n_tokens, …]`.
    pub(crate) wide: Aligned,
    /// What the second projection takes, `[n_tokens, …]`.
    pub(crate) inner: Aligned,
    /// A factor per token of a quantized input.
    pub(crate) scales: Vec<f32>,
}

/// Widths that decide how large [`Scratch`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Widths {
    pub(crate) hidden: usize,
    /// Columns of the widest first projection (q, k, v together; gate and up together).
    pub(crate) wide: usize,
    /// Columns of the widest second projection's input.
    pub(crate) inner: usize,
}

impl Block {
    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        match &mut self.mixer {
            Some(Mixer::Attention(attention)) => attention.forward(cx)?,
            Some(Mixer::Linear(replacement)) => replacement.forward(cx)?,
            None => {}
        }
        match &mut self.ffn {
            Some(Ffn::SwiGlu(swiglu)) => swiglu.forward(cx),
            Some(Ffn::Linear(replacement)) => replacement.forward(cx),
            None => Ok(()),
        }
    }
}

impl StepCx<'_> {
    /// Sums the ranks' partial results and adds them to the residual stream.
    pub(crate) fn add_partial(&mut self) -> Result<(), StepError> {
        let n = self.batch.n_tokens() * self.scratch.hidden_size;
        let partial = &mut self.scratch.partial[..n];
        self.communicator.all_reduce_sum(partial)?;
        for (x, y) in self.scratch.residual[..n].iter_mut().zip(partial) {
            *x += *y;
        }
        Ok(())
    }
}

/// Quantizes the input of a projection that is cut by columns: `x` holds this rank's.
///
/// A per-token scale comes from the whole row, so ranks exchange their magnitudes: then every
/// number of ranks rounds alike, and the model's answers do not depend on how it is sharded.
pub(crate) fn quantize_cut(
    exec: &mut Exec,
    communicator: &mut Communicator,
    args: quantize::Args<'_>,
) -> Result<(), StepError> {
    let quantize::Args { mut x, input, scales } = args;
    if !needs_exchange(input, communicator) {
        return Ok(quantize::quantize(exec, quantize::Args { x, input, scales })?);
    }
    let local = quantize::MagnitudeArgs { x: x.as_view(), magnitudes: scales };
    quantize::magnitudes(exec, local)?;
    communicator.all_reduce_max(scales)?;
    let known = quantize::KnownArgs { x: x.reborrow(), magnitudes: scales };
    Ok(quantize::quantize_known(exec, known)?)
}

/// Whether a projection that is cut by columns needs to know the other ranks' magnitudes.
pub(crate) fn needs_exchange(input: InputScale, communicator: &Communicator) -> bool {
    input == InputScale::PerToken && communicator.world().n_ranks() > 1
}

impl Scratch {
    pub(crate) fn new(widths: Widths, n_tokens: usize) -> Scratch {
        Scratch {
            hidden_size: widths.hidden,
            residual: Aligned::new(n_tokens * widths.hidden),
            normed: Aligned::new(n_tokens * widths.hidden),
            partial: Aligned::new(n_tokens * widths.hidden),
            wide: Aligned::new(n_tokens * widths.wide),
            inner: Aligned::new(n_tokens * widths.inner),
            scales: vec![0.0; n_tokens],
        }
    }

    /// Bytes that [`Scratch::new`] allocates.
    pub(crate) fn n_bytes(widths: Widths, n_tokens: usize) -> u64 {
        let n_floats_per_token = 3 * widths.hidden + widths.wide + widths.inner + 1;
        (n_tokens * n_floats_per_token * size_of::<f32>()) as u64
    }
}

/// The first `n_rows` rows of a buffer as a matrix.
pub(crate) fn view(data: &[f32], n_rows: usize, n_cols: usize) -> View<'_> {
    View::new(&data[..n_rows * n_cols], n_rows, n_cols)
}

/// The same, to be written.
pub(crate) fn view_mut(data: &mut [f32], n_rows: usize, n_cols: usize) -> ViewMut<'_> {
    ViewMut::new(&mut data[..n_rows * n_cols], n_rows, n_cols)
}
