//! Checkpoints whose scales are wrong in one way each: opening them fails, and the message says
//! where.

use crate::common::{StoredTensor, TestDir, find};
use crate::malformed::check_refused;
use serde_json::json;
use weights::synthetic::SyntheticFormat;
use weights::verify::Survey;
use weights::{
    AttentionWeights, BlockWeights, Dtype, FfnWeights, InputScale, LinearWeights, MixerWeights,
    SwiGluWeights,
};

const SINGLE: &str = "model.safetensors";

/// A tiny ModelOpt checkpoint with one value of one scale replaced.
fn with_scale(name: &str, value: f32) -> TestDir {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard(SINGLE, |tensors| {
        find(tensors, name).bytes = value.to_le_bytes().to_vec();
    });
    dir
}

#[test]
fn a_missing_scale() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    let name = "model.layers.0.self_attn.q_proj.input_scale";
    dir.edit_shard(SINGLE, |tensors| tensors.retain(|tensor| tensor.name != name));
    check_refused(&dir, &[name, "is missing"]);
}

#[test]
fn one_missing_cache_scale() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard(SINGLE, |tensors| {
        tensors.retain(|tensor| {
            !tensor.name.starts_with("model.layers.3") || !tensor.name.ends_with("k_scale")
        });
    });
    check_refused(&dir, &["model.layers.3.self_attn.k_proj.k_scale", "is missing"]);
}

#[test]
fn cache_scales_of_one_block_missing() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard(SINGLE, |tensors| {
        tensors.retain(|tensor| {
            let is_cache_scale =
                tensor.name.ends_with(".k_scale") || tensor.name.ends_with(".v_scale");
            !tensor.name.starts_with("model.layers.5") || !is_cache_scale
        });
    });
    check_refused(&dir, &["model.layers.5.self_attn.k_proj.k_scale", "is missing"]);
}

#[test]
fn cache_scales_under_two_names() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard(SINGLE, |tensors| {
        let scale = StoredTensor {
            name: "model.layers.3.self_attn.kv_scale".to_owned(),
            dtype: "F32".to_owned(),
            shape: vec![1],
            bytes: 1f32.to_le_bytes().to_vec(),
        };
        tensors.push(scale);
    });
    check_refused(&dir, &["model.layers.3.self_attn's key and value scales", "kv_scale"]);
}

#[test]
fn a_misshapen_scale() {
    let dir = TestDir::tiny(SyntheticFormat::Fp8Dynamic, 1);
    let name = "model.layers.1.mlp.up_proj.weight_scale";
    dir.edit_shard(SINGLE, |tensors| find(tensors, name).shape = vec![1, 160]);
    check_refused(&dir, &[name, "shape [1, 160], expected [160, 1]"]);
}

#[test]
fn a_scale_that_is_nan() {
    let name = "model.layers.1.mlp.up_proj.weight_scale";
    check_refused(&with_scale(name, f32::NAN), &[name, "is NaN", "positive finite"]);
}

#[test]
fn a_scale_that_is_infinite() {
    let name = "model.layers.1.mlp.up_proj.input_scale";
    check_refused(&with_scale(name, f32::INFINITY), &[name, "is inf"]);
}

#[test]
fn a_scale_that_is_zero() {
    let name = "model.layers.3.self_attn.k_proj.k_scale";
    check_refused(&with_scale(name, 0.0), &[name, "is 0"]);
}

#[test]
fn a_scale_that_is_negative() {
    let name = "model.layers.3.self_attn.v_proj.v_scale";
    check_refused(&with_scale(name, -1.0), &[name, "is -1"]);
}

#[test]
fn a_row_scale_that_is_nan() {
    let dir = TestDir::tiny(SyntheticFormat::Fp8Dynamic, 1);
    let name = "model.layers.1.mlp.up_proj.weight_scale";
    dir.edit_shard(SINGLE, |tensors| {
        find(tensors, name).bytes[2 * 7..2 * 8].copy_from_slice(&0x7fc0u16.to_le_bytes());
    });
    check_refused(&dir, &[name, "[7] is NaN"]);
}

/// A ModelOpt checkpoint that leaves some of block 1's and 3's modules in BF16, where they are.
fn without(modules: &[&str]) -> TestDir {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_json("hf_quant_config.json", |root| {
        let excluded: Vec<&str> = modules.iter().copied().chain(["lm_head"]).collect();
        root["quantization"]["exclude_modules"] = json!(excluded);
    });
    dir.edit_shard(SINGLE, |tensors| {
        for module in modules {
            let ends = [".weight_scale", ".input_scale"];
            tensors.retain(|tensor| ends.iter().all(|end| tensor.name != format!("{module}{end}")));
            let weight = find(tensors, &format!("{module}.weight"));
            weight.dtype = "BF16".to_owned();
            weight.bytes = [0x80, 0x3f].repeat(weight.bytes.len());
        }
    });
    dir
}

/// How many of a block's projections are not quantized.
fn n_dense(block: &BlockWeights) -> usize {
    let mut projections: Vec<&LinearWeights> = Vec::new();
    if let Some(MixerWeights::Attention(AttentionWeights { q, k, v, o, .. })) = &block.mixer {
        projections.extend([q, k, v, o]);
    }
    if let Some(FfnWeights::SwiGlu(SwiGluWeights { gate, up, down, .. })) = &block.ffn {
        projections.extend([gate, up, down]);
    }
    projections.retain(|linear| linear.matrix.dtype == Dtype::Bf16);
    assert!(projections.iter().all(|linear| linear.input == InputScale::None));
    projections.len()
}

#[test]
fn modules_of_one_input_are_excluded_together_or_not_at_all() {
    let attention = ["q", "k", "v"].map(|part| format!("model.layers.3.self_attn.{part}_proj"));
    let ffn = ["gate", "up"].map(|part| format!("model.layers.1.mlp.{part}_proj"));
    let whole: Vec<&str> = attention.iter().chain(&ffn).map(String::as_str).collect();
    let others = ["model.layers.3.self_attn.o_proj", "model.layers.1.mlp.down_proj"];
    for modules in [&whole[..], &others[..], &others[..1]] {
        let dir = without(modules);
        let rank = dir.open().expect("each is whole").load_rank(1, 2).expect("two ranks share it");
        let n_dense = rank.blocks.iter().map(n_dense);
        assert_eq!(n_dense.sum::<usize>(), modules.len(), "{modules:?}");
    }
    for (some, quantized, all) in [
        (&whole[..1], whole[1], "`k_proj`, `v_proj`, `q_proj`"),
        (&whole[1..3], whole[0], "`q_proj`, `k_proj`, `v_proj`"),
        (&whole[3..4], whole[4], "`up_proj`, `gate_proj`"),
    ] {
        let dir = without(some);
        let both = format!("quantizes `{quantized}` and excludes `{}`", some[0]);
        check_refused(&dir, &[&both, &format!("exclude all of {all} or none")]);
        let problems = Survey::open(dir.path()).problems;
        let [problem] = &problems[..] else { panic!("not one problem: {problems:?}") };
        assert!(problem.error.to_string().contains(&both), "{}", problem.error);
    }
}
