"""The forward pass, written for reading: one sequence, every position, float64.

Shapes: T tokens, D hidden, H query heads, K KV heads, d head_dim, V vocabulary, W FFN width.
A linear weight is [out, in], as checkpoints store it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from model import Attention, Linear, Model, RopeScaling, SwiGlu

E4M3_MAX = 448.0


@dataclass
class Numerics:
    """How numbers are kept. The oracle is float64; the others exist to measure noise.

    `stored` is a narrower type that every activation is rounded to between operations (None: keep
    `dtype`). `random` shuffles the terms of each dot product, so that no two runs sum alike.
    `jitter` is a random error added to every activation, as a share of its row's root mean square.
    """

    dtype: type = np.float64
    stored: type | None = None
    random: np.random.Generator | None = None
    jitter: float = 0.0

    def keep(self, x: np.ndarray) -> np.ndarray:
        """`x` as the next operation sees it."""
        if self.jitter:
            row_rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
            x = x + self.jitter * row_rms * self.random.standard_normal(x.shape)
        if self.stored is not None:
            x = x.astype(self.stored)
        return x.astype(self.dtype)

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a [m, k], b [n, k] -> [m, n], summed over k."""
        if self.random is not None:
            shuffled = self.random.permutation(a.shape[-1])
            a, b = a[:, shuffled], b[:, shuffled]
        return a @ b.T


EXACT = Numerics()


def round_e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest e4m3 value, ties to even, saturating at 448; computed and returned in x's dtype.

    Spelled out because ml_dtypes goes from float64 through float32 and so rounds twice.
    """
    x = np.clip(x, -E4M3_MAX, E4M3_MAX)
    _, exponent = np.frexp(x)  # |x| = m * 2^exponent with 0.5 <= m < 1
    # Three mantissa bits below the leading one; subnormals share the spacing of 2^-6.
    spacing = np.ldexp(np.ones_like(x), np.maximum(exponent - 1, -6) - 3)
    return np.rint(x / spacing) * spacing


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [T, D], weight [D] -> [T, D]."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * weight


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, dtype: type = np.float64
) -> np.ndarray:
    """Angle per position of each rotated pair: [d / 2]."""
    exponents = np.arange(0, head_dim, 2).astype(dtype) / dtype(head_dim)
    plain = dtype(1) / dtype(theta) ** exponents
    if scaling is None:
        return plain
    # The number of turns that a pair makes over the original context decides: many turns are left
    # alone, few are slowed by `factor`, and in between the two are blended.
    turns = dtype(scaling.original_max) * plain / dtype(2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = np.clip((turns - dtype(low)) / dtype(high - low), 0, 1)
    return (1 - blend) * plain / dtype(scaling.factor) + blend * plain


def rotate(x: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """x [T, heads, d] -> the same, element i turned against i + d/2 by position * frequency."""
    positions = np.arange(x.shape[0]).astype(x.dtype)
    angles = positions[:, None, None] * frequencies  # [T, 1, d/2]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(n_tokens: int, window: int | None) -> np.ndarray:
    """[T, T] bool: may query i read key j?"""
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)[None, :]
    causal = distance >= 0
    return causal if window is None else causal & (distance < window)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def token_scale(x: np.ndarray) -> np.ndarray:
    """What maps the largest magnitude of each row of x [T, in] onto that of e4m3: [T, 1]."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    return np.where(largest == 0, 1, largest / x.dtype.type(E4M3_MAX))


def ignore_event(_what: str, _x: np.ndarray) -> None:
    """The observer that does not look."""


class Oracle:
    """One model and its tensors as stored in the checkpoint.

    Which linears are quantised, and how, is read off the tensors themselves: an FP8 weight has a
    `weight_scale`; with an `input_scale` beside it activations are static, without one they are
    scaled per token. `observe(name, x)` is called with the input of each linear, the keys and
    values before they are cached, and the scaled attention scores.
    """

    def __init__(
        self,
        model: Model,
        tensors: dict[str, np.ndarray],
        numerics: Numerics = EXACT,
        observe: Callable[[str, np.ndarray], None] = ignore_event,
    ):
        self.model, self.tensors, self.numerics, self.observe = model, tensors, numerics, observe
        scaling = model.rope_scaling
        self.frequencies = rope_frequencies(
            model.head_dim, model.rope_theta, scaling, numerics.dtype
        )

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """tokens [T] -> [T, V]."""
        embedding = self.get("model.embed_tokens.weight")
        h = embedding[tokens]
        for i, block in enumerate(self.model.blocks):
            layer = f"model.layers.{i}"
            if block.mixer is not None:
                x = self.norm(h, f"{layer}.input_layernorm")
                h = self.keep(h + self.mixer(block.mixer, x, f"{layer}.self_attn"))
            if block.ffn is not None:
                x = self.norm(h, f"{layer}.post_attention_layernorm")
                h = self.keep(h + self.ffn(block.ffn, x, f"{layer}.mlp"))
        h = self.norm(h, "model.norm")
        # Logits are kept wide even where activations are narrow, as engines do.
        head = embedding if self.model.tied else self.get("lm_head.weight")
        return self.numerics.dot(h, head)

    def greedy(self, prompt: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The n tokens that follow the prompt, and top-1 minus top-2 logit of each: [n], [n]."""
        sequence, gaps = list(prompt), []
        for _ in range(n_tokens):
            last = self.logits(np.array(sequence))[-1]
            second, first = np.sort(last)[-2:]
            sequence.append(int(np.argmax(last)))
            gaps.append(first - second)
        return np.array(sequence[len(prompt) :]), np.array(gaps)

    def mixer(self, mixer: Attention | Linear, x: np.ndarray, name: str) -> np.ndarray:
        """x [T, D], already normed -> [T, D]."""
        if isinstance(mixer, Linear):
            return self.linear([f"{name}.linear_attn"], x)[0]
        return self.attention(mixer, x, name)

    def ffn(self, ffn: SwiGlu | Linear, x: np.ndarray, name: str) -> np.ndarray:
        """x [T, D], already normed -> [T, D]."""
        if isinstance(ffn, Linear):
            return self.linear([f"{name}.linear_mlp"], x)[0]
        gate, up = self.linear([f"{name}.gate_proj", f"{name}.up_proj"], x)  # [T, W] each
        return self.linear([f"{name}.down_proj"], self.keep(silu(gate) * up))[0]

    def attention(self, attention: Attention, x: np.ndarray, name: str) -> np.ndarray:
        """x [T, D] -> [T, D]."""
        model, n_tokens = self.model, x.shape[0]
        modules = [f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj"]
        q, k, v = (y.reshape(n_tokens, -1, model.head_dim) for y in self.linear(modules, x))
        q = self.queries(rotate(q, self.frequencies))  # [T, H, d]
        k = self.cached(rotate(k, self.frequencies), f"{name}.k_proj.k_scale")  # [T, K, d]
        v = self.cached(v, f"{name}.v_proj.v_scale")
        assert k.shape[1] == model.n_kv_heads(attention)
        mask = visible(n_tokens, attention.window)
        heads = []
        for j in range(model.n_heads):
            kv = j // attention.group
            scores = self.numerics.dot(q[:, j], k[:, kv]) / np.sqrt(q.dtype.type(model.head_dim))
            self.observe(f"{name}.scores", scores[mask])
            weights = self.softmax(np.where(mask, scores, -np.inf))
            heads.append(self.numerics.dot(weights, v[:, kv].T))  # [T, d]
        return self.linear([f"{name}.o_proj"], self.keep(np.concatenate(heads, axis=-1)))[0]

    def queries(self, q: np.ndarray) -> np.ndarray:
        """Rotated queries [T, H, d] as the scores see them."""
        return self.keep(q)

    def softmax(self, scores: np.ndarray) -> np.ndarray:
        """Weights of the values."""
        return softmax(scores)

    def cached(self, x: np.ndarray, scale_name: str) -> np.ndarray:
        """Keys or values [T, K, d] as a reader of the cache gets them back."""
        self.observe(scale_name, x)
        if scale_name not in self.tensors:
            return self.keep(x)
        scale = self.get(scale_name)
        return round_e4m3(x / scale) * scale

    def linear(self, modules: list[str], x: np.ndarray) -> list[np.ndarray]:
        """Apply modules that share the input x [T, in] -> one [T, out] each.

        Together, because a fused static quantisation has one input scale: the largest.
        """
        for module in modules:
            self.observe(module, x)
        static = [m for m in modules if f"{m}.input_scale" in self.tensors]
        input_scale = max((self.get(f"{m}.input_scale") for m in static), default=None)
        return [self.keep(self.project(module, x, input_scale)) for module in modules]

    def project(self, module: str, x: np.ndarray, input_scale: np.ndarray | None) -> np.ndarray:
        """x [T, in] -> [T, out] with the weight of one module, in the form it is stored."""
        weight = self.get(f"{module}.weight")
        if f"{module}.weight_scale" not in self.tensors:
            return self.numerics.dot(x, weight)
        weight_scale = self.get(f"{module}.weight_scale").reshape(-1)  # [1] or [out]
        if f"{module}.input_scale" not in self.tensors:
            input_scale = token_scale(x)
        return self.numerics.dot(round_e4m3(x / input_scale), weight) * input_scale * weight_scale

    def norm(self, h: np.ndarray, name: str) -> np.ndarray:
        """The named RMSNorm of h [T, D]."""
        return self.keep(rms_norm(h, self.get(f"{name}.weight"), self.model.norm_eps))

    def keep(self, x: np.ndarray) -> np.ndarray:
        """See Numerics.keep."""
        return self.numerics.keep(x)

    def get(self, name: str) -> np.ndarray:
        """A stored tensor, widened to the dtype of the computation."""
        return self.tensors[name].astype(self.numerics.dtype, copy=False)


def check_round_e4m3() -> None:
    """Hold round_e4m3 against ml_dtypes where that rounds once: on float32."""
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * 10
    x = np.concatenate([x, x * 2.0**-9, np.linspace(-448, 448, 100_001, dtype=np.float32)])
    expected = x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(round_e4m3(x), expected)
    assert np.array_equal(round_e4m3(x.astype(np.float64)), expected)
