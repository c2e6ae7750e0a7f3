//! Both published schemas, plain Llama, and what is refused: every message names its field.

use serde_json::json;

use super::*;
use crate::spec::{RopeScaling, RopeSpec};

/// A nemotron-nas configuration as published, with nulls where published ones have them.
fn nemotron_nas() -> Value {
    json!({
        "architectures": ["DeciLMForCausalLM"],
        "attention_bias": false,
        "auto_map": { "AutoConfig": "configuration_decilm.DeciLMConfig" },
        "block_configs": [
            block(
                json!({ "n_heads_in_group": 4, "window_length": null }),
                json!({ "ffn_mult": 2.625 }),
            ),
            block(json!({ "no_op": true, "n_heads_in_group": null }), json!({ "ffn_mult": 1.3 })),
            block(json!({ "no_op": true }), json!({ "no_op": true, "ffn_mult": null })),
            block(json!({ "replace_with_linear": true }), json!({ "replace_with_linear": true })),
            block(json!({ "n_heads_in_group": 8, "window_length": 7 }), json!({ "no_op": true })),
        ],
        "bos_token_id": 5,
        "eos_token_id": [6, 7],
        "hidden_act": "silu",
        "hidden_size": 512,
        "intermediate_size": null,
        "max_position_embeddings": 4096,
        "mlp_bias": false,
        "model_type": "nemotron-nas",
        "num_attention_heads": 16,
        "num_hidden_layers": 5,
        "num_key_value_heads": null,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": false,
        "vocab_size": 1000,
    })
}

fn block(attention: Value, ffn: Value) -> Value {
    let mut base = json!({
        "attention": {
            "n_heads_in_group": null, "no_op": false, "num_sink_tokens": null,
            "replace_with_linear": false, "sparsify": null, "unshifted_sink": false,
            "use_prefill_window_in_sink_attention": false, "window_length": null,
        },
        "ffn": { "ffn_mult": null, "no_op": false, "replace_with_linear": false, "sparsify": null },
    });
    for (section, fields) in [("attention", attention), ("ffn", ffn)] {
        for (name, value) in fields.as_object().unwrap() {
            base[section][name] = value.clone();
        }
    }
    base
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "vocab_size": 100,
    })
}

fn parse(root: &Value) -> Result<ModelSpec, ConfigError> {
    ModelSpec::from_config_json(&root.to_string())
}

fn attention(n_kv_heads: usize, window: Option<usize>) -> Option<MixerSpec> {
    Some(MixerSpec::Attention(AttentionSpec { n_q_heads: 16, n_kv_heads, head_dim: 32, window }))
}

fn swiglu(width: usize) -> Option<FfnSpec> {
    Some(FfnSpec::SwiGlu { width })
}

/// Sets `path` (parts divided by `/`) to `value` and expects the message to hold all of `expected`.
fn check_refused(mut root: Value, path: &str, value: Value, expected: &[&str]) {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
    let name = path.rsplit('/').next().unwrap();
    let pointer = if parent.is_empty() { String::new() } else { format!("/{parent}") };
    root.pointer_mut(&pointer).unwrap()[name] = value;
    let message = parse(&root).expect_err(path).to_string();
    for part in expected {
        assert!(message.contains(part), "{path}: {message}");
    }
}

#[test]
fn a_published_block_list_is_read() {
    let spec = parse(&nemotron_nas()).unwrap();
    let expected = [
        // int(2 * 2.625 * 512 / 3) is 896, then up to 1024; int(2 * 1.3 * 512 / 3) is 443.
        BlockSpec { mixer: attention(4, None), ffn: swiglu(1024) },
        BlockSpec { mixer: None, ffn: swiglu(512) },
        BlockSpec { mixer: None, ffn: None },
        BlockSpec { mixer: Some(MixerSpec::Linear), ffn: Some(FfnSpec::Linear) },
        BlockSpec { mixer: attention(2, Some(7)), ffn: None },
    ];
    assert_eq!(spec.blocks, expected);
    assert_eq!((spec.bos_token, spec.eos_tokens.as_slice()), (Some(5), &[6, 7][..]));
    assert_eq!((spec.norm_eps, spec.ties_embeddings), (1e-5, false));
    let scaling = RopeScaling::Llama3 {
        factor: 16.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        n_positions_original: 8192,
    };
    assert_eq!(spec.rope, RopeSpec { theta: 5e5, scaling });
}

#[test]
fn the_newer_block_schema_is_read_under_either_model_type() {
    let mut root = nemotron_nas();
    root["num_hidden_layers"] = 2.into();
    root["block_configs"] = json!([
        {
            "attention": {
                "no_op": false, "replace_with_linear": false, "sparsify": null,
                "weights_precision": "bf16", "num_key_value_heads": 8, "llama4": null,
                "mamba": null,
            },
            "ffn": {
                "no_op": false, "replace_with_linear": false, "sparsify": null, "moe": null,
                "weights_precision": "bf16", "intermediate_size": 1000, "hidden_act": "silu",
            },
            "parallel_blocks": null,
        },
        {
            "attention": { "no_op": true, "num_key_value_heads": null },
            "ffn": { "no_op": false, "intermediate_size": 24 },
        },
    ]);
    let expected = [
        BlockSpec { mixer: attention(8, None), ffn: swiglu(1000) },
        BlockSpec { mixer: None, ffn: swiglu(24) },
    ];
    assert_eq!(parse(&root).unwrap().blocks, expected);
    root["model_type"] = "llama".into();
    assert_eq!(parse(&root).unwrap().blocks, expected);
}

#[test]
fn plain_llama_is_read() {
    let mut root = llama();
    let spec = parse(&root).unwrap();
    let attention = AttentionSpec { n_q_heads: 4, n_kv_heads: 2, head_dim: 16, window: None };
    let block = BlockSpec { mixer: Some(MixerSpec::Attention(attention)), ffn: swiglu(96) };
    assert_eq!(spec.blocks, [block.clone(), block]);
    assert_eq!(spec.rope, RopeSpec { theta: 10_000.0, scaling: RopeScaling::None });
    assert_eq!((spec.bos_token, spec.eos_tokens.len()), (None, 0));

    root["head_dim"] = 24.into();
    root["num_key_value_heads"] = Value::Null;
    root["tie_word_embeddings"] = true.into();
    root["eos_token_id"] = 3.into();
    let spec = parse(&root).unwrap();
    let attention = spec.blocks[1].attention().unwrap();
    assert_eq!((attention.head_dim, attention.n_kv_heads), (24, 4));
    assert!(spec.ties_embeddings);
    assert_eq!(spec.eos_tokens, [3]);
}

#[test]
fn rope_is_read_under_its_older_and_newer_names() {
    let expected = parse(&nemotron_nas()).unwrap().rope;
    let mut older = nemotron_nas();
    let scaling = older["rope_scaling"].as_object_mut().unwrap();
    let kind = scaling.remove("rope_type").unwrap();
    scaling.insert("type".to_owned(), kind);
    assert_eq!(parse(&older).unwrap().rope, expected);

    let mut newer = nemotron_nas();
    newer["rope_parameters"] = newer["rope_scaling"].take();
    newer["rope_parameters"]["rope_theta"] = newer["rope_theta"].take();
    assert_eq!(parse(&newer).unwrap().rope, expected);

    newer["rope_scaling"] = newer["rope_parameters"].clone();
    assert_eq!(parse(&newer).unwrap().rope, expected);
    check_refused(newer, "rope_scaling/factor", 8.into(), &["`rope_parameters`", "rope_scaling"]);
}

#[test]
fn block_variants_are_refused_by_block_and_field() {
    for (path, value) in [
        ("attention/num_sink_tokens", json!(4)),
        ("attention/unshifted_sink", json!(true)),
        ("attention/use_prefill_window_in_sink_attention", json!(true)),
        ("attention/sparsify", json!(["0.5"])),
        ("attention/mamba", json!({ "state_dim": 128 })),
        ("attention/llama4", json!({ "attn_scale": 0.1 })),
        ("attention/something_new", json!("on")),
        ("ffn/sparsify", json!(["2:4"])),
        ("ffn/moe", json!({ "num_local_experts": 8 })),
        ("parallel_blocks", json!([{}])),
    ] {
        let field = format!("block 4: `{}`", path.replace('/', "."));
        let mut root = nemotron_nas();
        // In block 4 the FFN is absent, and the fields of what is absent mean nothing.
        root["block_configs"][4]["ffn"]["no_op"] = false.into();
        root["block_configs"][4]["ffn"]["ffn_mult"] = 1.into();
        parse(&root).unwrap();
        check_refused(
            root,
            &format!("block_configs/4/{path}"),
            value,
            &[&field, "not supported", "window_length"],
        );
    }
}

#[test]
fn senseless_blocks_are_refused_by_block_and_field() {
    for (path, value, expected) in [
        ("attention/n_heads_in_group", json!(3), "divisor of num_attention_heads, 16"),
        ("attention/n_heads_in_group", json!(0), "1 to"),
        ("attention/n_heads_in_group", json!("4"), "1 to"),
        ("attention/n_heads_in_group", json!(null), "missing"),
        ("attention/num_key_value_heads", json!(3), "16 query heads / n_heads_in_group"),
        ("attention/window_length", json!(-1), "1 to"),
        ("attention/no_op", json!(1), "true, false or null"),
        ("ffn/ffn_mult", json!(-2.0), "positive"),
        ("ffn/ffn_mult", json!(1e30), "sane"),
        ("ffn/ffn_mult", json!(null), "missing"),
        ("ffn/intermediate_size", json!(1u64 << 40), "1 to"),
        ("ffn/hidden_act", json!("gelu"), "\"silu\""),
        ("attention", json!(null), "an object"),
    ] {
        let field = format!("block 0: `{}`", path.replace('/', "."));
        check_refused(
            nemotron_nas(),
            &format!("block_configs/0/{path}"),
            value,
            &[&field, expected],
        );
    }
    let both = "block_configs/2/attention/replace_with_linear";
    let field = "block 2: `attention.replace_with_linear`";
    check_refused(nemotron_nas(), both, true.into(), &[field, "no_op"]);
}

#[test]
fn senseless_models_are_refused_by_field() {
    for (path, value, expected) in [
        ("model_type", json!("mixtral"), "nemotron-nas"),
        ("attention_bias", json!(true), "biases"),
        ("mlp_bias", json!(true), "biases"),
        ("hidden_act", json!("gelu"), "\"silu\""),
        ("hidden_size", json!(0), "1 to"),
        ("vocab_size", json!(null), "missing"),
        ("num_hidden_layers", json!(4), "5, the length of block_configs"),
        ("num_attention_heads", json!(12), "divisor of hidden_size"),
        ("head_dim", json!(33), "even"),
        ("rms_norm_eps", json!(-1.0), "0 to 1"),
        ("rope_theta", json!(0.0), "above 1"),
        ("eos_token_id", json!([6, 1000]), "below vocab_size, 1000"),
        ("block_configs", json!(null), "missing"),
        ("rope_scaling/rope_type", json!("yarn"), "llama3"),
        ("rope_scaling/factor", json!(null), "at least 1"),
        ("rope_scaling/high_freq_factor", json!(1.0), "more than low_freq_factor"),
        ("rope_scaling/original_max_position_embeddings", json!(0), "positive"),
    ] {
        let field = format!("`{}`", path.replace('/', "."));
        check_refused(nemotron_nas(), path, value, &[&field, expected]);
    }
    let kv = "num_key_value_heads";
    check_refused(llama(), kv, 3.into(), &["`num_key_value_heads` is 3", "divisor"]);
}

#[test]
fn a_key_twice_or_broken_json_is_refused() {
    let text = nemotron_nas().to_string();
    let twice = text.replacen('{', r#"{"hidden_size": 64,"#, 1);
    let message = ModelSpec::from_config_json(&twice).unwrap_err().to_string();
    assert!(message.contains("duplicate key `hidden_size`"), "{message}");
    let message = ModelSpec::from_config_json(&text[1..]).unwrap_err().to_string();
    assert!(message.contains("not a valid configuration"), "{message}");
}

/// Every place of the configuration, with every kind of value: parsed or refused, never a panic,
/// and what is parsed has sizes that one can compute with.
#[test]
fn no_value_of_any_field_makes_it_panic() {
    let mut paths = Vec::new();
    collect_paths("", &nemotron_nas(), &mut paths);
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(3),
        json!(u64::MAX),
        json!(1 << 24),
        json!(1e308),
        json!(1e-308),
        json!("x"),
        json!([]),
        json!([1]),
        json!({}),
    ];
    let mut n_parsed = 0;
    for path in &paths {
        for value in &values {
            let mut root = nemotron_nas();
            *root.pointer_mut(path).unwrap() = value.clone();
            if let Ok(spec) = parse(&root) {
                n_parsed += 1;
                assert!(spec.n_parameters() < 1 << 55, "{path} {value}");
                assert!(spec.norm_eps.is_finite() && spec.rope.theta.is_finite(), "{path} {value}");
            }
        }
    }
    assert!(n_parsed > paths.len(), "{n_parsed} of {} paths", paths.len());
}

fn collect_paths(path: &str, value: &Value, paths: &mut Vec<String>) {
    paths.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| {
                collect_paths(&format!("{path}/{name}"), field, paths);
            });
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| {
                collect_paths(&format!("{path}/{i}"), item, paths);
            });
        }
        _ => {}
    }
}
