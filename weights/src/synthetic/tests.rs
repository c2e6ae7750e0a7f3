//! What the writer promises: any spec round-trips, values depend on seed and name alone, formats
//! agree, and the tokenizer covers the vocabulary.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::dtype::{decode, e4m3_to_f32};
use crate::loaded::{LinearWeights, WeightScale};
use crate::presets::{preset, preset_names};
use crate::{Checkpoint, FfnWeights, MixerWeights};

struct Written {
    dir: PathBuf,
}

impl Written {
    fn new(name: &str, config: &SyntheticConfig) -> Written {
        let dir = std::env::temp_dir().join(format!("synthetic-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        write_synthetic(&dir, config, &mut |_, _| {}).unwrap();
        Written { dir }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.dir).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join(name)).unwrap()).unwrap()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn tiny(format: SyntheticFormat, n_shards: usize) -> SyntheticConfig {
    SyntheticConfig { spec: preset("tiny").unwrap(), format, n_shards, seed: 7 }
}

fn bytes_by_name(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let bytes = |tensor: &crate::TensorInfo| {
        let end = tensor.offset + tensor.n_bytes as usize;
        (tensor.name.clone(), tensor.bytes.as_slice()[tensor.offset..end].to_vec())
    };
    checkpoint.tensors().map(bytes).collect()
}

/// The weights that a projection stands for.
fn effective(linear: &LinearWeights) -> Vec<f32> {
    let mut all = Vec::new();
    for row_idx in 0..linear.matrix.n_rows {
        let mut row = vec![0.0; linear.matrix.n_cols];
        decode(linear.matrix.dtype, linear.matrix.row(row_idx), &mut row);
        let scale = match &linear.scale {
            WeightScale::One => 1.0,
            WeightScale::PerTensor(scale) => *scale,
            WeightScale::PerRow(scales) => scales[row_idx],
        };
        all.extend(row.iter().map(|value| value * scale));
    }
    all
}

fn up_and_q(format: SyntheticFormat) -> [Vec<f32>; 2] {
    let written = Written::new(&format!("effective-{format:?}"), &tiny(format, 1));
    let rank = written.checkpoint().load_rank(0, 1).unwrap();
    let Some(FfnWeights::SwiGlu(swiglu)) = &rank.blocks[0].ffn else { panic!() };
    let Some(MixerWeights::Attention(attention)) = &rank.blocks[0].mixer else { panic!() };
    [effective(&swiglu.up), effective(&attention.q)]
}

#[test]
fn every_preset_round_trips_through_its_configuration() {
    for name in preset_names() {
        for format in [SyntheticFormat::Bf16, SyntheticFormat::Fp8Dynamic] {
            let mut spec = preset(name).unwrap();
            for ties_embeddings in [false, true] {
                spec.ties_embeddings = ties_embeddings;
                let text = config_json::config(&spec, format);
                assert_eq!(ModelSpec::from_config_json(&text).unwrap(), spec, "{name}");
            }
        }
    }
}

#[test]
fn values_depend_on_seed_and_name_alone() {
    for format in [SyntheticFormat::Bf16, SyntheticFormat::ModelOptFp8, SyntheticFormat::Fp8Dynamic]
    {
        let one = Written::new(&format!("one-{format:?}"), &tiny(format, 1));
        let five = Written::new(&format!("five-{format:?}"), &tiny(format, 5));
        let values = bytes_by_name(&one.checkpoint());
        assert_eq!(values, bytes_by_name(&five.checkpoint()), "{format:?}");
        let shards: BTreeSet<_> =
            five.checkpoint().tensors().map(|tensor| tensor.shard.to_string()).collect();
        assert_eq!(shards.len(), 5, "{format:?}");

        let config = SyntheticConfig { seed: 8, ..tiny(format, 1) };
        let other = Written::new(&format!("other-{format:?}"), &config);
        let other = bytes_by_name(&other.checkpoint());
        assert_ne!(
            values["model.layers.0.mlp.up_proj.weight"],
            other["model.layers.0.mlp.up_proj.weight"]
        );
    }
}

#[test]
fn every_format_stands_for_the_same_weights() {
    let exact = up_and_q(SyntheticFormat::F32);
    for (format, tolerance) in [
        (SyntheticFormat::F16, 1.0 / 2048.0),
        (SyntheticFormat::Bf16, 1.0 / 256.0),
        // Half a step of three mantissa bits, a little more where the scale itself was rounded; and
        // below the smallest normal value, half a subnormal step of the tensor's largest value.
        (SyntheticFormat::ModelOptFp8, 1.0 / 15.0),
        (SyntheticFormat::Fp8Dynamic, 1.0 / 15.0),
    ] {
        for (exact, rounded) in exact.iter().zip(up_and_q(format)) {
            let largest = exact.iter().fold(0f32, |max, value| max.max(value.abs()));
            assert_eq!(exact.len(), rounded.len());
            for (a, b) in exact.iter().zip(&rounded) {
                let bound = tolerance * a.abs() + largest / 448.0 / 512.0;
                assert!((a - b).abs() <= bound, "{format:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn weights_have_the_deviation_that_keeps_activations_sane() {
    let [up, q] = up_and_q(SyntheticFormat::F32);
    for (values, n_cols) in [(up, 64), (q, 64)] {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        let relative = square.sqrt() * f64::from(n_cols).sqrt();
        assert!((0.7..1.4).contains(&relative), "{relative}");
        assert!(mean.abs() < 0.05 * square.sqrt(), "{mean}");
    }
}

/// e4m3 elements fill the format's range, and none is NaN.
#[test]
fn fp8_elements_use_their_range() {
    for format in [SyntheticFormat::ModelOptFp8, SyntheticFormat::Fp8Dynamic] {
        let written = Written::new(&format!("range-{format:?}"), &tiny(format, 1));
        let values = bytes_by_name(&written.checkpoint());
        let elements = values["model.layers.0.mlp.up_proj.weight"].iter().map(|&b| e4m3_to_f32(b));
        let largest = elements.fold(0f32, |max, value| {
            assert!(!value.is_nan());
            max.max(value.abs())
        });
        assert!(largest >= 416.0, "{format:?}: {largest}");
    }
}

#[test]
fn progress_ends_at_the_total_and_counts_are_the_checkpoints() {
    for format in [SyntheticFormat::F16, SyntheticFormat::ModelOptFp8, SyntheticFormat::Fp8Dynamic]
    {
        let config = tiny(format, 3);
        let written = Written::new(&format!("counts-{format:?}"), &config);
        let checkpoint = written.checkpoint();
        let n_bytes: u64 = checkpoint.tensors().map(|tensor| tensor.n_bytes).sum();
        assert_eq!(config.n_bytes(), n_bytes, "{format:?}");
        for (rank_idx, n_ranks) in [(0, 1), (3, 4), (7, 8)] {
            let planned = config.rank_bytes(rank_idx, n_ranks).unwrap();
            let loaded = checkpoint.rank_bytes(rank_idx, n_ranks).unwrap();
            assert_eq!(planned, loaded, "{format:?} {rank_idx} {n_ranks}");
        }
        let dir = written.dir.join("again");
        let mut seen = Vec::new();
        write_synthetic(&dir, &config, &mut |done, total| seen.push((done, total))).unwrap();
        assert_eq!(seen.last(), Some(&(n_bytes, n_bytes)));
        assert!(seen.is_sorted());
    }
}

/// Published sizes of LN-Ultra at eight ranks, from the plan alone.
#[test]
fn the_plan_of_ultra_is_known_without_writing_it() {
    let spec = preset("ultra-253b").unwrap();
    let config =
        SyntheticConfig { spec, format: SyntheticFormat::ModelOptFp8, n_shards: 64, seed: 0 };
    let bytes = config.rank_bytes(0, 8).unwrap();
    assert_eq!(bytes.attention + bytes.ffn, 249_196_183_552 / 8);
    assert_eq!(bytes.embedding, 128_256 / 8 * 16_384 * 2);
    // 507 linears, two scales each, and two for each of 64 caches.
    assert_eq!(bytes.scales, 4 * (2 * (4 * 64 + 3 * 81) + 2 * 64));
}

#[test]
fn a_checkpoint_is_not_overwritten() {
    let config = tiny(SyntheticFormat::Bf16, 1);
    let written = Written::new("overwrite", &config);
    let error = write_synthetic(&written.dir, &config, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("already holds a config.json"), "{error}");
}

#[test]
fn one_that_is_ended_or_fails_leaves_nothing_behind() {
    let config = tiny(SyntheticFormat::ModelOptFp8, 3);
    let written = Written::new("ended", &config);
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<BTreeSet<_>>()
    };
    let before = names(&written.dir);
    let (outer, theirs) = (written.dir.join("new"), written.dir.join("theirs"));
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("note"), "theirs").unwrap();
    for is_sparse in [false, true] {
        let mut n_calls_in_all = 0;
        let mut count = |_, _| {
            n_calls_in_all += 1;
            ControlFlow::Continue(())
        };
        write_until(&written.dir.join("whole"), &config, is_sparse, &mut count).unwrap();
        fs::remove_dir_all(written.dir.join("whole")).unwrap();
        for n_calls_max in [1, n_calls_in_all / 2, n_calls_in_all] {
            for dir in [outer.join("inner"), theirs.clone()] {
                let mut n_calls = 0;
                let ended = write_until(&dir, &config, is_sparse, &mut |_, _| {
                    n_calls += 1;
                    assert!(fs::exists(dir.join("model-00001-of-00003.safetensors")).unwrap());
                    match n_calls == n_calls_max {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                });
                assert!(matches!(ended, Err(LoadError::Interrupted)), "{ended:?}");
                assert_eq!(n_calls, n_calls_max);
            }
            assert!(!outer.exists(), "neither the folder nor the one around it");
            assert_eq!(names(&theirs), BTreeSet::from(["note".into()]));
        }
    }
    // The last file cannot be written: its name is a folder's.
    fs::create_dir(theirs.join("tokenizer.json")).unwrap();
    let second = "model-00002-of-00003.safetensors";
    fs::write(theirs.join(second), "theirs too").unwrap();
    let error = write_synthetic(&theirs, &config, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    let kept = ["note", "tokenizer.json", second].map(Into::into);
    assert_eq!(names(&theirs), BTreeSet::from(kept));
    fs::remove_dir_all(&theirs).unwrap();
    assert_eq!(names(&written.dir), before);
}

#[test]
fn the_tokenizer_has_a_token_for_every_id() {
    for name in ["tiny", "bench-0.6b", "nano-8b"] {
        let spec = preset(name).unwrap();
        let files: BTreeMap<_, _> = tokenizer::files(&spec).into_iter().collect();
        let root: Value = serde_json::from_str(&files["tokenizer.json"]).unwrap();
        let vocab = root["model"]["vocab"].as_object().unwrap();
        let ids: BTreeSet<u64> = vocab.values().map(|id| id.as_u64().unwrap()).collect();
        assert_eq!(ids.len(), vocab.len(), "{name}");
        assert_eq!(ids.len(), spec.vocab_size, "{name}");
        assert_eq!(ids.last(), Some(&(spec.vocab_size as u64 - 1)), "{name}");
        let bos = u64::from(spec.bos_token.unwrap());
        assert_eq!(vocab["<|begin_of_text|>"].as_u64(), Some(bos), "{name}");
        let eos = u64::from(*spec.eos_tokens.last().unwrap());
        assert_eq!(vocab["<|eot_id|>"].as_u64(), Some(eos), "{name}");
        for token in root["added_tokens"].as_array().unwrap() {
            assert_eq!(vocab[token["content"].as_str().unwrap()], token["id"], "{name}");
        }
        // The byte alphabet: printable bytes stand for themselves, the space is U+0120.
        for token in ["!", "~", "\u{a1}", "\u{ff}", "\u{100}", "\u{120}", "\u{143}"] {
            assert!(vocab.contains_key(token), "{name} {token}");
        }
    }
}

#[test]
fn a_small_vocabulary_gets_no_tokenizer() {
    let mut config = tiny(SyntheticFormat::Bf16, 1);
    config.spec.vocab_size = 299;
    let written = Written::new("small", &config);
    assert!(written.checkpoint().file("tokenizer.json").unwrap().is_none());
    assert_eq!(written.json("config.json")["vocab_size"], 299);
}
