"""How far rounding alone moves the demo model: bounds for engines that keep activations in BF16.

Continues prompts greedily in float64, then runs the same tokens again with activations rounded to
BF16 after every operation, and in float32; in each run every sum has a random order. Prints how far
logits move, in standard deviations of a position's logits, as `tests/cuda.rs` measures it.

    VENV/bin/python demo_noise.py [--questions 50] [--tokens 24]
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from model import Attention, Block, Model, RopeScaling, SwiGlu, width_of
from oracle import Numerics, Oracle, round_e4m3

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "server" / "demo"
QUESTIONS = ROOT / "tests" / "data" / "arithmetic.jsonl"
DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
N_RUNS = 4
BF16 = ml_dtypes.bfloat16
# Name: dtype of the arithmetic, dtype of what is kept between operations, ranks.
KINDS = {
    "float32": (np.float32, None, 1),
    "BF16 activations": (np.float32, BF16, 1),
    "BF16 activations and partial results of 2 ranks": (np.float32, BF16, 2),
    "BF16 activations and partial results of 4 ranks": (np.float32, BF16, 4),
    "BF16 activations and partial results of 8 ranks": (np.float32, BF16, 8),
}


class Sharded(Oracle):
    """The same model on several ranks: what each makes of its inputs of `o` and `down` is kept
    before it is summed, and with it rounded."""

    def __init__(self, model: Model, tensors: dict, numerics: Numerics, n_ranks: int):
        super().__init__(model, tensors, numerics)
        self.n_ranks = n_ranks

    def project(self, module: str, x: np.ndarray, input_scale: np.ndarray | None) -> np.ndarray:
        """As `Oracle.project`; static scales only, which the demo has."""
        if not module.endswith(("o_proj", "down_proj")):
            return super().project(module, x, input_scale)
        scale = input_scale * self.get(f"{module}.weight_scale")
        quantized, weight = round_e4m3(x / input_scale), self.get(f"{module}.weight")
        shares = np.split(np.arange(x.shape[-1]), self.n_ranks)
        return sum(
            self.keep(self.numerics.dot(quantized[:, share], weight[:, share]) * scale)
            for share in shares
        )


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, in the dtype that it is stored in."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + at for at in entry["data_offsets"])
            stored = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
            tensors[name] = stored.reshape(entry["shape"])
    return tensors


def read_model(config: dict) -> Model:
    """The published schema's block list, for the variants that the demo has."""
    blocks = []
    for block in config["block_configs"]:
        attention, ffn = block["attention"], block["ffn"]
        assert not attention["replace_with_linear"] and not ffn["replace_with_linear"]
        window = attention["window_length"]
        mixer = None if attention["no_op"] else Attention(attention["n_heads_in_group"], window)
        width = None if ffn["no_op"] else width_of(ffn["ffn_mult"], config["hidden_size"])
        blocks.append(Block(mixer, None if width is None else SwiGlu(width)))
    rope = config["rope_scaling"]
    return Model(
        blocks=tuple(blocks),
        hidden=config["hidden_size"],
        n_heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
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


def prompts(n: int) -> list[list[int]]:
    """Questions with thinking on and off, in turn, in Llama-3's chat format."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    rendered = []
    for i, line in enumerate(QUESTIONS.read_text().splitlines()[:n]):
        system = ["detailed thinking on", "detailed thinking off"][i % 2]
        text = "<|begin_of_text|>" + header.format("system") + system + "<|eot_id|>"
        text += header.format("user") + json.loads(line)["question"] + "<|eot_id|>"
        text += header.format("assistant")
        rendered.append(tokenizer.encode(text, add_special_tokens=False).ids)
    return rendered


def continued(oracle: Oracle, prompt: list[int], n_tokens: int, ends: set[int]) -> tuple:
    """The sequence that the oracle goes on with, up to its end, and its logits [T, V]."""
    sequence = list(prompt)
    while True:
        logits = oracle.logits(np.array(sequence))
        is_over = len(sequence) > len(prompt) and sequence[-1] in ends
        if is_over or len(sequence) == len(prompt) + n_tokens:
            # The last token chosen is not fed.
            return np.array(sequence[:-1]), logits[:-1]
        sequence.append(int(logits[-1].argmax()))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    config = json.loads((DEMO / "config.json").read_text())
    tensors = {}
    for shard in sorted(DEMO.glob("*.safetensors")):
        tensors |= read_safetensors(shard)
    model = read_model(config)
    ends = set(config["eos_token_id"])
    found = {kind: [] for kind in KINDS}
    for prompt in prompts(arguments.questions):
        tokens, expected = continued(Oracle(model, tensors), prompt, arguments.tokens, ends)
        begin = len(prompt) - 1
        expected = expected[begin:]
        spread = expected.std(axis=-1, keepdims=True)
        for (kind, (dtype, stored, n_ranks)), run in product(KINDS.items(), range(N_RUNS)):
            numerics = Numerics(dtype, stored, np.random.default_rng([run, len(tokens)]))
            got = Sharded(model, tensors, numerics, n_ranks).logits(tokens)[begin:]
            off = np.abs(got - expected) / spread
            best, other = expected.argmax(-1), got.argmax(-1)
            at = np.arange(len(expected))
            gap = (expected[at, best] - expected[at, other]) / spread[:, 0]
            found[kind].append((off.max(-1), np.sqrt((off**2).mean(-1)), gap, best != other))
    for kind, rows in found.items():
        greatest, rms, gap, differs = (np.concatenate(column) for column in zip(*rows))
        print(
            f"{kind}, {N_RUNS} runs: {len(rms)} positions, {differs.sum()} other tokens, off by {greatest.max():.4f} "
            f"at most, on the whole by {rms.max():.4f} at most, {np.median(rms):.4f} in the middle, "
            f"tokens {gap.max():.4f} apart"
        )


if __name__ == "__main__":
    main()
