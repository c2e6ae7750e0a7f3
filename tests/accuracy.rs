//! The reasoning toggle works for real, and neither sharding nor quantization costs what it gives.

use engine::KvDtype;
use harness::accuracy::{Setup, accuracy, problems, serve};

/// The demo model's promise with thinking on; `tests/demo-model/README.md` says what it reached.
const ACCURACY_MIN: f64 = 0.97;

/// Between ranks and cache types, and from the model before quantization.
const DIFFERENCE_MAX: f64 = 0.01;

/// Measured by `tests/demo-model/evaluate.py` on the same problems, before quantization.
const PYTORCH_ACCURACY: f64 = 1.0;

#[test]
fn thinking_solves_what_answering_at_once_does_not() {
    let problems = problems();
    assert_eq!(problems.len(), 1000);
    let setup = |n_ranks, kv_dtype| Setup { n_ranks, kv_dtype };
    let first = serve(setup(1, KvDtype::Fp8));
    let on = accuracy(&first.client, &problems, true);
    let off = accuracy(&first.client, &problems, false);
    drop(first);
    println!("1 rank, FP8 cache: {on} with thinking, {off} without");
    assert!(on >= ACCURACY_MIN, "{on} of the problems are solved with thinking on");
    assert!(off < on - 0.3, "{off} without thinking against {on} with it");
    assert!((on - PYTORCH_ACCURACY).abs() <= DIFFERENCE_MAX, "{on} against {PYTORCH_ACCURACY}");
    for other in [setup(1, KvDtype::Bf16), setup(8, KvDtype::Fp8), setup(8, KvDtype::Bf16)] {
        let server = serve(other);
        let solved = accuracy(&server.client, &problems, true);
        println!("{other:?}: {solved}");
        assert!((solved - on).abs() <= DIFFERENCE_MAX, "{other:?}: {solved} against {on}");
    }
}
