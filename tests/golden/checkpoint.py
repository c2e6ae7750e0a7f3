"""Random checkpoints in the shape of published ones: tensors, quantisation and files."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from model import Attention, Case, Linear, Model, Quantization, SwiGlu
from oracle import E4M3_MAX, Oracle, round_e4m3

Tensors = dict[str, np.ndarray]

STORED = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def parameter_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every unquantised parameter, in the order that modules are registered."""
    d, shapes = model.hidden, {}
    shapes["model.embed_tokens.weight"] = (model.vocab, d)
    for i, block in enumerate(model.blocks):
        layer = f"model.layers.{i}"
        match block.mixer:
            case Attention():
                q, kv = model.n_heads, model.n_kv_heads(block.mixer)
                shapes[f"{layer}.self_attn.q_proj.weight"] = (q * model.head_dim, d)
                shapes[f"{layer}.self_attn.k_proj.weight"] = (kv * model.head_dim, d)
                shapes[f"{layer}.self_attn.v_proj.weight"] = (kv * model.head_dim, d)
                shapes[f"{layer}.self_attn.o_proj.weight"] = (d, q * model.head_dim)
            case Linear():
                shapes[f"{layer}.self_attn.linear_attn.weight"] = (d, d)
        match block.ffn:
            case SwiGlu(width=width):
                shapes[f"{layer}.mlp.gate_proj.weight"] = (width, d)
                shapes[f"{layer}.mlp.up_proj.weight"] = (width, d)
                shapes[f"{layer}.mlp.down_proj.weight"] = (d, width)
            case Linear():
                shapes[f"{layer}.mlp.linear_mlp.weight"] = (d, d)
        if block.mixer is not None:
            shapes[f"{layer}.input_layernorm.weight"] = (d,)
        if block.ffn is not None:
            shapes[f"{layer}.post_attention_layernorm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not model.tied:
        shapes["lm_head.weight"] = (model.vocab, d)
    return shapes


# Gains that make a small random model behave: attention scores with a spread of 1 to 2, so that
# attention is far from uniform; sub-blocks as loud as the embedding; logits with
# a spread of about 3.
GAINS = {
    "q_proj": 1.25,
    "k_proj": 1.25,
    "o_proj": 1.5,
    "gate_proj": 1.5,
    "down_proj": 1.2,
    "linear_attn": 0.7,
    "linear_mlp": 0.7,
    "lm_head": 3.0,
}


def random_parameter(name: str, shape: tuple[int, ...], model: Model, rng: np.random.Generator):
    """float64 values for one parameter."""
    if len(shape) == 1:
        return 1 + 0.2 * rng.standard_normal(shape)
    module = name.split(".")[-2]
    if module == "embed_tokens":
        gain = GAINS["lm_head"] / np.sqrt(model.hidden) if model.tied else 1.0
        return gain * rng.standard_normal(shape)
    return GAINS.get(module, 1.0) / np.sqrt(shape[1]) * rng.standard_normal(shape)


def random_tensors(case: Case) -> Tensors:
    """An unquantised checkpoint for the case."""
    model, rng = case.model, np.random.default_rng([case.seed, 0])
    tensors = {}
    for name, shape in parameter_shapes(model).items():
        values = random_parameter(name, shape, model, rng)
        if name == "model.embed_tokens.weight" and case.zero_token_at:
            values[0] = 0
        tensors[name] = values.astype(STORED[model.dtype])
    return tensors


# --- quantisation ---------------------------------------------------------------------------------


def quantize(case: Case, tensors: Tensors, calibration: np.ndarray) -> Tensors:
    """The FP8 form of an unquantised checkpoint, its scales measured on a token sequence."""
    quantization = case.quantization
    if quantization is None:
        return tensors
    largest = calibrate(case.model, tensors, calibration)
    quantized = {}
    for name, values in tensors.items():
        module, kind = name.rsplit(".", 1)
        # Modules that the forward pass never fed a linear input are norms and the embedding.
        if module in largest and quantization.covers(module):
            quantized |= quantized_linear(quantization, module, values, largest)
        else:
            quantized[name] = values
        if kind == "weight" and module.endswith((".k_proj", ".v_proj")) and quantization.kv_fp8:
            scale_name = f"{module}.{module[-6]}_scale"
            quantized[scale_name] = np.float32(largest[scale_name] / E4M3_MAX)
    return {name: np.asarray(values) for name, values in quantized.items()}


def calibrate(model: Model, tensors: Tensors, tokens: np.ndarray) -> dict[str, float]:
    """Largest magnitude seen at every point that the unquantised forward pass lets one observe."""
    largest: dict[str, float] = {}

    def observe(name: str, x: np.ndarray) -> None:
        largest[name] = max(largest.get(name, 0.0), float(np.abs(x).max()))

    Oracle(model, tensors, observe=observe).logits(tokens)
    return largest


def quantized_linear(
    quantization: Quantization, module: str, weight: np.ndarray, largest: dict[str, float]
) -> Tensors:
    """The tensors that stand for one FP8 linear."""
    weight = weight.astype(np.float64)
    if quantization.method == "modelopt":
        weight_scale = np.float32(np.abs(weight).max() / E4M3_MAX)
        factor = dict(quantization.input_scale_factors).get(module, 1.0)
        scales = {
            f"{module}.weight_scale": weight_scale,
            f"{module}.input_scale": np.float32(largest[module] / E4M3_MAX * factor),
        }
    else:
        rows = np.abs(weight).max(axis=1, keepdims=True)
        weight_scale = (rows / E4M3_MAX).astype(ml_dtypes.bfloat16)
        scales = {f"{module}.weight_scale": weight_scale}
    stored = round_e4m3(weight / weight_scale.astype(np.float64))
    return {f"{module}.weight": stored.astype(ml_dtypes.float8_e4m3fn)} | scales


# --- files ----------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, case: Case, tensors: Tensors) -> None:
    """model.safetensors, or shards with their index."""
    if case.n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(split_by_bytes(tensors, case.n_shards)):
        file_name = f"model-{i + 1:05}-of-{case.n_shards:05}.safetensors"
        write_safetensors(folder / file_name, shard, {"format": "pt"})
        weight_map |= {name: file_name for name in shard}
    total_size = sum(values.nbytes for values in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def split_by_bytes(tensors: Tensors, n_shards: int) -> list[Tensors]:
    """Cut the list of tensors where the bytes say, in the middle of a layer if need be."""
    limit = sum(values.nbytes for values in tensors.values()) / n_shards
    shards: list[Tensors] = [{}]
    filled = 0
    for name, values in tensors.items():
        if filled >= limit * len(shards):
            shards.append({})
        shards[-1][name] = values
        filled += values.nbytes
    assert len(shards) == n_shards
    return shards


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """As the safetensors library writes it, but for the order of the metadata's keys.

    The library keeps metadata in a hash map, so without sorting two runs would differ in bytes.
    """
    contiguous = {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in tensors.items()}
    data = save(contiguous, metadata=metadata)
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= n_header
    path.write_bytes(data[:8] + text.ljust(n_header) + data[8 + n_header :])


def write_json(path: Path, value: dict) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n")
