"""How far rounding alone takes the GPU's arm from float64: what tests/cuda*.rs may allow.

Continues prompts greedily in float64, then runs the same tokens again with numbers rounded to BF16
where the GPU's kernels round them, on 1, 2, 4 and 8 ranks in turn. A rounding to e4m3 that falls
the other way moves an activation by a sixteenth, and with it more of those that follow: which way
a position goes is a matter of chance. So every run gets an error of 1e-6 on every activation, and
what counts is how the runs scatter. Differences are in standard deviations of a position's logits.

    VENV/bin/python gpu_noise.py                              # the demo model
    VENV/bin/python gpu_noise.py --checkpoint FOLDER          # any other, with random prompts
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from model import Attention, Block, Linear, Model, RopeScaling, SwiGlu, width_of
from oracle import Numerics, Oracle, round_e4m3, token_scale

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "server" / "demo"
QUESTIONS = ROOT / "tests" / "data" / "arithmetic.jsonl"
DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
N_RANKS = (1, 2, 4, 8)
JITTER = 1e-6
# A position hangs on its roundings where the best logit leads by more than LEAD_MIN nats, and the
# runs' leads scatter so widely that some of many must be below zero.
LEAD_MIN, N_SIGMAS = 1.0, 3


def round_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest BF16 value, in float64. By way of float32, which makes one tie in 65,536."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


class Kernels(Oracle):
    """The same model, rounded where the GPU's kernels round.

    BF16 are: the results of first projections, before their scales; rotated queries; softmax
    weights, before they are divided by their sum; each rank's partial result of second projections;
    the input of what is not quantised, and of what is quantised token by token over ranks. The
    residual stream is not rounded, and what is quantised with a static scale is rounded once.
    """

    def __init__(self, model: Model, tensors: dict, seed: list[int], n_ranks: int):
        random = np.random.default_rng(seed)
        super().__init__(model, tensors, Numerics(random=random, jitter=JITTER))
        self.n_ranks = n_ranks

    def norm(self, h: np.ndarray, name: str) -> np.ndarray:
        normed = super().norm(h, name)
        return round_bf16(normed) if name == "model.norm" else normed

    def queries(self, q: np.ndarray) -> np.ndarray:
        return round_bf16(q)

    def softmax(self, scores: np.ndarray) -> np.ndarray:
        weights = round_bf16(np.exp(scores - scores.max(axis=-1, keepdims=True)))
        return weights / weights.sum(axis=-1, keepdims=True)

    def cached(self, x: np.ndarray, scale_name: str) -> np.ndarray:
        return super().cached(x, scale_name) if scale_name in self.tensors else round_bf16(x)

    def project(self, module: str, x: np.ndarray, input_scale: np.ndarray | None) -> np.ndarray:
        is_first = module.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
        weight, scale, is_static = self.get(f"{module}.weight"), 1.0, False
        if f"{module}.weight_scale" not in self.tensors:
            x, weight = round_bf16(x), round_bf16(weight)
        else:
            is_static = f"{module}.input_scale" in self.tensors
            if not is_static:
                x = x if is_first else round_bf16(x)
                input_scale = token_scale(x)
            x = round_e4m3(x / input_scale)
            scale = input_scale * self.get(f"{module}.weight_scale").reshape(-1)
        if is_first:
            return round_bf16(x @ weight.T) * scale
        # A static scale is the product's; others come after the sum over ranks.
        before, after = (scale, 1.0) if is_static else (1.0, scale)
        shares = np.split(np.arange(x.shape[-1]), self.n_ranks)
        return sum(round_bf16(x[:, at] @ weight[:, at].T * before) for at in shares) * after


@dataclass
class Place:
    """One position of one prompt: what float64 says, and what the runs make of it."""

    prompt_idx: int
    n_after: int  # Tokens of the answer before it.
    lead: float  # Of the best logit over the second, in nats.
    leads: np.ndarray  # Of the same logit over the best other, by run.
    greatest: np.ndarray  # By run.
    rms: np.ndarray
    gap: np.ndarray  # Between the best logit and that of the token that the run takes.
    spread: float  # One standard deviation of the logits, in nats.

    @classmethod
    def measured(cls, at: tuple[int, int], expected: np.ndarray, got: np.ndarray) -> Place:
        """`expected` [V] and the runs' [R, V]."""
        spread, best = expected.std(), int(expected.argmax())
        off = np.abs(got - expected) / spread
        others = np.delete(got, best, axis=-1).max(axis=-1)
        gap = (expected[best] - expected[got.argmax(axis=-1)]) / spread
        lead = expected[best] - np.delete(expected, best).max()
        rms = np.sqrt((off**2).mean(axis=-1))
        return cls(*at, lead, got[:, best] - others, off.max(axis=-1), rms, gap, spread)

    def hangs(self) -> bool:
        """Whether its token is a matter of chance, although it looks decided."""
        return self.lead > LEAD_MIN and self.leads.mean() < N_SIGMAS * self.leads.std()


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, widened."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + at for at in entry["data_offsets"])
            stored = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
            tensors[name] = stored.reshape(entry["shape"]).astype(np.float64)
    return tensors


def read_model(config: dict) -> Model:
    """The published schema's block list."""
    n_heads, hidden = config["num_attention_heads"], config["hidden_size"]
    rope = config["rope_scaling"]
    blocks = []
    for block in config["block_configs"]:
        attention, ffn = block["attention"], block["ffn"]
        mixer = feed = None
        if attention["replace_with_linear"]:
            mixer = Linear()
        elif not attention["no_op"]:
            mixer = Attention(attention["n_heads_in_group"], attention["window_length"])
        if ffn["replace_with_linear"]:
            feed = Linear()
        elif not ffn["no_op"]:
            feed = SwiGlu(ffn.get("intermediate_size") or width_of(ffn["ffn_mult"], hidden))
        blocks.append(Block(mixer, feed))
    return Model(
        blocks=tuple(blocks),
        hidden=hidden,
        n_heads=n_heads,
        head_dim=config.get("head_dim") or hidden // n_heads,
        vocab=config["vocab_size"],
        rope_theta=config["rope_theta"],
        rope_scaling=RopeScaling(
            rope["factor"],
            rope["original_max_position_embeddings"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
        ),
        norm_eps=config["rms_norm_eps"],
    )


def questions(n: int) -> Iterator[tuple[str, list[int]]]:
    """Questions with thinking on and off, in turn, in Llama-3's chat format."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    for i, line in enumerate(QUESTIONS.read_text().splitlines()[:n]):
        question, thinking = json.loads(line)["question"], ["on", "off"][i % 2]
        text = "<|begin_of_text|>" + header.format("system")
        text += f"detailed thinking {thinking}<|eot_id|>" + header.format("user")
        text += question + "<|eot_id|>" + header.format("assistant")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        yield f"{question!r} (thinking {thinking})", ids


def random_prompts(n: int, vocab: int) -> Iterator[tuple[str, list[int]]]:
    """Of 1 to 26 tokens."""
    random = np.random.default_rng(0)
    for i in range(n):
        yield f"prompt {i}", random.integers(0, vocab, 1 + 5 * (i % 6)).tolist()


def continued(oracle: Oracle, prompt: list[int], n_tokens: int, ends: set[int]) -> tuple:
    """The sequence that the oracle goes on with, up to its end, and the logits of its answer."""
    sequence = list(prompt)
    while True:
        logits = oracle.logits(np.array(sequence))
        is_over = len(sequence) > len(prompt) and sequence[-1] in ends
        if is_over or len(sequence) == len(prompt) + n_tokens:
            # The last token chosen is not fed.
            return np.array(sequence[:-1]), logits[len(prompt) - 1 : -1]
        sequence.append(int(logits[-1].argmax()))


def report(cache: str, places: list[Place], names: list[str]) -> None:
    """What the runs have in common, and a line for each position that hangs on its roundings."""
    greatest, rms = (np.stack([getattr(place, x) for place in places]) for x in ("greatest", "rms"))
    gaps = np.stack([place.gap for place in places if not place.hangs()])
    nats = max(place.gap.max() * place.spread for place in places if not place.hangs())
    print(f"{cache} cache: {rms.shape[0]} positions, {rms.shape[1]} runs")
    print(
        f"  off by {greatest.max():.4f} at most, on the whole by {rms.max():.4f} at most, in the "
        f"worst run by {np.quantile(rms, 0.99, axis=0).max():.4f} at 99 of 100 and by "
        f"{np.median(rms, axis=0).max():.4f} in the middle"
    )
    print(
        f"  other tokens: {(gaps > 0).sum(axis=0).mean():.1f} a run, at most {gaps.max():.4f} or "
        f"{nats:.2f} nats apart, where they do not hang on roundings"
    )
    for place in filter(Place.hangs, places):
        leads = place.leads
        print(
            f"  {names[place.prompt_idx]}, token {place.n_after}: leads by {place.lead:.2f} nats, "
            f"in the runs by {leads.mean():.2f} ± {leads.std():.2f}, at least {leads.min():.2f}"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--prompts", type=int, default=56)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--runs", type=int, default=24)
    arguments = parser.parse_args()
    config = json.loads((arguments.checkpoint / "config.json").read_text())
    tensors = {}
    for shard in sorted(arguments.checkpoint.glob("*.safetensors")):
        tensors |= read_safetensors(shard)
    model, eos = read_model(config), config["eos_token_id"]
    is_demo = arguments.checkpoint == DEMO
    n = arguments.prompts
    named = questions(n) if is_demo else random_prompts(n, model.vocab)
    names, prompts = zip(*named, strict=True)
    without = {name: x for name, x in tensors.items() if not name.endswith(("k_scale", "v_scale"))}
    for cache, stored in {"FP8": tensors, "BF16": without}.items():
        if cache == "FP8" and len(stored) == len(without):
            continue
        places = []
        for prompt_idx, prompt in enumerate(prompts):
            exact = Oracle(model, stored)
            tokens, expected = continued(exact, prompt, arguments.tokens, set(np.atleast_1d(eos)))
            runs = []
            for run in range(arguments.runs):
                kernels = Kernels(model, stored, [run, prompt_idx], N_RANKS[run % len(N_RANKS)])
                runs.append(kernels.logits(tokens)[len(prompt) - 1 :])
            for n_after, row in enumerate(expected):
                got = np.stack([logits[n_after] for logits in runs])
                places.append(Place.measured((prompt_idx, n_after), row, got))
        report(cache, places, names)


if __name__ == "__main__":
    main()
