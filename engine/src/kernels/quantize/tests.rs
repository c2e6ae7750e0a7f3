//! Exact: a division and one rounding, both defined.

use weights::InputScale;

use super::{Args, Magnitudes, quantize};
use crate::device::{ArrayMut, Exec, ViewMut};
use crate::kernels::testing::{
    Rng, assert_same_bits, e4m3_nearest, e4m3_value, everywhere, levels, on_exec,
};

/// Quantized values, then scales.
fn run(exec: &mut Exec, x: &[f32], n_cols: usize, input: InputScale) -> Vec<f32> {
    let mut x = x.to_vec();
    let n_rows = x.len() / n_cols;
    let mut scales = vec![f32::NAN; n_rows];
    let view = ViewMut::new(&mut x, n_rows, n_cols);
    let args = Args {
        x: view,
        out: None,
        input,
        magnitudes: Magnitudes::Unknown,
        scales: ArrayMut::Host(&mut scales),
    };
    quantize(exec, args).expect("it runs");
    x.extend(scales);
    x
}

fn expected(x: &[f32], n_cols: usize, input: InputScale) -> Vec<f32> {
    let scale_of = |row: &[f32]| match input {
        InputScale::None => 1.0,
        InputScale::Static(scale) => scale,
        InputScale::PerToken => {
            let numbers = row.iter().filter(|x| !x.is_nan());
            let greatest = numbers.fold(0.0, |greatest: f32, x| greatest.max(x.abs()));
            if greatest == 0.0 { 1.0 } else { greatest / 448.0 }
        }
    };
    let value = move |x: f32, scale: f32| match input {
        InputScale::None => x,
        _ => e4m3_value(e4m3_nearest(f64::from(x / scale))) as f32,
    };
    let rows = x.chunks_exact(n_cols).map(|row| (row, scale_of(row)));
    let values = rows.clone().flat_map(|(row, scale)| row.iter().map(move |&x| value(x, scale)));
    values.chain(rows.map(|(_, scale)| scale)).collect()
}

#[test]
fn every_row_is_rounded_as_defined() {
    let mut rng = Rng::new(2);
    for n_cols in [1, 15, 16, 17, 672, 4096] {
        for n_rows in [1, 3, 33] {
            let mut x = rng.numbers(n_rows * n_cols);
            x[0] = f32::NAN;
            let last = x.len() - 1;
            x[last] = -1e30;
            if n_rows == 3 {
                x[n_cols..2 * n_cols].fill(0.0);
            }
            for input in [InputScale::None, InputScale::Static(0.0173), InputScale::PerToken] {
                let what = format!("[{n_rows}, {n_cols}] {input:?}");
                let expected = expected(&x, n_cols, input);
                for (level, out) in everywhere(&what, |exec| run(exec, &x, n_cols, input)) {
                    assert_same_bits(&out, &expected, &format!("{what}, {level:?}"));
                }
            }
        }
    }
}

#[test]
fn a_row_too_small_for_a_scale_becomes_zero() {
    for level in levels() {
        let x = [1e-44, 0.0, -1e-45];
        let out = on_exec(1, level, |exec| run(exec, &x, 3, InputScale::PerToken));
        assert_eq!(out, [0.0, 0.0, 0.0, 1.0], "{level:?}");
    }
}

#[test]
fn infinities_saturate_under_a_static_scale() {
    for level in levels() {
        let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 448.1];
        let out = on_exec(1, level, |exec| run(exec, &x, 4, InputScale::Static(1.0)));
        assert_same_bits(&out, &[448.0, -448.0, f32::NAN, 448.0, 1.0], &format!("{level:?}"));
    }
}
