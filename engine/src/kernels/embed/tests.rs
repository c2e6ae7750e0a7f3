//! Exact: a copy.

use scheduler::TokenId;
use weights::Dtype;

use super::{Args, embed};
use crate::device::{Array, DevicePtr, Table, ViewMut};
use crate::kernels::testing::{Rng, StoredMatrix, everywhere};

#[test]
fn rows_are_copied_and_strangers_are_zero() {
    let mut rng = Rng::new(1);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4m3] {
        for (n_entries, hidden) in [(1, 1), (5, 15), (4, 16), (7, 17), (300, 672)] {
            let table = StoredMatrix::new(dtype, hidden, &rng.numbers(n_entries * hidden));
            let vocab_begin = 10;
            let mut tokens: Vec<_> =
                (0..33).map(|_| TokenId(10 + rng.below(n_entries) as u32)).collect();
            tokens[0] = TokenId(9);
            tokens[32] = TokenId(10 + n_entries as u32);
            let what = format!("{dtype:?} [{n_entries}, {hidden}]");
            let run = |exec: &mut _| {
                let mut out = vec![f32::NAN; tokens.len() * hidden];
                let view = ViewMut::new(&mut out, tokens.len(), hidden);
                let args = Args {
                    tokens: Array::Host(&tokens),
                    table: &Table::Host(table.matrix.clone()),
                    vocab_begin,
                    last_tokens: DevicePtr::NULL,
                    out: view,
                };
                embed(exec, args).expect("it runs");
                out
            };
            for (level, out) in everywhere(&what, run) {
                for (token, row) in tokens.iter().zip(out.chunks_exact(hidden)) {
                    let entry = token.idx().wrapping_sub(vocab_begin);
                    for (i, &x) in row.iter().enumerate() {
                        let is_here = entry < n_entries;
                        let expected = if is_here { table.values[entry * hidden + i] } else { 0.0 };
                        assert_eq!(f64::from(x), expected, "{what}, {level:?}, {token:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn nan_entries_stay_nan() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4m3] {
        let table = StoredMatrix::new(dtype, 3, &[1.0, f32::NAN, -2.0]);
        let run = |exec: &mut _| {
            let mut out = vec![0.0; 3];
            let view = ViewMut::new(&mut out, 1, 3);
            let args = Args {
                tokens: Array::Host(&[TokenId(0)]),
                table: &Table::Host(table.matrix.clone()),
                vocab_begin: 0,
                last_tokens: DevicePtr::NULL,
                out: view,
            };
            embed(exec, args).expect("it runs");
            out
        };
        for (level, out) in everywhere("NaN", run) {
            assert!(
                out[0] == 1.0 && out[1].is_nan() && out[2] == -2.0,
                "{dtype:?} {level:?} {out:?}"
            );
        }
    }
}
