//! The start of a sub-block: what the one before it left on all ranks is summed into the residual
//! stream, which is then normalised, and quantized as the next projection asks.

mod cpu;
mod cuda;

pub use cuda::HIDDEN_MAX;

use parallel::{Communicator, DeviceElement, DeviceSlice};
use weights::InputScale;

use crate::device::{
    Array, ArrayMut, Deferred, DevicePtr, DeviceView, Element, Exec, Gpu, ViewMut,
};
use crate::kernels::ahead::Ahead;
use crate::kernels::launching::{Exchange, N_RANKS_MAX};
use crate::peers::Carrier;
use crate::rank::StepError;

/// `residual[t] += Σ_rank partial[t] · scales`, in rank order, then with `t = rows[i]`
/// `out[i] = quantize(residual[t] / sqrt(mean(residual[t]²) + eps) * weight)`.
///
/// The mean is summed in f32 over sixteen lanes: its relative error is under K/16 + 5 roundings,
/// and the root halves it.
pub struct Args<'a> {
    /// Whose ranks hold the partial results.
    pub communicator: &'a mut Communicator,
    /// `[T, K]`: this rank's partial result; unspecified afterwards.
    pub partial: ViewMut<'a>,
    /// What else is to be known of it.
    pub pending: Pending,
    /// `[T, K]`: the residual stream, the same on every rank. Devices that sum in two shots have
    /// the tokens that they own, which serves because a step's sums are all carried alike.
    pub residual: ViewMut<'a>,
    /// `[K]`
    pub weight: Array<'a, f32>,
    /// Keeps a zero row finite.
    pub eps: f32,
    /// `[n]`, each below T: the tokens that are normalised. All are, in order, where there is none.
    pub rows: Option<Array<'a, u32>>,
    /// The next projection's weights on a device: a part of them is fetched into its cache.
    pub next: Option<DeviceView>,
    /// How the next projection's input is quantized.
    pub input: InputScale,
    /// `[n, K]`
    pub out: ViewMut<'a>,
    /// `[n]`: what `out` must be multiplied by to be the normalised values.
    pub out_scales: ArrayMut<'a, f32>,
}

/// How a partial result becomes part of the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pending {
    /// Factors that it still lacks: the same on every rank, so they may follow the sum.
    pub scales: Deferred,
    /// It is the first: the stream begins with it, whatever lies in its memory.
    pub starts: bool,
}

/// Sums, adds and normalises every token.
///
/// # Errors
/// Where the ranks could not exchange their results, or the device fails.
pub fn reduce_norm(exec: &mut Exec, args: Args<'_>) -> Result<(), StepError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::reduce_norm(cpu, args),
        Exec::Cuda(gpu) => args.launch(gpu),
    }
}

impl Args<'_> {
    fn launch(self, gpu: &Gpu) -> Result<(), StepError> {
        let n_tokens = self.partial.n_rows();
        let (residual, out) = (self.residual.device().first, self.out.device());
        let out_scales = self.out_scales.device();
        let places = [out.first, out_scales];
        let way = Way::of_sum(self.communicator, gpu, self.partial.device(), places)?;
        let norm = cuda::Norm {
            weight: self.weight.device(),
            eps: self.eps,
            out: out.first,
            output: match self.input {
                InputScale::None => cuda::Output::Bf16,
                InputScale::Static(scale) => cuda::Output::E4m3(scale),
                InputScale::PerToken => cuda::Output::E4m3PerToken(out_scales),
            },
        };
        let launch = cuda::Launch {
            partials: way.partials,
            exchange: way.exchange,
            two_shot: way.two_shot,
            scales: self.pending.scales,
            residual_in: if self.pending.starts { DevicePtr::NULL } else { residual },
            residual_out: residual,
            rows: self.rows.map_or(DevicePtr::NULL, Array::device),
            n_rows: out.n_rows,
            hidden: out.n_cols,
            norm,
            // Where nobody is met there is no time to be used.
            ahead: self
                .next
                .filter(|_| way.exchange.n_ranks > 1)
                .and_then(|weights| Ahead::new(weights, n_tokens)),
        };
        Ok(cuda::launch(&gpu.exec, &launch)?)
    }

    fn check(&self) {
        let shape = (self.residual.n_rows(), self.residual.n_cols());
        let partial = (self.partial.n_rows(), self.partial.n_cols());
        assert_eq!(partial, shape, "partial and residual are [T, K]");
        let n_rows = self.rows.map_or(shape.0, |rows| rows.len());
        assert_eq!((self.out.n_rows(), self.out.n_cols()), (n_rows, shape.1), "out is [n, K]");
        assert_eq!(self.weight.len(), shape.1, "weight is [K]");
        assert_eq!(self.out_scales.len(), n_rows, "out_scales is [n]");
    }
}

/// How a sum comes about on a device: what the kernel does for it.
struct Way {
    partials: [DevicePtr; N_RANKS_MAX],
    exchange: Exchange,
    two_shot: Option<cuda::TwoShot>,
}

impl Way {
    /// A partial result in memory that all ranks reach is summed by the kernel itself, if it is not
    /// too large; another by NCCL before it. `places` are where the output and its scales go.
    fn of_sum(
        communicator: &mut Communicator,
        gpu: &Gpu,
        partial: DeviceView,
        places: [DevicePtr; 2],
    ) -> Result<Way, StepError> {
        let n_elements = partial.n_rows * partial.n_cols;
        let shared = gpu.shared.and_then(|all| Some((all, all.everywhere(partial.first)?)));
        if let Some((shared, partials)) = shared {
            let exchange = shared.exchange;
            match shared.carrier(n_elements * Element::Bf16.n_bytes()) {
                Carrier::OneShot => return Ok(Way { partials, exchange, two_shot: None }),
                Carrier::TwoShot => {
                    let [outs, scales] = places
                        .map(|mine| shared.everywhere(mine).expect("what steps write is shared"));
                    let two_shot = Some(cuda::TwoShot { outs, scales });
                    return Ok(Way { partials, exchange, two_shot });
                }
                Carrier::Nccl => {}
            }
        }
        let (address, element) = (partial.first.0, DeviceElement::Bf16);
        let slice = DeviceSlice { address, n_elements, element };
        let stream = gpu.exec.stream().for_collectives();
        gpu.laps.around(&gpu.exec, || Ok(communicator.all_reduce_sum_on_device(slice, stream)?))?;
        let mut partials = [DevicePtr::NULL; N_RANKS_MAX];
        partials[0] = partial.first;
        Ok(Way { partials, exchange: Exchange::ALONE, two_shot: None })
    }
}

#[cfg(test)]
mod tests;
