//! Normalisation against float64; quantization is the quantize family's, applied to its result.

use weights::InputScale;

use super::{Args, rmsnorm};
use crate::device::{Exec, View, ViewMut};
use crate::kernels::testing::{
    ROUNDING, Rng, assert_close, assert_same_bits, e4m3_nearest, e4m3_value, everywhere, levels,
    on_exec,
};

const EPS: f32 = 1e-5;

/// Normalised values, then scales.
fn run(exec: &mut Exec, x: View<'_>, weight: &[f32], input: InputScale) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.n_rows() * x.n_cols()];
    let mut out_scales = vec![f32::NAN; x.n_rows()];
    let args = Args {
        x,
        weight,
        eps: EPS,
        input,
        out: ViewMut::new(&mut out, x.n_rows(), x.n_cols()),
        out_scales: &mut out_scales,
    };
    rmsnorm(exec, args).expect("it runs");
    out.extend(out_scales);
    out
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
            let view = View::new(&x, n_tokens, n_cols);
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
    let view = View::new(&x, n_tokens, n_cols);
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
        let batch = View::new(&x, n_tokens, n_cols);
        for (level, out) in everywhere("batch", |exec| run(exec, batch, &weight, input)) {
            for t in 0..n_tokens {
                let alone = View::new(&x, n_tokens, n_cols).rows(t..t + 1);
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
