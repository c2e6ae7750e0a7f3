"""SmolLM2-135M-Instruct from GGUF to checkpoints as they are published: BF16, ModelOpt FP8 with
static scales, compressed-tensors FP8 with scales of rows and tokens. The tokenizer comes along.

The weights of all three are those of the BF16 checkpoint, which are the GGUF's rounded to BF16;
`reference.gguf` holds exactly those in F32, for an engine that is not ours.
"""

import json
import pathlib

import gguf
import ml_dtypes
import numpy
import safetensors.numpy

import network
from network import E4M3_MAX, e4m3

# Nats a token that a checkpoint with static scales may lose on the text on which its modules are
# tried, one after the other, all together. Texts that the model is less sure of lose more.
LOSS_MAX = 0.008

# Static scales have room for inputs that are as much larger than any that were seen: texts of other
# kinds have some, and e4m3 loses nothing by it but its smallest numbers.
HEADROOM = 2.0

# A block's modules, by their published names.
MODULES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class Model:
    """Sizes, tokens, and weights as f32 that BF16 holds exactly."""

    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        field = lambda name: self.reader.fields[name].contents()
        self.n_blocks = field("llama.block_count")
        self.hidden = field("llama.embedding_length")
        self.width = field("llama.feed_forward_length")
        self.n_heads = field("llama.attention.head_count")
        self.n_kv_heads = field("llama.attention.head_count_kv")
        self.eps = field("llama.attention.layer_norm_rms_epsilon")
        self.theta = field("llama.rope.freq_base")
        self.n_positions = field("llama.context_length")
        self.head_dim = self.hidden // self.n_heads
        self.tokens = field("tokenizer.ggml.tokens")
        self.token_types = field("tokenizer.ggml.token_type")
        self.merges = field("tokenizer.ggml.merges")
        self.template = field("tokenizer.chat_template")
        self.bos = field("tokenizer.ggml.bos_token_id")
        self.eos = field("tokenizer.ggml.eos_token_id")
        self.stored = {}
        for tensor in self.reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            self.stored[tensor.name] = values.astype(ml_dtypes.bfloat16).astype(numpy.float32)

    def weights(self):
        """By published names, each in its published order."""
        names = ["model.embed_tokens", "model.norm"]
        for block in range(self.n_blocks):
            names += [f"model.layers.{block}.{module}" for module in MODULES]
        in_gguf = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, self.n_blocks)
        weights = {}
        for name in names:
            values = self.stored[in_gguf.get_name(name) + ".weight"]
            if name.endswith("q_proj"):
                values = self.halves(values, self.n_heads)
            if name.endswith("k_proj"):
                values = self.halves(values, self.n_kv_heads)
            weights[name] = values
        return weights

    def halves(self, values, n_heads):
        """GGUF has the two numbers that RoPE turns together side by side, the published order
        half a head apart."""
        pairs = values.reshape(n_heads, self.head_dim // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(values.shape)


def config(model):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden,
        "intermediate_size": model.width,
        "num_hidden_layers": model.n_blocks,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.n_positions,
        "rms_norm_eps": round(model.eps, 10),
        "rope_theta": model.theta,
        "tie_word_embeddings": True,
        "bos_token_id": model.bos,
        "eos_token_id": model.eos,
        "vocab_size": len(model.tokens),
        "torch_dtype": "bfloat16",
    }


COMPRESSED_TENSORS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "output_activations": None,
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "channel",
                "symmetric": True,
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}

MODELOPT = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None},
}


def tokenizer(model):
    """The same byte-level BPE as JSON: digits alone, then GPT-2's pattern."""
    special = [
        {
            "id": idx,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for idx, (token, kind) in enumerate(zip(model.tokens, model.token_types))
        if kind == gguf.TokenType.CONTROL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: idx for idx, token in enumerate(model.tokens)},
            "merges": model.merges,
        },
    }


def write(folder, model, tensors, extra):
    folder.mkdir(parents=True)
    write_json = lambda name, value: (folder / name).write_text(json.dumps(value))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json("tokenizer.json", tokenizer(model))
    write_json(
        "tokenizer_config.json",
        {
            "bos_token": model.tokens[model.bos],
            "eos_token": model.tokens[model.eos],
            "chat_template": model.template,
        },
    )
    quantization = extra.pop("hf_quant_config", None)
    if quantization:
        write_json("hf_quant_config.json", quantization)
    write_json("config.json", {**config(model), **extra})


def write_reference(path, model):
    """The weights as f32, with everything else as it was."""
    writer = gguf.GGUFWriter(path, "llama")
    own = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
    for field in model.reader.fields.values():
        if field.name.startswith(own):
            continue
        kind, *rest = field.types
        writer.add_key_value(field.name, field.contents(), kind, rest[-1] if rest else None)
    for name, values in model.stored.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_projection(name):
    return name.endswith("_proj")


def bf16(values):
    return values.astype(ml_dtypes.bfloat16)


def write_dense(model, out):
    """The BF16 checkpoint, and the same weights for the other engine."""
    tensors = {f"{name}.weight": bf16(values) for name, values in model.weights().items()}
    write(out / "bf16", model, tensors, {})
    write_reference(out / "reference.gguf", model)


def calibrated(model, calibration):
    """The largest inputs that static scales are to hold, and the projections that stay BF16.

    As ModelOpt's automatic choice of formats has it, each group of projections is tried alone, on
    the longest text, and those that cost most for their size are left out until the rest may lose
    LOSS_MAX."""
    net = network.Network(model)
    seen = network.ranges(net, calibration)
    seen = {name: HEADROOM * largest for name, largest in seen.items()}
    losses = network.sensitivities(net, max(calibration, key=len), seen)
    n_weights = lambda names: sum(net.weights[name].size for name in names)
    excluded = []
    for names in sorted(losses, key=lambda names: losses[names] / n_weights(names), reverse=True):
        if sum(losses.values()) <= LOSS_MAX:
            break
        del losses[names]
        excluded += names
    return seen, excluded


def write_quantized(model, out, calibration):
    """Both FP8 checkpoints, calibrated on texts given as tokens, with the same modules in BF16. Tells
    which, and the share of the projections' weights that is FP8."""
    weights = model.weights()
    seen, excluded = calibrated(model, calibration)
    quantized = [name for name in seen if name not in excluded]
    dynamic = dense(weights, set(weights) - set(quantized))
    static = dict(dynamic)
    for name in quantized:
        values = weights[name]
        scale = bf16(numpy.abs(values).max(1, keepdims=True) / E4M3_MAX)
        dynamic[f"{name}.weight"] = e4m3(values / scale.astype(numpy.float32))
        dynamic[f"{name}.weight_scale"] = scale
        scale = numpy.float32(numpy.abs(values).max() / E4M3_MAX)
        static[f"{name}.weight"] = e4m3(values / scale)
        static[f"{name}.weight_scale"] = numpy.array(scale, numpy.float32)
        static[f"{name}.input_scale"] = numpy.array(seen[name] / E4M3_MAX, numpy.float32)
    left_out = ["lm_head", *excluded]
    declared = {**COMPRESSED_TENSORS, "ignore": left_out}
    write(out / "fp8-dynamic", model, dynamic, {"quantization_config": declared})
    quantization = {**MODELOPT["quantization"], "exclude_modules": left_out}
    declared = {**MODELOPT, "quantization": quantization}
    write(out / "modelopt-fp8", model, static, {"hf_quant_config": declared})
    n_weights = lambda names: sum(weights[name].size for name in names)
    return excluded, n_weights(quantized) / n_weights(seen)


def dense(weights, names):
    return {f"{name}.weight": bf16(weights[name]) for name in names}
