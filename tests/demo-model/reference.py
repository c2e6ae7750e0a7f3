"""A plain reading of a checkpoint folder: the numbers a runtime has to reproduce, with a KV cache.

It reads only what is shipped (`config.json`, the shards, `hf_quant_config.json`), so it also checks
that the folder is complete. Quantized weights, activations and KV are simulated in FP32: every value
is rounded to E4M3 where the format says so, and everything between is exact to FP32.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

E4M3_MAX = 448.0


def ffn_width(ffn_mult: float, hidden: int) -> int:
    """NVIDIA's rule: two thirds of the multiple, up to the next multiple of 256."""
    return -(-int(2 * ffn_mult * hidden / 3) // 256) * 256


def load_folder(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    config = json.loads((folder / "config.json").read_text())
    shards = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors: dict = {}
    for shard in sorted(set(shards.values())):
        tensors |= load_file(folder / shard)
    assert tensors.keys() == shards.keys(), "the index and the shards disagree"
    return config, tensors


def to_e4m3(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The E4M3 value nearest to `x / scale`, as FP32 and still divided by the scale."""
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


class Reference:
    """Runs a checkpoint. Linear layers are quantized where they carry scales, KV where it does."""

    def __init__(self, config: dict, tensors: dict[str, torch.Tensor], max_tokens: int = 512):
        self.config = config
        self.heads, self.head_dim = config["num_attention_heads"], config["head_dim"]
        self.hidden, self.eps = config["hidden_size"], config["rms_norm_eps"]
        self.scales = {name: t for name, t in tensors.items() if name.endswith("_scale")}
        self.weights = {name: t.float() for name, t in tensors.items() if not name.endswith("_scale")}
        self.cos, self.sin = rope_tables(config, max_tokens)
        self.max_tokens = max_tokens
        self.observe = lambda name, tensor: None
        self.check_shapes()

    def check_shapes(self) -> None:
        for i, block in enumerate(self.config["block_configs"]):
            if not block["ffn"]["no_op"]:
                width = ffn_width(block["ffn"]["ffn_mult"], self.hidden)
                assert self.weights[f"model.layers.{i}.mlp.up_proj.weight"].shape == (width, self.hidden)
            if not block["attention"]["no_op"]:
                rows = self.kv_heads(block) * self.head_dim
                assert self.weights[f"model.layers.{i}.self_attn.k_proj.weight"].shape == (rows, self.hidden)

    def kv_heads(self, block: dict) -> int:
        return self.heads // block["attention"]["n_heads_in_group"]

    def new_cache(self, rows: int) -> list:
        shapes = [None if b["attention"]["no_op"] else (rows, self.kv_heads(b), self.max_tokens, self.head_dim)
                  for b in self.config["block_configs"]]
        return [shape and (torch.zeros(shape), torch.zeros(shape)) for shape in shapes]

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, positions: torch.Tensor, cache: list) -> torch.Tensor:
        """Logits [rows, tokens, vocabulary]; K and V of `positions` go into the cache first."""
        x = self.weights["model.embed_tokens.weight"][ids]
        for i, block in enumerate(self.config["block_configs"]):
            name = f"model.layers.{i}"
            if not block["attention"]["no_op"]:
                normed = self.norm(f"{name}.input_layernorm", x)
                x = x + self.attention(f"{name}.self_attn", normed, positions, cache[i])
            if not block["ffn"]["no_op"]:
                x = x + self.ffn(f"{name}.mlp", self.norm(f"{name}.post_attention_layernorm", x))
        return self.linear("lm_head", self.norm("model.norm", x))

    def attention(self, name, x, positions, cache):
        rows, tokens, _ = x.shape
        keys, values = cache
        split = (rows, tokens, -1, self.head_dim)
        q = self.rotate(self.linear(f"{name}.q_proj", x).view(split), positions).transpose(1, 2)
        k = self.rotate(self.linear(f"{name}.k_proj", x).view(split), positions)
        v = self.linear(f"{name}.v_proj", x).view(split)
        row = torch.arange(rows)[:, None]
        keys[row, :, positions] = self.stored(f"{name}.k_proj.k_scale", k)
        values[row, :, positions] = self.stored(f"{name}.v_proj.v_scale", v)
        end = int(positions.max()) + 1
        q = q.reshape(rows, keys.shape[1], -1, self.head_dim)
        scores = q @ keys[:, :, :end].mT / math.sqrt(self.head_dim)
        hidden = torch.arange(end) > positions[..., None]
        scores = scores.view(rows, keys.shape[1], -1, tokens, end).masked_fill(hidden[:, None, None], float("-inf"))
        out = scores.softmax(-1).flatten(2, 3) @ values[:, :, :end]
        out = out.view(rows, self.heads, tokens, self.head_dim).transpose(1, 2).reshape(rows, tokens, -1)
        return self.linear(f"{name}.o_proj", out)

    def ffn(self, name, x):
        gate, up = self.linear(f"{name}.gate_proj", x), self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", F.silu(gate) * up)

    def stored(self, scale_name: str, x: torch.Tensor) -> torch.Tensor:
        self.observe(scale_name, x)
        scale = self.scales.get(scale_name)
        return x if scale is None else to_e4m3(x, scale) * scale

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        self.observe(f"{name}.input_scale", x)
        weight, scale = self.weights[f"{name}.weight"], self.scales.get(f"{name}.input_scale")
        if scale is None:
            return F.linear(x, weight)
        return F.linear(to_e4m3(x, scale), weight) * (scale * self.scales[f"{name}.weight_scale"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[f"{name}.weight"]

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rope_tables(config: dict, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    rope, dim = config["rope_scaling"], config["head_dim"]
    base = config["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turns = rope["original_max_position_embeddings"] * base / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * (smooth * base + (1 - smooth) * base / rope["factor"])
    return angles.cos().float(), angles.sin().float()
