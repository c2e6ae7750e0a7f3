//! A [`ModelSpec`] as the `config.json` that it could have been parsed from.

use serde_json::{Value, json};

use super::SyntheticFormat;
use crate::spec::{BlockSpec, FfnSpec, MixerSpec, ModelSpec, RopeScaling};

/// The nemotron-nas schema; FFN widths are stated outright, since not every width has an
/// `ffn_mult`.
pub(super) fn config(spec: &ModelSpec, format: SyntheticFormat) -> String {
    let attention = spec.blocks.iter().find_map(BlockSpec::attention);
    let (n_q_heads, head_dim) =
        attention.map_or((1, spec.hidden_size.next_multiple_of(2)), |a| (a.n_q_heads, a.head_dim));
    let mut root = json!({
        "architectures": ["DeciLMForCausalLM"],
        "attention_bias": false,
        "block_configs": spec.blocks.iter().map(block).collect::<Vec<Value>>(),
        "bos_token_id": spec.bos_token,
        "eos_token_id": spec.eos_tokens,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "intermediate_size": null,
        "max_position_embeddings": spec.n_positions_max,
        "mlp_bias": false,
        "model_type": "nemotron-nas",
        "num_attention_heads": n_q_heads,
        "num_hidden_layers": spec.blocks.len(),
        "num_key_value_heads": null,
        "rms_norm_eps": short(spec.norm_eps),
        "rope_scaling": rope_scaling(&spec.rope.scaling),
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.ties_embeddings,
        "torch_dtype": match format {
            SyntheticFormat::F32 => "float32",
            SyntheticFormat::F16 => "float16",
            _ => "bfloat16",
        },
        "vocab_size": spec.vocab_size,
    });
    if format == SyntheticFormat::Fp8Dynamic {
        root["quantization_config"] = fp8_dynamic();
    }
    pretty(&root)
}

/// ModelOpt's own file.
pub(super) fn hf_quant_config() -> String {
    pretty(&json!({
        "producer": { "name": "modelopt", "version": "0.29.0" },
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head"],
        },
    }))
}

/// JSON as people read it.
pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn block(block: &BlockSpec) -> Value {
    let attention = block.attention();
    let width = match block.ffn {
        Some(FfnSpec::SwiGlu { width }) => Some(width),
        _ => None,
    };
    json!({
        "attention": {
            "n_heads_in_group": attention.map(|a| a.n_q_heads / a.n_kv_heads),
            "no_op": block.mixer.is_none(),
            "num_sink_tokens": null,
            "replace_with_linear": block.mixer == Some(MixerSpec::Linear),
            "sparsify": null,
            "unshifted_sink": false,
            "use_prefill_window_in_sink_attention": false,
            "window_length": attention.and_then(|a| a.window),
        },
        "ffn": {
            "ffn_mult": null,
            "intermediate_size": width,
            "no_op": block.ffn.is_none(),
            "replace_with_linear": block.ffn == Some(FfnSpec::Linear),
            "sparsify": null,
        },
    })
}

fn rope_scaling(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, n_positions_original } => {
            json!({
                "factor": factor,
                "high_freq_factor": high_freq_factor,
                "low_freq_factor": low_freq_factor,
                "original_max_position_embeddings": n_positions_original,
                "rope_type": "llama3",
            })
        }
    }
}

fn fp8_dynamic() -> Value {
    json!({
        "config_groups": { "group_0": {
            "input_activations": {
                "dynamic": true, "num_bits": 8, "strategy": "token", "symmetric": true,
                "type": "float",
            },
            "output_activations": null,
            "targets": ["Linear"],
            "weights": {
                "dynamic": false, "num_bits": 8, "strategy": "channel", "symmetric": true,
                "type": "float",
            },
        } },
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

/// An f32 as the f64 with the same shortest digits: `1e-5`, not `9.999999747378752e-6`.
fn short(value: f32) -> f64 {
    value.to_string().parse().expect("a float's digits are a float")
}
