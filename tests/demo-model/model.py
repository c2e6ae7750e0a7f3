"""The demo model: a small DeciLM whose blocks differ in attention, FFN width and KV heads.

`Model.forward` is the training pass. Matrix products run in BF16 and the residual stream in FP32,
because a CPU with BF16 dot products is several times faster there and loses nothing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN = 128
HEADS = 8
HEAD_DIM = 32
VOCAB = 512
MAX_POSITIONS = 1024
EPS = 1e-5
ROPE_THETA = 10_000.0
ROPE_SCALING = {"factor": 4.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 256, "rope_type": "llama3"}


@dataclass(frozen=True)
class Block:
    """KV heads and FFN width of one block; 0 = that half is absent."""

    kv_heads: int
    ffn_width: int


BLOCKS = [Block(*sizes) for sizes in (
    (4, 512), (2, 256), (0, 256), (4, 512), (0, 0), (2, 0),
    (4, 512), (0, 256), (2, 256), (0, 0), (4, 256), (0, 1024),
)]


def rope_frequencies() -> torch.Tensor:
    """Llama-3's scaled inverse frequencies: long wavelengths slow down, short ones stay."""
    base = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    low, high = ROPE_SCALING["low_freq_factor"], ROPE_SCALING["high_freq_factor"]
    turns = ROPE_SCALING["original_max_position_embeddings"] * base / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return smooth * base + (1 - smooth) * base / ROPE_SCALING["factor"]


def rope_tables(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rope_frequencies()[None]
    return angles.cos().float(), angles.sin().float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` is [..., tokens, head_dim]; the two halves of a head turn against each other."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x.bfloat16(), weight.bfloat16())


class Attention(nn.Module):
    def __init__(self, kv_heads: int):
        super().__init__()
        self.kv_heads = kv_heads
        self.q_proj = matrix(HEADS * HEAD_DIM, HIDDEN)
        self.k_proj = matrix(kv_heads * HEAD_DIM, HIDDEN)
        self.v_proj = matrix(kv_heads * HEAD_DIM, HIDDEN)
        self.o_proj = matrix(HIDDEN, HEADS * HEAD_DIM, gain=0.1)

    def forward(self, x, cos, sin, mask):
        # Written out, because the backward pass of the fused attention is slow on a CPU.
        rows, tokens, _ = x.shape
        group = HEADS // self.kv_heads
        x = x.bfloat16()
        q = linear(x, self.q_proj).view(rows, tokens, HEADS, HEAD_DIM).transpose(1, 2)
        k = linear(x, self.k_proj).view(rows, tokens, self.kv_heads, HEAD_DIM).transpose(1, 2)
        v = linear(x, self.v_proj).view(rows, tokens, self.kv_heads, HEAD_DIM).transpose(1, 2)
        q = (rotate(q, cos, sin) * HEAD_DIM**-0.5).bfloat16().reshape(rows * self.kv_heads, group * tokens, HEAD_DIM)
        k = rotate(k, cos, sin).bfloat16().reshape(rows * self.kv_heads, tokens, HEAD_DIM)
        scores = (q @ k.transpose(1, 2)).view(-1, group, tokens, tokens).float() + mask
        weights = scores.softmax(-1).bfloat16().view(rows * self.kv_heads, group * tokens, tokens)
        out = weights @ v.reshape(rows * self.kv_heads, tokens, HEAD_DIM)
        out = out.view(rows, HEADS, tokens, HEAD_DIM).transpose(1, 2).reshape(rows, tokens, HEADS * HEAD_DIM)
        return linear(out, self.o_proj).float()


class Ffn(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gate_proj = matrix(width, HIDDEN)
        self.up_proj = matrix(width, HIDDEN)
        self.down_proj = matrix(HIDDEN, width, gain=0.1)

    def forward(self, x):
        x = x.bfloat16()
        hidden = F.silu(linear(x, self.gate_proj).float()) * linear(x, self.up_proj).float()
        return linear(hidden, self.down_proj).float()


class Layer(nn.Module):
    def __init__(self, block: Block):
        super().__init__()
        if block.kv_heads:
            self.input_layernorm = nn.Parameter(torch.ones(HIDDEN))
            self.self_attn = Attention(block.kv_heads)
        if block.ffn_width:
            self.post_attention_layernorm = nn.Parameter(torch.ones(HIDDEN))
            self.mlp = Ffn(block.ffn_width)
        self.block = block

    def forward(self, x, cos, sin, mask):
        if self.block.kv_heads:
            x = x + self.self_attn(norm(x, self.input_layernorm), cos, sin, mask)
        if self.block.ffn_width:
            x = x + self.mlp(norm(x, self.post_attention_layernorm))
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.randn(VOCAB, HIDDEN) * 0.5)
        self.layers = nn.ModuleList(Layer(block) for block in BLOCKS)
        self.norm = nn.Parameter(torch.ones(HIDDEN))
        self.lm_head = matrix(VOCAB, HIDDEN, gain=0.5)

    def forward(self, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Logits [rows, tokens, vocabulary] of right-padded rows; padding lies after all that matters."""
        tokens = ids.shape[1]
        cos, sin = cos[:tokens], sin[:tokens]
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)
        x = F.embedding(ids, self.embed_tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return linear(norm(x, self.norm), self.lm_head).float()


def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * gain * columns**-0.5)
