"""What a golden model is: plain descriptions, no arithmetic and no files.

A model is a list of blocks; a block has at most one mixer and at most one FFN. Everything the
oracle needs is stated here directly, so the oracle never reads a `config.json`: the file that
`checkpoint.py` writes and the engine parses cannot lead both astray in the same way.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """Causal attention whose query head j reads KV head j // group."""

    group: int
    window: int | None = None


@dataclass(frozen=True)
class Linear:
    """`h += W norm(h)`: what `replace_with_linear` leaves of a sub-block."""


@dataclass(frozen=True)
class SwiGlu:
    """`down(silu(gate(x)) * up(x))`; `ffn_mult` is set where the config states that."""

    width: int
    ffn_mult: float | None = None


@dataclass(frozen=True)
class Block:
    """One entry of the model's list; both parts absent is an empty block."""

    mixer: Attention | Linear | None = None
    ffn: SwiGlu | Linear | None = None


@dataclass(frozen=True)
class RopeScaling:
    """The `llama3` frequency scaling."""

    factor: float
    original_max: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class Model:
    """A whole model; `dtype` is the safetensors name of what unquantised weights are stored in."""

    blocks: tuple[Block, ...]
    hidden: int = 64
    n_heads: int = 8
    head_dim: int = 8
    vocab: int = 160
    dtype: str = "BF16"
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False

    def n_kv_heads(self, attention: Attention) -> int:
        """KV heads of one block."""
        assert self.n_heads % attention.group == 0
        return self.n_heads // attention.group

    def special_tokens(self) -> tuple[int, list[int]]:
        """bos and the three eos ids: the last four, never in a golden sequence."""
        return self.vocab - 4, [self.vocab - 3, self.vocab - 2, self.vocab - 1]


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored; `method` is 'modelopt' or 'compressed-tensors'."""

    method: str
    declared_in: str = "config.json"
    kv_fp8: bool = False
    ignore: tuple[str, ...] = ("lm_head",)
    # Modules whose calibrated input_scale is multiplied by the factor given.
    input_scale_factors: tuple[tuple[str, float], ...] = ()

    def covers(self, module: str) -> bool:
        """Whether `module` is stored in FP8."""
        return not any(fnmatch.fnmatch(module, pattern) for pattern in self.ignore)


@dataclass(frozen=True)
class Case:
    """One folder of golden data."""

    name: str
    seed: int
    model: Model
    n_shards: int = 1
    schema: str = "nemotron-nas"
    quantization: Quantization | None = None
    # Positions of the golden sequence that hold token 0, whose embedding is then all zeros.
    zero_token_at: tuple[int, ...] = ()

    def with_seed(self, seed: int) -> Case:
        """The same case drawn anew."""
        return dataclasses.replace(self, seed=seed)


def width_of(ffn_mult: float, hidden: int) -> int:
    """FFN width that a published `ffn_mult` stands for."""
    n = int(2 * ffn_mult * hidden / 3)
    return (n + 255) // 256 * 256


def swiglu_mult(ffn_mult: float, hidden: int) -> SwiGlu:
    """A SwiGLU that its config describes by `ffn_mult`."""
    return SwiGlu(width_of(ffn_mult, hidden), ffn_mult)
