//! Checkpoints that are wrong in one way each: opening them fails, and the message says where.

use std::fs;

use crate::common::{StoredTensor, TestDir, find};
use serde_json::json;
use weights::synthetic::SyntheticFormat;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[track_caller]
pub(crate) fn check_refused(dir: &TestDir, expected: &[&str]) {
    let message = dir.open().expect_err("a malformed checkpoint was opened").to_string();
    for part in expected {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn single() -> TestDir {
    TestDir::tiny(SyntheticFormat::Bf16, 1)
}

fn sharded() -> TestDir {
    let dir = TestDir::tiny(SyntheticFormat::Bf16, 3);
    dir.open().expect("the checkpoint is whole before it is tampered with");
    dir
}

#[test]
fn an_empty_directory() {
    check_refused(&TestDir::new(), &["holds no config.json", "checkpoint directory?"]);
}

#[test]
fn a_directory_that_does_not_exist() {
    let dir = TestDir::new();
    let error = weights::Checkpoint::open(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere holds no config.json"), "{error}");
}

#[test]
fn a_configuration_without_shards() {
    let dir = single();
    fs::remove_file(dir.path().join(SINGLE)).unwrap();
    check_refused(&dir, &["holds no model.safetensors.index.json", "*.safetensors"]);
}

#[test]
fn an_unknown_block_variant() {
    let dir = single();
    dir.edit_json("config.json", |root| {
        root["block_configs"][3]["attention"]["num_sink_tokens"] = 4.into();
    });
    check_refused(&dir, &["config.json: block 3: `attention.num_sink_tokens` is 4", "supported"]);
}

#[test]
fn a_key_of_the_configuration_twice() {
    let dir = single();
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap().replacen('{', "{\"hidden_size\": 32,", 1);
    fs::write(path, text).unwrap();
    check_refused(&dir, &["config.json", "duplicate key `hidden_size`"]);
}

#[test]
fn an_unsupported_quantization() {
    let dir = single();
    dir.edit_json("config.json", |root| {
        root["quantization_config"] = json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" });
    });
    check_refused(&dir, &["config.json", "`quantization_config.quant_algo` is \"NVFP4\""]);
}

#[test]
fn a_missing_tensor() {
    let dir = single();
    dir.edit_shard(SINGLE, |tensors| tensors.retain(|tensor| tensor.name != UP));
    check_refused(&dir, &["tensor `model.layers.1.mlp.up_proj.weight` is missing", "[160, 64]"]);
}

#[test]
fn unused_tensors() {
    let dir = single();
    dir.edit_shard(SINGLE, |tensors| {
        for name in ["model.layers.2.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.bias"] {
            let extra = StoredTensor { name: name.to_owned(), ..find(tensors, UP).clone() };
            tensors.push(extra);
        }
    });
    check_refused(&dir, &["2 tensors", "`model.layers.1.mlp.up_proj.bias`", "belong together?"]);
}

#[test]
fn a_misshapen_tensor() {
    let dir = single();
    dir.edit_shard(SINGLE, |tensors| find(tensors, UP).shape = vec![64, 160]);
    check_refused(&dir, &[UP, SINGLE, "shape [64, 160], expected [160, 64]"]);
}

#[test]
fn a_tensor_in_two_shards() {
    let dir = sharded();
    let mut copied = None;
    dir.edit_shard(SECOND, |tensors| copied = tensors.first().cloned());
    let copied = copied.unwrap();
    let name = copied.name.clone();
    dir.edit_shard(FIRST, |tensors| tensors.push(copied));
    check_refused(&dir, &[&name, "given twice", FIRST, SECOND]);
}

#[test]
fn a_tensor_twice_in_one_header() {
    let dir = single();
    dir.edit_header(SINGLE, |header| {
        let entry = r#""dtype":"F32","shape":[0],"data_offsets":[0,0]"#;
        header.replacen('{', &format!("{{\"{UP}\":{{{entry}}},"), 1)
    });
    check_refused(&dir, &[SINGLE, "duplicate key `model.layers.1.mlp.up_proj.weight`"]);
}

#[test]
fn a_truncated_shard() {
    let dir = sharded();
    let path = dir.path().join(SECOND);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    check_refused(&dir, &[SECOND, "truncated?"]);
    fs::write(&path, &bytes[..100]).unwrap();
    check_refused(&dir, &[SECOND, "but the file has 100", "truncated?"]);
    fs::write(&path, &bytes[..3]).unwrap();
    check_refused(&dir, &[SECOND, "3 bytes, too few"]);
    fs::write(&path, b"").unwrap();
    check_refused(&dir, &[SECOND, "0 bytes, too few"]);
}

#[test]
fn a_shard_with_bytes_behind_its_tensors() {
    let dir = sharded();
    let path = dir.path().join(SECOND);
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(0);
    fs::write(&path, bytes).unwrap();
    check_refused(&dir, &[SECOND, "bytes, but the file has"]);
}

/// Changes the offsets of one tensor of the single shard.
fn with_offsets(change: impl Fn(u64, u64) -> [u64; 2]) -> TestDir {
    let dir = single();
    dir.edit_header(SINGLE, |header| {
        let mut root: serde_json::Value = serde_json::from_str(&header).unwrap();
        let offsets = &mut root[UP]["data_offsets"];
        let end = |i: usize| offsets[i].as_u64().unwrap();
        *offsets = json!(change(end(0), end(1)));
        root.to_string()
    });
    dir
}

#[test]
fn offsets_that_lie_about_the_size() {
    check_refused(&with_offsets(|begin, end| [begin, end - 2]), &[SINGLE, UP, "needs 20480 bytes"]);
}

#[test]
fn offsets_beyond_the_file() {
    let far = 1 << 40;
    check_refused(
        &with_offsets(|begin, end| [begin + far, end + far]),
        &[SINGLE, UP, "truncated?"],
    );
}

#[test]
fn offsets_that_overlap() {
    check_refused(
        &with_offsets(|begin, end| [begin - 2, end - 2]),
        &[SINGLE, "the one before ends"],
    );
}

#[test]
fn offsets_that_overflow() {
    let max = u64::MAX;
    check_refused(&with_offsets(|begin, _| [max - begin, max]), &[SINGLE, UP]);
}

#[test]
fn a_header_that_claims_to_be_huge() {
    let dir = single();
    let path = dir.path().join(SINGLE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&(1u64 << 50).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    check_refused(&dir, &[SINGLE, "claims 1125899906842624 bytes", "limit of 100000000"]);
}

#[test]
fn a_shape_whose_product_overflows() {
    let dir = single();
    dir.edit_header(SINGLE, |header| header.replace("[160,64]", "[6074001000,6074001000]"));
    check_refused(&dir, &[SINGLE, "overflows 64 bits"]);
}

#[test]
fn a_weight_of_integers() {
    let dir = single();
    dir.edit_shard(SINGLE, |tensors| find(tensors, UP).dtype = "I16".to_owned());
    check_refused(&dir, &[UP, "dtype I16", "formats that we can run"]);
}

#[test]
fn an_fp8_weight_that_nothing_declares() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    fs::remove_file(dir.path().join("hf_quant_config.json")).unwrap();
    check_refused(&dir, &["dtype F8_E4M3", "no quantization is declared"]);
}

#[test]
fn a_dense_weight_that_is_declared_fp8() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_json("hf_quant_config.json", |root| {
        root["quantization"]["exclude_modules"] = json!([]);
    });
    check_refused(
        &dir,
        &["`lm_head.weight`", "dtype BF16, expected F8_E4M3", "not exclude `lm_head`"],
    );
}

#[test]
fn an_fp8_weight_that_is_declared_dense() {
    let dir = TestDir::tiny(SyntheticFormat::Fp8Dynamic, 1);
    dir.edit_json("config.json", |root| {
        root["quantization_config"]["ignore"] = json!(["lm_head", "re:.*layers.1.mlp"]);
    });
    let excluded = "the configuration excludes `model.layers.1.mlp.gate_proj`";
    check_refused(&dir, &["dtype F8_E4M3", excluded]);
}

#[test]
fn an_index_that_reaches_outside() {
    for name in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."] {
        let dir = sharded();
        dir.edit_json(INDEX, |root| root["weight_map"][UP] = name.into());
        check_refused(&dir, &[name, "not a plain file name"]);
    }
}

#[test]
fn an_index_that_names_a_shard_that_is_not_there() {
    let dir = sharded();
    dir.edit_json(INDEX, |root| root["weight_map"][UP] = "other.safetensors".into());
    check_refused(&dir, &["holds no other.safetensors"]);
}

#[test]
fn an_index_that_names_the_wrong_shard() {
    let dir = sharded();
    dir.edit_json(INDEX, |root| {
        let map = &mut root["weight_map"];
        let other = if map[UP] == FIRST { SECOND } else { FIRST };
        map[UP] = other.into();
    });
    check_refused(&dir, &[INDEX, UP, "does not hold it"]);
}

#[test]
fn an_index_with_a_tensor_twice() {
    let dir = sharded();
    let path = dir.path().join(INDEX);
    let text = fs::read_to_string(&path).unwrap();
    let text =
        text.replacen("\"weight_map\": {", &format!("\"weight_map\": {{\"{UP}\": \"x\","), 1);
    fs::write(&path, text).unwrap();
    check_refused(&dir, &[INDEX, "duplicate key `model.layers.1.mlp.up_proj.weight`"]);
}

#[test]
fn an_index_without_a_map() {
    let dir = sharded();
    fs::write(dir.path().join(INDEX), "{}").unwrap();
    check_refused(&dir, &[INDEX, "`weight_map` is missing"]);
}

#[test]
fn uneven_sharding() {
    let dir = single();
    let error = dir.open().unwrap().load_rank(1, 3).unwrap_err().to_string();
    assert!(error.contains("`model.layers.0.self_attn.q_proj.weight` has 8 heads"), "{error}");
    assert!(error.contains("3 ranks"), "{error}");
}

#[test]
fn a_side_file_outside_the_directory() {
    let dir = single();
    let error = dir.open().unwrap().file("../config.json").unwrap_err().to_string();
    assert!(error.contains("not a plain file name"), "{error}");
}
