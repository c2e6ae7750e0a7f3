"""The JSON files of a checkpoint, in the schemas that published checkpoints use."""

from __future__ import annotations

from pathlib import Path

from checkpoint import write_json
from model import Attention, Block, Case, Linear, Model, Quantization, SwiGlu

TORCH_DTYPE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_configs(folder: Path, case: Case) -> None:
    """config.json, and hf_quant_config.json where the case declares its quantisation there."""
    config = {"nemotron-nas": nemotron_nas, "puzzletron": puzzletron, "llama": llama}[case.schema]
    content = config(case.model)
    quantization = case.quantization
    if quantization is not None:
        if quantization.declared_in == "hf_quant_config.json":
            write_json(folder / "hf_quant_config.json", hf_quant_config(quantization))
        else:
            content["quantization_config"] = quantization_config(quantization)
    write_json(folder / "config.json", dict(sorted(content.items())))


def common(model: Model) -> dict:
    """What every schema says in the same words."""
    bos, eos = model.special_tokens()
    scaling = model.rope_scaling
    content = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "num_attention_heads": model.n_heads,
        "num_hidden_layers": len(model.blocks),
        "pretraining_tp": 1,
        "rms_norm_eps": model.norm_eps,
        "rope_scaling": None,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied,
        "torch_dtype": TORCH_DTYPE[model.dtype],
        "transformers_version": "4.48.3",
        "use_cache": True,
        "vocab_size": model.vocab,
    }
    if scaling is not None:
        content["rope_scaling"] = {
            "factor": scaling.factor,
            "high_freq_factor": scaling.high_freq_factor,
            "low_freq_factor": scaling.low_freq_factor,
            "original_max_position_embeddings": scaling.original_max,
            "rope_type": "llama3",
        }
    # Published nemotron-nas configs leave it out where it follows from the hidden size.
    if model.head_dim * model.n_heads != model.hidden:
        content["head_dim"] = model.head_dim
    return content


def deci_lm(model: Model) -> dict:
    """The outer part that both nemotron-nas schemas share."""
    return common(model) | {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        },
        "intermediate_size": None,
        "model_type": "nemotron-nas",
        "num_key_value_heads": None,
    }


def nemotron_nas(model: Model) -> dict:
    """As LN-Super and LN-Ultra are published; widths that no ffn_mult gives are stated outright."""

    def attention(mixer: Attention | Linear | None) -> dict:
        is_attention = isinstance(mixer, Attention)
        return {
            "n_heads_in_group": mixer.group if is_attention else None,
            "no_op": mixer is None,
            "num_sink_tokens": None,
            "replace_with_linear": isinstance(mixer, Linear),
            "sparsify": None,
            "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False,
            "window_length": mixer.window if is_attention else None,
        }

    def ffn(ffn: SwiGlu | Linear | None) -> dict:
        is_swiglu = isinstance(ffn, SwiGlu)
        content = {
            "ffn_mult": ffn.ffn_mult if is_swiglu else None,
            "no_op": ffn is None,
            "replace_with_linear": isinstance(ffn, Linear),
            "sparsify": None,
        }
        if is_swiglu and ffn.ffn_mult is None:
            content["intermediate_size"] = ffn.width
        return content

    blocks = [{"attention": attention(b.mixer), "ffn": ffn(b.ffn)} for b in model.blocks]
    return deci_lm(model) | {"block_configs": blocks}


def puzzletron(model: Model) -> dict:
    """The newer block schema, every field of its dataclasses written out."""

    def attention(mixer: Attention | Linear | None) -> dict:
        assert not (isinstance(mixer, Attention) and mixer.window), "the schema has no window"
        is_attention = isinstance(mixer, Attention)
        return {
            "no_op": mixer is None,
            "replace_with_linear": isinstance(mixer, Linear),
            "sparsify": None,
            "weights_precision": "bf16",
            "num_key_value_heads": model.n_kv_heads(mixer) if is_attention else None,
            "llama4": None,
            "mamba": None,
        }

    def ffn(ffn: SwiGlu | Linear | None) -> dict:
        return {
            "no_op": ffn is None,
            "replace_with_linear": isinstance(ffn, Linear),
            "sparsify": None,
            "weights_precision": "bf16",
            "moe": None,
            "intermediate_size": ffn.width if isinstance(ffn, SwiGlu) else None,
        }

    def entry(block: Block) -> dict:
        return {
            "attention": attention(block.mixer),
            "ffn": ffn(block.ffn),
            "parallel_blocks": None,
        }

    return deci_lm(model) | {"block_configs": [entry(block) for block in model.blocks]}


def llama(model: Model) -> dict:
    """A plain Llama config: every block has the same attention and the same width."""
    block = model.blocks[0]
    assert all(other == block for other in model.blocks)
    return common(model) | {
        "architectures": ["LlamaForCausalLM"],
        "head_dim": model.head_dim,
        "intermediate_size": block.ffn.width,
        "model_type": "llama",
        "num_key_value_heads": model.n_kv_heads(block.mixer),
    }


def hf_quant_config(quantization: Quantization) -> dict:
    """ModelOpt's own file."""
    return {
        "producer": {"name": "modelopt", "version": "0.29.0"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8" if quantization.kv_fp8 else None,
            "exclude_modules": list(quantization.ignore),
        },
    }


def quantization_config(quantization: Quantization) -> dict:
    """The section of config.json, in the words of either producer."""
    float8 = {"dynamic": False, "num_bits": 8, "type": "float"}
    if quantization.method == "modelopt":
        return {
            "config_groups": {
                "group_0": {
                    "input_activations": float8,
                    "weights": float8,
                    "targets": ["Linear"],
                }
            },
            "ignore": list(quantization.ignore),
            "quant_algo": "FP8",
            "kv_cache_scheme": float8 if quantization.kv_fp8 else None,
            "producer": {"name": "modelopt", "version": "0.39.0"},
            "quant_method": "modelopt",
        }
    assert not quantization.kv_fp8
    rest = {"actorder": None, "block_structure": None, "group_size": None, "observer_kwargs": {}}
    token = {"dynamic": True, "observer": None, "strategy": "token"}
    channel = {"dynamic": False, "observer": "minmax", "strategy": "channel"}
    number = {"num_bits": 8, "symmetric": True, "type": "float"}
    return {
        "config_groups": {
            "group_0": {
                "input_activations": rest | token | number,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": rest | channel | number,
            }
        },
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": list(quantization.ignore),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
