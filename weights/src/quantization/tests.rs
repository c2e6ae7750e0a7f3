//! Declarations of both producers, the languages of their module lists, and what is refused.

use serde_json::json;

use super::*;

fn modelopt(algorithm: &str) -> Value {
    json!({
        "producer": { "name": "modelopt", "version": "0.29.0" },
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head", "model.layers.1.mlp", "model.layers.2*"],
        },
    })
}

fn compressed_tensors() -> Value {
    json!({ "quantization_config": {
        "config_groups": { "group_0": {
            "input_activations": {
                "dynamic": true, "num_bits": 8, "strategy": "token", "symmetric": true,
                "type": "float", "actorder": null, "block_structure": null,
            },
            "output_activations": null,
            "targets": ["Linear"],
            "weights": {
                "dynamic": false, "num_bits": 8, "strategy": "channel", "symmetric": true,
                "type": "float", "observer": "minmax",
            },
        } },
        "format": "float-quantized",
        "ignore": ["lm_head", "re:.*layers\\.1\\..*_proj"],
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
    } })
}

fn check_refused(mut root: Value, pointer: &str, value: Value, expected: &[&str]) {
    *root.pointer_mut(pointer).unwrap() = value;
    let message = Quantization::from_config(&root).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "{pointer}: {message}");
    }
}

#[test]
fn modelopt_fp8_is_read_from_its_own_file_and_from_config_json() {
    let quantization = Quantization::from_hf_quant_config(&modelopt("FP8")).unwrap();
    let scheme =
        Fp8Scheme { weights: WeightGranularity::PerTensor, input: InputQuantization::Static };
    assert_eq!(quantization.scheme, Some(scheme));
    assert!(quantization.declares_fp8_kv);
    assert_eq!(quantization.to_string(), "ModelOpt FP8, weights per tensor, inputs static");

    let root = json!({ "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "kv_cache_scheme": { "dynamic": false, "num_bits": 8, "type": "float" },
        "ignore": ["lm_head"],
    } });
    let quantization = Quantization::from_config(&root).unwrap().unwrap();
    assert_eq!((quantization.scheme, quantization.declares_fp8_kv), (Some(scheme), true));
    assert_eq!(quantization.ignore, ["lm_head"]);

    let mut root = modelopt("FP8_PER_CHANNEL_PER_TOKEN");
    root["quantization"]["kv_cache_quant_algo"] = Value::Null;
    let quantization = Quantization::from_hf_quant_config(&root).unwrap();
    let scheme =
        Fp8Scheme { weights: WeightGranularity::PerRow, input: InputQuantization::PerToken };
    assert_eq!((quantization.scheme, quantization.declares_fp8_kv), (Some(scheme), false));

    root["quantization"]["quant_algo"] = Value::Null;
    assert_eq!(Quantization::from_hf_quant_config(&root).unwrap().scheme, None);
}

#[test]
fn compressed_tensors_fp8_is_read() {
    let root = compressed_tensors();
    let quantization = Quantization::from_config(&root).unwrap().unwrap();
    let expected = "compressed-tensors FP8, weights per row, inputs per token";
    assert_eq!(quantization.to_string(), expected);
    assert!(!quantization.declares_fp8_kv);

    let mut root = compressed_tensors();
    let group = root.pointer_mut("/quantization_config/config_groups/group_0").unwrap();
    group["weights"]["strategy"] = "tensor".into();
    group["input_activations"]["strategy"] = "tensor".into();
    group["input_activations"]["dynamic"] = false.into();
    let quantization = Quantization::from_config(&root).unwrap().unwrap();
    let scheme =
        Fp8Scheme { weights: WeightGranularity::PerTensor, input: InputQuantization::Static };
    assert_eq!(quantization.scheme, Some(scheme));
}

#[test]
fn no_declaration_is_no_quantization() {
    assert!(Quantization::from_config(&json!({})).unwrap().is_none());
    assert!(Quantization::from_config(&json!({ "quantization_config": null })).unwrap().is_none());
    assert_eq!(Quantization::none().scheme_of("model.layers.0.mlp.up_proj"), None);
    assert_eq!(Quantization::none().to_string(), "none");
}

#[test]
fn modelopt_lists_match_names_name_parts_and_wildcards() {
    let mut root = modelopt("FP8");
    root["quantization"]["exclude_modules"] = json!([
        "lm_head",
        "model.layers.1.mlp",
        "model.layers.2*",
        "*.layers.[34].self_attn.?_proj",
        "layers.6",
        "*.[!kqv]_proj",
    ]);
    let quantization = Quantization::from_hf_quant_config(&root).unwrap();
    for (module, is_quantized) in [
        ("lm_head", false),
        ("model.layers.1.mlp.up_proj", false),
        ("model.layers.1.self_attn.q_proj", true),
        ("model.layers.10.mlp.up_proj", true),
        ("model.layers.2.mlp.up_proj", false),
        // A wildcard says what it says.
        ("model.layers.25.mlp.up_proj", false),
        ("model.layers.3.self_attn.q_proj", false),
        ("model.layers.4.self_attn.o_proj", false),
        ("model.layers.5.self_attn.q_proj", true),
        ("model.layers.6.self_attn.q_proj", false),
        ("model.layers.60.self_attn.q_proj", true),
        ("model.layers.5.self_attn.o_proj", false),
        ("model.layers.5.mlp.up_proj", true),
    ] {
        assert_eq!(quantization.scheme_of(module).is_some(), is_quantized, "{module}");
    }
}

#[test]
fn compressed_tensors_lists_match_names_and_expressions() {
    let mut root = compressed_tensors();
    let quantization = Quantization::from_config(&root).unwrap().unwrap();
    for (module, is_quantized) in [
        ("lm_head", false),
        ("model.layers.1.mlp.up_proj", false),
        ("model.layers.11.mlp.up_proj", true),
        ("model.layers.1.self_attn.linear_attn", true),
    ] {
        assert_eq!(quantization.scheme_of(module).is_some(), is_quantized, "{module}");
    }
    root["quantization_config"]["config_groups"]["group_0"]["targets"] =
        json!(["re:.*mlp.*", "model.layers.0.self_attn.q_proj"]);
    let quantization = Quantization::from_config(&root).unwrap().unwrap();
    for (module, is_quantized) in [
        ("model.layers.0.mlp.up_proj", true),
        ("model.layers.0.self_attn.q_proj", true),
        ("model.layers.0.self_attn.k_proj", false),
    ] {
        assert_eq!(quantization.scheme_of(module).is_some(), is_quantized, "{module}");
    }
}

#[test]
fn other_algorithms_are_refused_by_name() {
    for algorithm in ["NVFP4", "W4A8_AWQ", "FP8_PB_WO", "MIXED_PRECISION"] {
        let message = Quantization::from_hf_quant_config(&modelopt(algorithm)).unwrap_err();
        let message = message.to_string();
        assert!(message.contains(&format!("\"{algorithm}\"")), "{message}");
        assert!(message.contains("`hf_quant_config.quantization.quant_algo`"), "{message}");
    }
    let section = "/quantization_config";
    let group = "/quantization_config/config_groups/group_0";
    let refused = |pointer: &str, value: Value, expected: &[&str]| {
        check_refused(compressed_tensors(), pointer, value, expected);
    };
    refused(&format!("{section}/quant_method"), "gptq".into(), &["\"gptq\"", "quant_method"]);
    refused(&format!("{section}/format"), "pack-quantized".into(), &["\"pack-quantized\""]);
    refused(&format!("{group}/weights/num_bits"), 4.into(), &["group_0.weights", "\"num_bits\":4"]);
    refused(&format!("{group}/weights/strategy"), "block".into(), &["\"block\"", "\"channel\""]);
    refused(&format!("{group}/input_activations"), Value::Null, &["input_activations", "null"]);
    refused(&format!("{group}/output_activations"), json!({}), &["output_activations"]);
    refused(&format!("{section}/config_groups"), json!({}), &["0 groups"]);
    refused(&format!("{section}/kv_cache_scheme"), json!({ "num_bits": 4 }), &["kv_cache_scheme"]);
    refused(&format!("{section}/ignore"), json!(["re:("]), &["\"re:(\"", "pattern"]);
    refused(&format!("{section}/ignore"), json!("lm_head"), &["ignore", "list of strings"]);
    let mut root = modelopt("FP8");
    root["quantization"]["kv_cache_quant_algo"] = "NVFP4".into();
    let message = Quantization::from_hf_quant_config(&root).unwrap_err().to_string();
    assert!(message.contains("kv_cache_quant_algo") && message.contains("NVFP4"), "{message}");
}
