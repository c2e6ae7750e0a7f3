//! The sum over ranks bit for bit, normalisation against float64; quantization is the quantize
//! family's, applied to its result.

use weights::InputScale;

use parallel::Communicator;

use super::{Args, Pending, reduce_norm};
use crate::device::{Array, ArrayMut, Deferred, Exec, HostView, ViewMut};
use crate::kernels::testing::{
    ROUNDING, Rng, assert_close, assert_same_bits, e4m3_nearest, e4m3_value, everywhere, levels,
    on_exec,
};

const EPS: f32 = 1e-5;

/// Normalised values, then scales. All of the residual stream comes from the partial result.
fn run(exec: &mut Exec, x: HostView<'_>, weight: &[f32], input: InputScale) -> Vec<f32> {
    let partial: Vec<f32> = (0..x.n_rows()).flat_map(|t| x.row(t).to_vec()).collect();
    let pending = Pending { starts: true, scales: Deferred::Nothing };
    let residual = vec![f32::NAN; partial.len()];
    let mut step = Step { communicator: Communicator::Solo, pending, residual };
    step.run(exec, partial, weight, input)
}

struct Step {
    communicator: Communicator,
    pending: Pending,
    residual: Vec<f32>,
}

impl Step {
    fn run(
        &mut self,
        exec: &mut Exec,
        mut partial: Vec<f32>,
        weight: &[f32],
        input: InputScale,
    ) -> Vec<f32> {
        let (n_cols, n_tokens) = (weight.len(), partial.len() / weight.len());
        let mut out = vec![f32::NAN; partial.len()];
        let mut out_scales = vec![f32::NAN; n_tokens];
        let args = Args {
            communicator: &mut self.communicator,
            partial: ViewMut::new(&mut partial, n_tokens, n_cols),
            pending: self.pending,
            residual: ViewMut::new(&mut self.residual, n_tokens, n_cols),
            weight: Array::Host(weight),
            eps: EPS,
            rows: None,
            next: None,
            input,
            out: ViewMut::new(&mut out, n_tokens, n_cols),
            out_scales: ArrayMut::Host(&mut out_scales),
        };
        reduce_norm(exec, args).expect("it runs");
        out.extend(out_scales);
        out
    }
}

#[test]
fn the_residual_stream_grows_by_the_partial_result() {
    let mut rng = Rng::new(21);
    let (n_tokens, n_cols) = (3, 50);
    let numbers = |rng: &mut Rng| rng.numbers(n_tokens * n_cols);
    let (before, partial, weight) = (numbers(&mut rng), numbers(&mut rng), rng.numbers(n_cols));
    let sums: Vec<f32> = before.iter().zip(&partial).map(|(x, y)| x + y).collect();
    for level in levels() {
        let (residual, out) = on_exec(1, level, |exec| {
            let residual = before.clone();
            let pending = Pending::default();
            let mut step = Step { communicator: Communicator::Solo, pending, residual };
            let out = step.run(exec, partial.clone(), &weight, InputScale::None);
            (step.residual, out)
        });
        assert_same_bits(&residual, &sums, &format!("{level:?}"));
        let view = HostView::new(&sums, n_tokens, n_cols);
        let of_sums = on_exec(1, level, |exec| run(exec, view, &weight, InputScale::None));
        assert_same_bits(&out, &of_sums, &format!("{level:?}"));
    }
}

fn expected(x: &[f32], weight: &[f32]) -> Vec<(f64, f64)> {
    let n = weight.len();
    let bound = (n as f64 / 32.0 + 8.0) * ROUNDING;
    let row = |row: &[f32]| {
        let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        let root = (mean + f64::from(EPS)).sqrt();
        let values = row.iter().zip(weight).map(move |(&x, &w)| f64::from(x) / root * f64::from(w));
        values.map(|y| (y, bound * y.abs() + 1e-37)).collect::<Vec<_>>()
    };
    x.chunks_exact(n).flat_map(row).collect()
}

#[test]
fn values_are_within_the_bound() {
    let mut rng = Rng::new(3);
    for n_cols in [1, 15, 16, 17, 672, 5000] {
        for n_tokens in [1, 2, 33] {
            let mut x = rng.numbers(n_tokens * n_cols);
            let weight = rng.numbers(n_cols);
            if n_tokens == 2 {
                x[..n_cols].fill(0.0);
                x[n_cols] = f32::NAN;
            }
            let view = HostView::new(&x, n_tokens, n_cols);
            let mut expected = expected(&x, &weight);
            expected.extend(vec![(1.0, 0.0); n_tokens]);
            let what = format!("[{n_tokens}, {n_cols}]");
            for (level, out) in everywhere(&what, |exec| run(exec, view, &weight, InputScale::None))
            {
                assert_close(&out, &expected, &format!("{what}, {level:?}"));
            }
        }
    }
}

#[test]
fn quantization_follows_with_one_more_rounding() {
    let mut rng = Rng::new(4);
    let (n_tokens, n_cols) = (5, 130);
    let x = rng.numbers(n_tokens * n_cols);
    let weight = rng.numbers(n_cols);
    let view = HostView::new(&x, n_tokens, n_cols);
    for level in levels() {
        let of = |input| on_exec(1, level, |exec| run(exec, view, &weight, input));
        let plain = of(InputScale::None);
        for input in [InputScale::Static(0.01), InputScale::PerToken] {
            let out = of(input);
            let (values, scales) = out.split_at(n_tokens * n_cols);
            for (i, &value) in values.iter().enumerate() {
                let scaled = plain[i] / scales[i / n_cols];
                assert_eq!(f64::from(value), e4m3_value(e4m3_nearest(f64::from(scaled))));
            }
            if input == InputScale::PerToken {
                let reaches_448 = |row: &[f32]| row.iter().any(|y| y.abs() == 448.0);
                assert!(values.chunks_exact(n_cols).all(reaches_448), "{level:?}");
            }
        }
    }
}

#[test]
fn a_token_alone_has_the_same_bits() {
    let mut rng = Rng::new(5);
    let (n_tokens, n_cols) = (64, 1000);
    let x = rng.numbers(n_tokens * n_cols);
    let weight = rng.numbers(n_cols);
    for input in [InputScale::None, InputScale::PerToken] {
        let batch = HostView::new(&x, n_tokens, n_cols);
        for (level, out) in everywhere("batch", |exec| run(exec, batch, &weight, input)) {
            for t in 0..n_tokens {
                let alone = HostView::new(&x, n_tokens, n_cols).rows(t..t + 1);
                let alone = on_exec(1, level, |exec| run(exec, alone, &weight, input));
                assert_same_bits(
                    &out[t * n_cols..(t + 1) * n_cols],
                    &alone[..n_cols],
                    &format!("{level:?} token {t}"),
                );
                assert_eq!(out[n_tokens * n_cols + t], alone[n_cols]);
            }
        }
    }
}
