//! Checkpoints written by an implementation of its own are opened, in every format and schema.

use std::fs;
use std::path::Path;

use weights::Checkpoint;

/// Cases that the folder must hold at least, so that an empty one does not pass.
const N_CASES_MIN: usize = 10;

#[test]
fn every_golden_checkpoint_opens_and_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut n_cases = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("config.json").exists() {
            continue;
        }
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rank = checkpoint.load_rank(0, 1).unwrap();
        let n_present = checkpoint.spec().blocks.iter().filter(|b| !b.is_empty()).count();
        assert_eq!(rank.blocks.len(), n_present, "{name}");
        assert_eq!(checkpoint.quantization().scheme.is_some(), name.contains("fp8"), "{name}");
        assert_eq!(checkpoint.has_kv_scales(), name == "modelopt-fp8", "{name}");
        n_cases += 1;
    }
    assert!(n_cases >= N_CASES_MIN, "{n_cases} cases");
}
