"""Writes the held-out problems: 250 of each kind, none of which any training run can have drawn."""

import argparse
import json
import random
from pathlib import Path

import arithmetic

OF_EACH_KIND = 250


def held_out_problems(seed: int):
    rng = random.Random(seed)
    seen: set[str] = set()
    for _ in range(OF_EACH_KIND):
        for kind in arithmetic.KINDS:
            problem = fresh(rng, kind, seen)
            yield {"question": arithmetic.ask(rng, problem), "answer": problem.answer, "kind": kind}


def fresh(rng: random.Random, kind: str, seen: set[str]) -> arithmetic.Problem:
    while True:
        problem = arithmetic.draw_held_out(rng, kind)
        key = arithmetic.problem_key(problem)
        if key not in seen:
            seen.add(key)
            return problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    lines = [json.dumps(problem, ensure_ascii=False) for problem in held_out_problems(options.seed)]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
