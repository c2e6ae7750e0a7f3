"""Trains the demo model on generated arithmetic: a fixed, seeded number of steps on one thread."""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import chat
from model import MAX_POSITIONS, Model, rope_tables

TOKENS_A_STEP = 4096
POOL = 512  # examples sorted by length together, so that a batch has next to no padding
LOSS_TOKENS = 2500  # a constant divisor: batches of short direct answers must not weigh like long ones
IGNORED = -100


# --- data ----------------------------------------------------------------------------------------


class Batches:
    """An endless stream of (inputs, targets), each of at most TOKENS_A_STEP tokens of about one length."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.frames = chat.fast_prompts()
        self.pad = tokenizer.token_to_id(chat.PAD)
        self.ready: list[list] = []

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.ready:
            self.refill()
        return self.collate(self.ready.pop())

    def refill(self) -> None:
        examples = sorted((self.example() for _ in range(POOL)), key=lambda e: len(e[0]))
        batch: list = []
        for example in examples:
            if batch and (len(batch) + 1) * padded_length(len(example[0])) > TOKENS_A_STEP:
                self.ready.append(batch)
                batch = []
            batch.append(example)
        if len(batch) > 1:  # a batch of one row would be compiled anew for its shape
            self.ready.append(batch)
        self.rng.shuffle(self.ready)

    def example(self) -> tuple[list[int], int]:
        """Token ids and where the assistant's reply begins."""
        thinking, question, reply = chat.draw_conversation(self.rng)
        before, after = self.frames[thinking]
        prompt = self.encode(before + question + after)
        return prompt + self.encode(reply), len(prompt)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def collate(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        length = padded_length(max(len(ids) for ids, _ in batch))
        inputs = torch.full((len(batch), length), self.pad)
        targets = torch.full((len(batch), length), IGNORED)
        for row, (ids, start) in enumerate(batch):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
        return inputs, targets


def padded_length(tokens: int) -> int:
    """Inputs are one shorter than the example; a multiple of 8 suits the matrix units."""
    return math.ceil((tokens - 1) / 8) * 8


# --- optimizers ----------------------------------------------------------------------------------


class Muon:
    """Momentum whose update is made orthogonal; matrices of one shape are treated in one batch."""

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        self.lr, self.momentum = lr, momentum
        shapes: dict = {}
        for matrix in matrices:
            shapes.setdefault(tuple(matrix.shape), []).append(matrix)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros(len(g), *g[0].shape) for g in self.groups]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for group, buffer in zip(self.groups, self.buffers):
            gradient = torch.stack([p.grad for p in group])
            buffer.mul_(self.momentum).add_(gradient)
            update = orthogonal(gradient + self.momentum * buffer)
            rows, columns = group[0].shape
            rate = self.lr * scale * max(1.0, rows / columns) ** 0.5
            for parameter, delta in zip(group, update):
                parameter.sub_(delta, alpha=rate)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps towards the nearest semi-orthogonal matrix."""
    flip = x.shape[-2] > x.shape[-1]
    x = (x.mT if flip else x).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if flip else x).float()


def schedule(step: int, steps: int, warm_up: int = 150) -> float:
    """Warm-up, constant to 40 %, then linear down to 2 %."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = step / steps
    return 1.0 if done < 0.4 else 1.0 - 0.98 * (done - 0.4) / 0.6


# --- the loop ------------------------------------------------------------------------------------


def split_parameters(model: Model):
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]


def save(run: Path, model: Model, muon: Muon, adam, batches: Batches, step: int) -> None:
    state = {"model": model.state_dict(), "muon": muon.buffers, "adam": adam.state_dict(),
             "rng": batches.rng.getstate(), "ready": batches.ready, "step": step}
    torch.save(state, run / "latest.tmp")
    (run / "latest.tmp").rename(run / "latest.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints, the tokenizer and the log")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.006)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-after", type=int, default=0, help="end early, for timing")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = chat.train_tokenizer()
    tokenizer.save(str(options.run / "tokenizer.json"))

    model = Model()
    matrices, others = split_parameters(model)
    muon = Muon(matrices, options.lr)
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    batches = Batches(tokenizer, options.seed)
    first = 0
    if options.resume:
        state = torch.load(options.run / "latest.pt", weights_only=False)
        model.load_state_dict(state["model"])
        muon.buffers, first = state["muon"], state["step"]
        adam.load_state_dict(state["adam"])
        batches.rng.setstate(state["rng"])
        batches.ready = state["ready"]
    cos, sin = rope_tables(MAX_POSITIONS)

    @torch.compile(dynamic=True)
    def loss_of(inputs, targets):
        logits = model(inputs, cos, sin)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    begun, tokens, window = time.time(), 0, []
    for step in range(first, options.stop_after or options.steps):
        scale = schedule(step, options.steps)
        adam.param_groups[0]["lr"] = 3e-3 * scale
        inputs, targets = next(batches)
        for tensor in (inputs, targets):
            torch._dynamo.mark_dynamic(tensor, (0, 1))
        loss = loss_of(inputs, targets) / LOSS_TOKENS
        loss.backward()
        muon.step(scale)
        adam.step()
        model.zero_grad(set_to_none=True)
        tokens += inputs.numel()
        window.append(loss.item() * LOSS_TOKENS / max(1, int((targets != IGNORED).sum())))
        if (step + 1) % 50 == 0:
            seconds = time.time() - begun
            print(json.dumps({"step": step + 1, "loss": round(sum(window) / len(window), 4), "seconds": round(seconds),
                              "tokens_per_second": round(tokens / seconds)}), flush=True)
            window = []
        if (step + 1) % 250 == 0:
            save(options.run, model, muon, adam, batches, step + 1)
    save(options.run, model, muon, adam, batches, options.steps)


if __name__ == "__main__":
    main()
