"""Writes the golden checkpoints and what a float64 forward pass makes of them.

    python make_golden.py                        # all cases, and the table in README.md
    python make_golden.py --find-seed CASE N     # print how seeds 1..N would do
"""

from __future__ import annotations

import os

# One thread sums in one order: the files must not depend on the number of cores.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cases import CASES
from checkpoint import (
    STORED,
    Tensors,
    quantize,
    random_tensors,
    write_checkpoint,
    write_safetensors,
)
from config import write_configs
from crosscheck import crosscheck_llama
from model import Case
from oracle import E4M3_MAX, Numerics, Oracle, check_round_e4m3

HERE = Path(__file__).parent
N_TOKENS, N_CALIBRATION, N_PROMPT, N_GREEDY = 40, 64, 12, 16
N_TRIALS = 64
# About ten times the error of float32 arithmetic: it pushes a few activations over a tie of e4m3.
JITTER = 1e-6


@dataclass
class Golden:
    """One case worked out."""

    tensors: Tensors
    tokens: np.ndarray  # [T]
    logits: np.ndarray  # [T, V] float64
    greedy: np.ndarray  # [G]
    gaps: np.ndarray  # [G]


@dataclass
class Noise:
    """Differences in logits that are nobody's fault: over N_TRIALS runs in other arithmetic."""

    f32: float  # largest, float32 with shuffled sums
    f32_median: float  # of the runs' largest
    flip: float | None  # FP8: largest under JITTER, when some activations round the other way
    narrow: float | None  # largest, activations rounded to the model's 16-bit dtype
    narrow_rms: float | None  # root mean square of the same


def random_tokens(case: Case, stream: int, n_tokens: int) -> np.ndarray:
    """A sequence without special tokens."""
    rng = np.random.default_rng([case.seed, stream])
    return rng.integers(1, case.model.special_tokens()[0], n_tokens)


def work_out(case: Case) -> Golden:
    """Draw the checkpoint, quantise it, run it."""
    tokens = random_tokens(case, 1, N_TOKENS)
    tokens[list(case.zero_token_at)] = 0
    calibration = random_tokens(case, 2, N_CALIBRATION)
    tensors = quantize(case, random_tensors(case), calibration)
    oracle = Oracle(case.model, tensors)
    greedy, gaps = oracle.greedy(tokens[:N_PROMPT], N_GREEDY)
    return Golden(tensors, tokens, oracle.logits(tokens), greedy, gaps)


def measure_noise(case: Case, golden: Golden, n_trials: int = N_TRIALS) -> Noise:
    """How far honest engines may be from the golden logits."""

    def differences(stream: int, dtype: type, stored: type | None, jitter: float) -> np.ndarray:
        """[trials, T, V]"""
        runs = []
        for trial in range(n_trials):
            random = np.random.default_rng([case.seed, stream, trial])
            numerics = Numerics(dtype, stored, random, jitter)
            runs.append(Oracle(case.model, golden.tensors, numerics).logits(golden.tokens))
        return np.abs(np.array(runs) - golden.logits)

    f32 = differences(3, np.float32, None, 0.0).max(axis=(1, 2))
    noise = Noise(float(f32.max()), float(np.median(f32)), None, None, None)
    if case.quantization is not None:
        noise.flip = float(differences(4, np.float64, None, JITTER).max())
    if case.model.dtype != "F32":
        narrow = differences(5, np.float32, STORED[case.model.dtype], 0.0)
        noise.narrow, noise.narrow_rms = float(narrow.max()), float(np.sqrt(np.mean(narrow**2)))
    return noise


def check_liveliness(case: Case, golden: Golden) -> str:
    """Assert that the case is worth testing against; returns what was seen, for the log."""
    spreads, n_clamped = [], 0

    def observe(name: str, x: np.ndarray) -> None:
        nonlocal n_clamped
        if name.endswith(".scores"):
            spreads.append(x.std())
        elif f"{name}.input_scale" in golden.tensors:
            scale = golden.tensors[f"{name}.input_scale"].astype(np.float64)
            n_clamped += int((np.abs(x) > scale * E4M3_MAX).sum())

    Oracle(case.model, golden.tensors, observe=observe).logits(golden.tokens)
    spread = golden.logits.std()
    assert 2.0 < spread < 4.0, spread
    assert all(0.7 < s < 2.5 for s in spreads), spreads
    assert len(set(golden.greedy.tolist())) >= N_GREEDY // 2, golden.greedy
    assert golden.greedy.max() < case.model.special_tokens()[0], golden.greedy
    seen = f"logit std {spread:.2f}, score std {min(spreads):.2f}-{max(spreads):.2f}"
    return f"{seen}, {n_clamped} clamped" if case.quantization else seen


def write_case(case: Case, golden: Golden, noise: Noise) -> None:
    """The case's folder, from nothing."""
    folder = HERE / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_configs(folder, case)
    write_checkpoint(folder, case, golden.tensors)
    results = {
        "tokens": golden.tokens.astype(np.int64),
        "logits": golden.logits.astype(np.float32),
        "greedy": golden.greedy.astype(np.int64),
        "greedy_gap": golden.gaps.astype(np.float32),
    }
    metadata = {"noise_f32": f"{noise.f32:.3e}", "noise_f32_median": f"{noise.f32_median:.3e}"}
    if noise.flip is not None:
        metadata["noise_flip"] = f"{noise.flip:.3e}"
    if noise.narrow is not None:
        narrow = f"noise_{case.model.dtype.lower()}"
        metadata |= {narrow: f"{noise.narrow:.3e}", f"{narrow}_rms": f"{noise.narrow_rms:.3e}"}
    write_safetensors(folder / "golden.safetensors", results, metadata)


def table_row(case: Case, golden: Golden, noise: Noise) -> str:
    """One line of README.md's table."""
    safe = int((golden.gaps > 2 * noise.f32).sum())
    cells = [
        f"`{case.name}`",
        f"{noise.f32:.1e}",
        f"{noise.f32_median:.1e}",
        "" if noise.flip is None else f"{noise.flip:.2f}",
        "" if noise.narrow is None else f"{noise.narrow:.2f}",
        "" if noise.narrow_rms is None else f"{noise.narrow_rms:.3f}",
        f"{golden.gaps.min():.2f}",
        f"{safe}/{len(golden.gaps)}",
    ]
    return f"| {' | '.join(cells)} |"


def write_table(rows: list[str]) -> None:
    """Replace the table in README.md."""
    readme, begin, end = HERE / "README.md", "<!-- noise -->\n", "<!-- /noise -->\n"
    before, rest = readme.read_text().split(begin)
    after = rest.split(end)[1]
    titles = ["case", "f32 max", "f32 median", "flips", "16-bit max", "16-bit rms"]
    titles += ["smallest gap", "greedy safe in f32"]
    head = [f"| {' | '.join(titles)} |", "|---" + "|--:" * (len(titles) - 1) + "|"]
    readme.write_text(before + begin + "\n".join(head + rows) + "\n" + end + after)


def find_seed(case: Case, n_seeds: int) -> None:
    """Print the seeds that pass, with what matters in the choice: noise and the greedy gap."""
    for seed in range(1, n_seeds + 1):
        candidate = case.with_seed(seed)
        golden = work_out(candidate)
        try:
            seen = check_liveliness(candidate, golden)
        except AssertionError:
            continue
        noise = measure_noise(candidate, golden, n_trials=8)
        gap = golden.gaps.min()
        print(f"seed {seed:4} gap {gap:.3f} noise {noise.f32:.1e} {seen}", flush=True)


def main() -> None:
    """Write everything, or look for a seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--find-seed", nargs=2, metavar=("CASE", "N"))
    arguments = parser.parse_args()
    check_round_e4m3()
    if arguments.find_seed:
        name, n_seeds = arguments.find_seed
        find_seed(next(case for case in CASES if case.name == name), int(n_seeds))
        return
    rows = []
    for case in CASES:
        golden = work_out(case)
        print(f"{case.name}: {check_liveliness(case, golden)}", flush=True)
        if case.schema == "llama":
            differences = crosscheck_llama(case, golden.tensors, golden.tokens)
            print(f"  against transformers: {differences}")
        noise = measure_noise(case, golden)
        write_case(case, golden, noise)
        rows.append(table_row(case, golden, noise))
    write_table(rows)


if __name__ == "__main__":
    main()
