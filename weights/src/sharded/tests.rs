//! What is cut is what would have been cut from the original, and what is wrong is told.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::presets::preset;
use crate::synthetic::{SyntheticConfig, SyntheticFormat, write_sparse, write_synthetic};
use crate::verify::Survey;
use crate::{Matrix, MixerWeights, RankWeights};

/// A folder of a test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = env::temp_dir().join(format!("lnserve-sharded-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    fn original(&self, format: SyntheticFormat, is_sparse: bool) -> Checkpoint {
        let (dir, spec) = (self.0.join("original"), preset("tiny").unwrap());
        let config = SyntheticConfig { spec, format, n_shards: 3, seed: 5 };
        let write = if is_sparse { write_sparse } else { write_synthetic };
        write(&dir, &config, &mut |_, _| {}).unwrap();
        Checkpoint::open(&dir).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn cut(checkpoint: &Checkpoint, out: &Path, n_ranks: usize) -> Result<(), LoadError> {
    write_sharded(checkpoint, out, n_ranks, &mut |_, _| ControlFlow::Continue(()))
}

fn rows(matrix: &Matrix) -> Vec<&[u8]> {
    (0..matrix.n_rows).map(|row_idx| matrix.row(row_idx)).collect()
}

/// Everything that a rank is given, in words that do not tell where it lies.
fn contents(weights: &RankWeights) -> Vec<String> {
    let mut all = vec![format!("{:?} {:?}", rows(&weights.embedding), weights.final_norm)];
    for block in &weights.blocks {
        if let Some(MixerWeights::Attention(attention)) = &block.mixer {
            for linear in [&attention.q, &attention.k, &attention.v, &attention.o] {
                all.push(format!("{:?} {:?}", rows(&linear.matrix), (&linear.scale, linear.input)));
            }
            all.push(format!("{:?} {:?}", attention.norm, (attention.k_scale, attention.v_scale)));
        }
        let projections = match &block.ffn {
            Some(crate::FfnWeights::SwiGlu(ffn)) => vec![&ffn.gate, &ffn.up, &ffn.down],
            Some(crate::FfnWeights::Linear(linear)) => vec![&linear.projection],
            None => vec![],
        };
        let of = |linear: &&crate::LinearWeights| format!("{:?}", rows(&linear.matrix));
        all.extend(projections.iter().map(of));
    }
    all
}

#[test]
fn every_rank_is_given_what_it_would_be_given_of_the_original() {
    for (format, n_ranks) in [
        (SyntheticFormat::ModelOptFp8, 1),
        (SyntheticFormat::Fp8Dynamic, 2),
        // More ranks than key/value heads.
        (SyntheticFormat::Bf16, 8),
    ] {
        let folder = Folder::new(&format!("same-{n_ranks}"));
        let original = folder.original(format, false);
        fs::create_dir(folder.0.join("original/.cache")).unwrap();
        let out = folder.0.join("cut");
        cut(&original, &out, n_ranks).unwrap();
        let n_bytes: u64 = original.tensors().map(|tensor| tensor.n_bytes).sum();
        let n_scale_bytes: u64 = original
            .tensors()
            .filter(|tensor| tensor.name.ends_with("_scale"))
            .map(|tensor| tensor.n_bytes)
            .sum();
        // Scales were read when it was opened.
        assert_eq!(original.n_bytes_read(), n_bytes + n_scale_bytes, "no byte twice");
        let found = Checkpoint::open(&out).unwrap();
        assert_eq!(found.spec(), original.spec());
        assert_eq!((original.n_ranks(), found.n_ranks()), (None, Some(n_ranks)));
        for rank_idx in 0..n_ranks {
            let [expected, found] =
                [&original, &found].map(|of| of.load_rank(rank_idx, n_ranks).unwrap());
            assert_eq!(contents(&expected), contents(&found), "rank {rank_idx} of {n_ranks}");
            assert!(found.blocks.iter().all(|block| match &block.mixer {
                Some(MixerWeights::Attention(attention)) => attention.o.matrix.is_contiguous(),
                _ => true,
            }));
        }
        let survey = Survey::open(&out);
        assert!(survey.problems.is_empty(), "{:?}", survey.problems);
        assert_eq!(survey.n_checksums(), survey.tensors.len(), "each has its own");
        let found: Vec<_> =
            survey.tensors.iter().filter_map(|tensor| survey.check_tensor(tensor)).collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn a_changed_byte_is_found_by_its_tensors_checksum() {
    let folder = Folder::new("changed");
    let out = folder.0.join("cut");
    cut(&folder.original(SyntheticFormat::ModelOptFp8, false), &out, 2).unwrap();
    let path = out.join("rank-00002-of-00002.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    let survey = Survey::open(&out);
    let found: Vec<_> =
        survey.tensors.iter().filter_map(|tensor| survey.check_tensor(tensor)).collect();
    let [problem] = found.as_slice() else { panic!("one byte: {found:?}") };
    assert_eq!(problem.shard.as_deref(), Some("rank-00002-of-00002.safetensors"));
    let said = problem.error.to_string();
    assert!(said.contains("lm_head.weight") && said.contains("lnserve-shards.json says"), "{said}");
}

#[test]
fn holes_stay_holes() {
    let folder = Folder::new("sparse");
    // Large enough that a hole is worth its name.
    let (dir, spec) = (folder.0.join("original"), preset("bench-0.6b").unwrap());
    let format = SyntheticFormat::ModelOptFp8;
    let config = SyntheticConfig { spec, format, n_shards: 1, seed: 5 };
    write_sparse(&dir, &config, &mut |_, _| {}).unwrap();
    let out = folder.0.join("cut");
    cut(&Checkpoint::open(&dir).unwrap(), &out, 2).unwrap();
    let rank = fs::metadata(out.join("rank-00001-of-00002.safetensors")).unwrap();
    let n_taken = std::os::unix::fs::MetadataExt::blocks(&rank) * 512;
    assert!(rank.len() > 300 << 20 && n_taken < 1 << 20, "{n_taken} of {}", rank.len());
    let survey = Survey::open(&out);
    assert!(survey.problems.is_empty(), "{:?}", survey.problems);
    let n_zero = survey.tensors.iter().filter(|tensor| tensor.checksum.as_deref() == Some(ZERO));
    assert!(n_zero.count() > 50);
    assert!(survey.tensors.iter().all(|tensor| survey.check_tensor(tensor).is_none()));
}

#[test]
fn what_cannot_be_cut_is_said_and_nothing_is_left_behind() {
    let folder = Folder::new("refused");
    let original = folder.original(SyntheticFormat::Bf16, false);
    let out = folder.0.join("cut");
    let said = cut(&original, &out, 3).unwrap_err().to_string();
    assert!(said.contains("3 ranks cannot share evenly"), "{said}");
    let mut n_calls = 0;
    let interrupted = write_sharded(&original, &out, 2, &mut |n_done, n_total| {
        n_calls += 1;
        assert!(n_done <= n_total);
        if n_calls == 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(interrupted, Err(LoadError::Interrupted)));
    assert_eq!((folder.names(), n_calls), (vec!["original".to_owned()], 20));
    cut(&original, &out, 2).unwrap();
    let said = cut(&original, &out, 2).unwrap_err().to_string();
    assert!(said.contains("cut is already there"), "{said}");
    let found = Checkpoint::open(&out).unwrap();
    let said = found.load_rank(0, 4).unwrap_err().to_string();
    assert!(said.contains("cut for 2 ranks, not for 4: choose --tp 2"), "{said}");
    let said = cut(&found, &folder.0.join("again"), 2).unwrap_err().to_string();
    assert!(said.contains("already cut, for 2 ranks"), "{said}");
    assert_eq!(folder.names().len(), 2, "{:?}", folder.names());
}

#[test]
fn files_that_do_not_belong_together_are_told() {
    let folder = Folder::new("mixed");
    let original = folder.original(SyntheticFormat::Bf16, false);
    let [two, four] = [2, 4].map(|n_ranks| {
        let out = folder.0.join(format!("cut-{n_ranks}"));
        cut(&original, &out, n_ranks).unwrap();
        out
    });
    let of_two = two.join("rank-00001-of-00002.safetensors");
    fs::copy(four.join("rank-00001-of-00004.safetensors"), &of_two).unwrap();
    let said = Checkpoint::open(&two).unwrap_err().to_string();
    assert!(said.contains("rank-00001-of-00002.safetensors has shape"), "{said}");
    fs::remove_file(&of_two).unwrap();
    let said = Checkpoint::open(&two).unwrap_err().to_string();
    assert!(said.contains("no rank-00001-of-00002.safetensors"), "{said}");
    for (text, expected) in [
        ("{}", "missing field `version`"),
        (r#"{"version": 2, "n_ranks": 1, "common": {}, "sharded": {}}"#, "`version` is 2"),
        (r#"{"version": 1, "n_ranks": 65, "common": {}, "sharded": {}}"#, "`n_ranks` is 65"),
        (
            r#"{"version": 1, "n_ranks": 2, "common": {},
                "sharded": {"a": {"shape": [1], "sha256": ["zero"]}}}"#,
            "`sharded.a.sha256` is 1 long, expected 2",
        ),
    ] {
        let said = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}
