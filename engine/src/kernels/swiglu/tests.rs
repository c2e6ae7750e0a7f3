//! Activation against float64, over the whole range of the exponential.

use weights::InputScale;

use super::{Args, Magnitudes, swiglu};
use crate::device::{ArrayMut, Deferred, Exec, View, ViewMut};
use crate::kernels::testing::{
    ROUNDING, Rng, assert_close, assert_same_bits, everywhere, levels, on_exec,
};

/// Activations, then scales.
fn run(exec: &mut Exec, gate_up: View<'_>, input: InputScale) -> Vec<f32> {
    let (n_tokens, width) = (gate_up.n_rows(), gate_up.n_cols() / 2);
    let mut out = vec![f32::NAN; n_tokens * width];
    let mut out_scales = vec![f32::NAN; n_tokens];
    let view = ViewMut::new(&mut out, n_tokens, width);
    let out_scales_view = ArrayMut::Host(&mut out_scales);
    let scales = Deferred::Nothing;
    let magnitudes = Magnitudes::Unknown;
    let args = Args { gate_up, scales, input, magnitudes, out: view, out_scales: out_scales_view };
    swiglu(exec, args).expect("it runs");
    out.extend(out_scales);
    out
}

fn expected(gate_up: &[f32], width: usize) -> Vec<(f64, f64)> {
    let value = |gate: f32, up: f32| {
        let gate = f64::from(gate);
        let y = gate / (1.0 + (-gate).exp()) * f64::from(up);
        // Three roundings and the exponential's three units; what is subnormal may be lost.
        (y, 10.0 * ROUNDING * y.abs() + 1e-36 * f64::from(up).abs())
    };
    let row = |row: &[f32]| {
        let (gate, up) = row.split_at(width);
        gate.iter().zip(up).map(|(&gate, &up)| value(gate, up)).collect::<Vec<_>>()
    };
    gate_up.chunks_exact(2 * width).flat_map(row).collect()
}

#[test]
fn values_are_within_the_bound() {
    let mut rng = Rng::new(6);
    for width in [1, 15, 16, 17, 672, 3000] {
        for n_tokens in [1, 3, 33] {
            let numbers = rng.numbers(n_tokens * 2 * width);
            let gate_up: Vec<f32> = numbers.iter().map(|x| x * 120.0).collect();
            let view = View::new(&gate_up, n_tokens, 2 * width);
            let mut expected = expected(&gate_up, width);
            expected.extend(vec![(1.0, 0.0); n_tokens]);
            let what = format!("[{n_tokens}, 2 * {width}]");
            for (level, out) in everywhere(&what, |exec| run(exec, view, InputScale::None)) {
                assert_close(&out, &expected, &format!("{what}, {level:?}"));
            }
        }
    }
}

#[test]
fn extremes_stay_numbers_and_nan_stays_nan() {
    let gate_up = [200.0, -200.0, f32::NAN, 1.0, -0.0, 2.0, 3.0, 4.0, f32::NAN, 5.0];
    let view = View::new(&gate_up, 1, 10);
    for level in levels() {
        let out = on_exec(1, level, |exec| run(exec, view, InputScale::None));
        assert_eq!(out[0], 400.0, "{level:?}");
        assert!(out[1].abs() < 1e-36, "{level:?}: {}", out[1]);
        assert!(out[2].is_nan() && out[3].is_nan(), "{level:?}: {out:?}");
        assert_eq!(out[4], 0.0, "{level:?}");
    }
}

#[test]
fn a_token_alone_has_the_same_bits() {
    let mut rng = Rng::new(7);
    let (n_tokens, width) = (40, 1001);
    let gate_up = rng.numbers(n_tokens * 2 * width);
    for input in [InputScale::None, InputScale::Static(0.003)] {
        let batch = View::new(&gate_up, n_tokens, 2 * width);
        for (level, out) in everywhere("batch", |exec| run(exec, batch, input)) {
            for t in 0..n_tokens {
                let alone = on_exec(1, level, |exec| run(exec, batch.rows(t..t + 1), input));
                let what = format!("{level:?} token {t}");
                assert_same_bits(&out[t * width..(t + 1) * width], &alone[..width], &what);
                assert_eq!(out[n_tokens * width + t], alone[width], "{what}");
            }
        }
    }
}
