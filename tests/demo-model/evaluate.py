"""Greedy answers to the held-out problems: shipped FP8 folder or BF16 parameters, thinking on and off."""

import argparse
import json
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer

import chat
from export import end_ids, published_names
from reference import Reference, load_folder

MAX_TOKENS = 384


def generate(reference: Reference, prompts: list[list[int]], ends: list[int], pick) -> list[list[int]]:
    """Continues all prompts together; each row runs at its own position until it ends."""
    rows = len(prompts)
    lengths = torch.tensor([len(p) for p in prompts])
    width = int(lengths.max())
    ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
    cache = reference.new_cache(rows)
    logits = reference.forward(ids, torch.arange(width).expand(rows, width), cache)
    # Padding wrote K and V behind each prompt; those slots are overwritten before they are read.
    token = pick(logits[torch.arange(rows), lengths - 1])
    position, replies, running = lengths.clone(), [[] for _ in prompts], torch.arange(rows)
    while True:
        alive = ~torch.isin(token, torch.tensor(ends)) & (position < MAX_TOKENS - 1)
        for row, t in zip(running[alive].tolist(), token[alive].tolist()):
            replies[row].append(t)
        if not alive.any():
            return replies
        if not alive.all():
            running, token, position = running[alive], token[alive], position[alive]
            cache = [layer and (layer[0][alive], layer[1][alive]) for layer in cache]
        token = pick(reference.forward(token[:, None], position[:, None], cache)[:, -1])
        position = position + 1


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def nucleus(seed: int, temperature: float = 0.6, top_p: float = 0.95):
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: torch.Tensor) -> torch.Tensor:
        chances, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
        chances[chances.cumsum(-1) - chances >= top_p] = 0
        return order.gather(-1, torch.multinomial(chances, 1, generator=generator))[:, 0]

    return pick


def last_integer(text: str) -> int | None:
    numbers = re.findall(r"-?\d+", text.split("</think>")[-1])
    return int(numbers[-1]) if numbers else None


def prompt_text(problems: list[dict], i: int, thinking: bool, earlier: int) -> str:
    """Problem `i`, asked after `earlier` others and their answers."""
    messages = [{"role": "system", "content": chat.THINKING_ON if thinking else chat.THINKING_OFF}]
    for j in range(i - earlier, i):
        messages += [{"role": "user", "content": problems[j]["question"]},
                     {"role": "assistant", "content": chat.answer_text(problems[j]["answer"])}]
    return chat.render(messages + [{"role": "user", "content": problems[i]["question"]}])


def score(reference, tokenizer, problems, thinking: bool, pick, options) -> dict[str, float]:
    texts = [prompt_text(problems, i, thinking, options.earlier) for i in range(len(problems))]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    show = options.show
    replies = [tokenizer.decode(ids) for ids in generate(reference, prompts, end_ids(tokenizer), pick)]
    right: dict[str, list[bool]] = {}
    for problem, text in zip(problems, replies):
        correct = last_integer(text) == problem["answer"] and ("<think>" in text) == thinking
        right.setdefault(problem["kind"], []).append(correct)
        right.setdefault("all", []).append(correct)
        if not correct and show > 0:
            show -= 1
            print(f"  wrong: {problem['question']} = {problem['answer']}: {text!r}")
    return {kind: round(100 * sum(marks) / len(marks), 1) for kind, marks in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the shipped folder")
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="also measure this training run's parameters, unquantized")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--sampled", action="store_true", help="temperature 0.6, top-p 0.95 instead of greedy")
    parser.add_argument("--earlier", type=int, default=0, help="ask each problem after that many answered ones")
    parser.add_argument("--show", type=int, default=0, help="print that many wrong answers per row")
    options = parser.parse_args()

    torch.set_num_threads(1)
    problems = [json.loads(line) for line in options.problems.read_text(encoding="utf-8").splitlines()][: options.limit]
    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
    config, tensors = load_folder(options.folder)
    subjects = {"FP8": Reference(config, tensors, MAX_TOKENS)}
    if options.run:
        state = torch.load(options.run / "latest.pt", weights_only=False)["model"]
        subjects["BF16"] = Reference(config, published_names(state), MAX_TOKENS)
    how, pick = ("sampled", nucleus(seed=4)) if options.sampled else ("greedy", greedy)
    for name, reference in subjects.items():
        for thinking in (True, False):
            result = score(reference, tokenizer, problems, thinking, pick, options)
            print(name, how, "thinking", "on " if thinking else "off", result, flush=True)


if __name__ == "__main__":
    main()
