"""Held against each other: what the program answers here and what the same program answers that was
compiled for another processor and runs in an emulator. Its sums are in the same order on every
processor that can multiply and add in one rounding, so that not a word may differ.

    tests/aarch64.py PROGRAM "EMULATOR... PROGRAM_FOR_AARCH64"
"""

import argparse
import subprocess
import sys

# What is asked, and how: greedily and drawn, in chunks that are smaller than the prompt, on
# several ranks, with caches of every type.
CASES = [
    ("What is 27 + 58?", ["--thinking", "on", "--temperature", "0"]),
    ("What is 6 * 7 - 12?", ["--thinking", "on", "--seed", "3"]),
    ("What is 93 - 48?", ["--thinking", "off", "--max-tokens-per-step", "16"]),
    ("What is 15 + 4 * 9?", ["--thinking", "on", "--tp", "2", "--kv-dtype", "bf16"]),
    ("What is 81 - 5 * 3?", ["--thinking", "on", "--kv-dtype", "f32", "--threads", "1"]),
]
TIMEOUT_S = 300


def answer(program, prompt, options):
    """What `program` prints: the answer, and what it thought before. There has to be one."""
    command = [*program, "chat", "demo", "--prompt", prompt, *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if ran.returncode or not ran.stdout.strip():
        sys.exit(f"{' '.join(command)}: status {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stderr + ran.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("here", help="the program for this machine")
    parser.add_argument("there", help="an emulator and the program for the other processor")
    arguments = parser.parse_args()
    n_different = 0
    for prompt, options in CASES:
        here = answer([arguments.here], prompt, options)
        there = answer(arguments.there.split(), prompt, options)
        n_different += here != there
        verdict = "the same" if here == there else f"DIFFERENT: {here!r} here, {there!r} there"
        print(f"{prompt:22} {' '.join(options):40} {len(here):4} characters, {verdict}", flush=True)
    if n_different:
        sys.exit(f"{n_different} of {len(CASES)} answers differ")


if __name__ == "__main__":
    main()
