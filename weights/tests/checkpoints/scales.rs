//! Checkpoints whose scales are wrong in one way each: opening them fails, and the message says
//! where.

use crate::common::{StoredTensor, TestDir, find};
use crate::malformed::check_refused;
use weights::synthetic::SyntheticFormat;

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
