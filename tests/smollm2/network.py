"""The model in NumPy: what calibration looks at, and an oracle for the program's perplexities.

It computes in f32. Projections are computed by whoever is handed in: with the model's own weights,
or as a checkpoint's files say, whose weights and inputs are rounded to e4m3 by their scales.
"""

import json

import ml_dtypes
import numpy

E4M3_MAX = 448.0

# Projections that take the same input, which is quantized once: they are quantized together.
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)

STORED = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F32": numpy.float32,
}


def e4m3(values):
    return numpy.clip(values, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)


def rounded(values, scale):
    """What is left of values that were stored as e4m3."""
    return e4m3(values / scale).astype(numpy.float32) * scale


class Network:
    """A forward pass over one text, a block at a time. `linear` gets a projection's name and its
    input `[T, K]`, and gives `[T, N]`."""

    def __init__(self, model):
        self.model = model
        self.weights = model.weights()

    def linear(self, name, x):
        return x @ self.weights[name].T

    def embed(self, tokens):
        return self.weights["model.embed_tokens"][numpy.array(tokens)]

    def norm(self, name, x):
        mean = (x * x).mean(-1, keepdims=True)
        return x / numpy.sqrt(mean + self.model.eps) * self.weights[name]

    def block(self, x, block, linear):
        at = f"model.layers.{block}."
        y = self.norm(at + "input_layernorm", x)
        q, k, v = (linear(f"{at}self_attn.{name}_proj", y) for name in "qkv")
        x = x + linear(f"{at}self_attn.o_proj", self.attend(q, k, v))
        y = self.norm(at + "post_attention_layernorm", x)
        gate, up = linear(f"{at}mlp.gate_proj", y), linear(f"{at}mlp.up_proj", y)
        return x + linear(f"{at}mlp.down_proj", gate / (1 + numpy.exp(-gate)) * up)

    def attend(self, q, k, v):
        model, n = self.model, len(q)
        half = model.head_dim // 2
        angles = numpy.outer(numpy.arange(n), model.theta ** (-numpy.arange(half) / half))
        cos, sin = (f(angles).astype(numpy.float32) for f in (numpy.cos, numpy.sin))

        def heads(x, n_heads):
            """`[H, T, D]` for all query heads."""
            x = x.reshape(n, n_heads, -1).swapaxes(0, 1)
            return x.repeat(model.n_heads // n_heads, 0)

        def rope(x):
            a, b = x[..., :half], x[..., half:]
            return numpy.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        q, k = rope(heads(q, model.n_heads)), rope(heads(k, model.n_kv_heads))
        hidden = numpy.triu(numpy.full((n, n), -numpy.inf, numpy.float32), 1)
        scores = q @ k.swapaxes(1, 2) / numpy.float32(model.head_dim**0.5) + hidden
        scores = numpy.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return (scores @ heads(v, model.n_kv_heads)).swapaxes(0, 1).reshape(n, -1)

    def log_probabilities(self, x):
        """`[T, V]` behind the last block."""
        logits = self.norm("model.norm", x) @ self.weights["model.embed_tokens"].T
        logits -= logits.max(-1, keepdims=True)
        return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))

    def run(self, tokens, linear, begin=0, x=None, keep=None):
        """Log-probabilities; from a block on, if asked. `keep` gets what enters each block."""
        x = self.embed(tokens) if x is None else x
        for block in range(begin, self.model.n_blocks):
            if keep is not None:
                keep.append(x)
            x = self.block(x, block, linear)
        return self.log_probabilities(x)

    def perplexity(self, texts, linear):
        """Of texts given as tokens, and of how many of them."""
        known = []
        for tokens in texts:
            found = self.run(tokens, linear)[:-1]
            known.append(found[numpy.arange(len(found)), tokens[1:]].astype(numpy.float64))
        known = numpy.concatenate(known)
        return float(numpy.exp(-known.mean())), len(known)


class Stored:
    """A checkpoint's projections, from its file."""

    def __init__(self, path):
        content = path.read_bytes()
        n_header = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + n_header])
        header.pop("__metadata__", None)
        self.tensors = {}
        for name, entry in header.items():
            begin, end = (8 + n_header + offset for offset in entry["data_offsets"])
            values = numpy.frombuffer(content[begin:end], STORED[entry["dtype"]])
            self.tensors[name] = values.reshape(entry["shape"])

    def linear(self, name, x):
        wide = lambda what: self.tensors[f"{name}.{what}"].astype(numpy.float32)
        if f"{name}.weight_scale" not in self.tensors:
            return x @ wide("weight").T
        if f"{name}.input_scale" in self.tensors:
            scale = wide("input_scale")
        else:
            scale = numpy.abs(x).max(-1, keepdims=True) / E4M3_MAX
        return rounded(x, scale) @ (wide("weight") * wide("weight_scale")).T


def ranges(network, texts):
    """The largest magnitude of each projection's input, over texts given as tokens."""
    seen = {}

    def linear(name, x):
        seen[name] = max(seen.get(name, 0.0), float(numpy.abs(x).max()))
        return network.linear(name, x)

    for tokens in texts:
        network.run(tokens, linear)
    return seen


def sensitivities(network, tokens, seen):
    """By each group's names: how far the model's answers on one text are from its own (mean
    Kullback-Leibler divergence, in nats a token) when the group alone is FP8 with static scales."""
    entering = []
    own = network.run(tokens, network.linear, keep=entering)
    found = {}
    for block in range(network.model.n_blocks):
        for group in GROUPS:
            names = tuple(f"model.layers.{block}.{name}" for name in group)
            weights = {name: network.weights[name] for name in names}
            for name, values in weights.items():
                weights[name] = rounded(values, numpy.abs(values).max() / E4M3_MAX)

            def linear(name, x):
                if name not in weights:
                    return network.linear(name, x)
                return rounded(x, numpy.float32(seen[name] / E4M3_MAX)) @ weights[name].T

            changed = network.run(tokens, linear, block, entering[block])
            found[names] = float((numpy.exp(own) * (own - changed)).sum() / len(own))
    return found
