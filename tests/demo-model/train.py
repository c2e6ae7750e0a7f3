"""Trains the demo model on generated arithmetic: a fixed, seeded number of steps on one thread.

A checkpoint holds everything that the next step depends on, the random state included, so a run
that is stopped and resumed takes the same steps as one that is not.
"""

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
CHATS_FROM = 2000  # from this step on one example in five continues a conversation
ADAM_LR = 3e-3
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
        self.chats = False

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
        if self.chats and self.rng.random() < 0.2:
            before += chat.draw_earlier_exchanges(self.rng)
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


# --- the run -------------------------------------------------------------------------------------


class Training:
    """The model, its two optimizers and the data, advanced one step at a time."""

    def __init__(self, tokenizer: Tokenizer, steps: int, seed: int, lr: float):
        torch.manual_seed(seed)
        self.steps, self.done = steps, 0
        self.model = Model()
        matrices = [p for p in self.model.layers.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices, lr)
        self.adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)
        self.batches = Batches(tokenizer, seed)
        self.cos, self.sin = rope_tables(MAX_POSITIONS)
        self.summed_loss = torch.compile(self.summed_loss, dynamic=True)

    def summed_loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model(inputs, self.cos, self.sin)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def step(self) -> tuple[float, int]:
        """Returns the mean loss over the replies' tokens, and how many tokens went in."""
        scale = schedule(self.done, self.steps)
        self.adam.param_groups[0]["lr"] = ADAM_LR * scale
        self.batches.chats = self.done >= CHATS_FROM
        inputs, targets = next(self.batches)
        for tensor in (inputs, targets):
            torch._dynamo.mark_dynamic(tensor, (0, 1))
        loss = self.summed_loss(inputs, targets)
        (loss / LOSS_TOKENS).backward()
        self.muon.step(scale)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.done += 1
        return loss.item() / max(1, int((targets != IGNORED).sum())), inputs.numel()

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "muon": self.muon.buffers, "adam": self.adam.state_dict(),
                 "rng": self.batches.rng.getstate(), "ready": self.batches.ready, "step": self.done}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.buffers, self.done, self.batches.ready = state["muon"], state["step"], state["ready"]
        self.batches.rng.setstate(state["rng"])


def advance(training: Training, last: int, checkpoint: Path) -> None:
    begun, tokens, losses = time.time(), 0, []
    while training.done < last:
        loss, more = training.step()
        losses.append(loss)
        tokens += more
        if training.done % 50 == 0:
            seconds = time.time() - begun
            print(json.dumps({"step": training.done, "loss": round(sum(losses) / len(losses), 4),
                              "seconds": round(seconds), "tokens_per_second": round(tokens / seconds)}), flush=True)
            losses = []
        if training.done % 250 == 0 or training.done == last:
            training.save(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for the checkpoint and the tokenizer")
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.006, help="of the block matrices")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-after", type=int, default=0, help="stop at that step (resume goes on from there)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = chat.train_tokenizer()
    tokenizer.save(str(options.run / "tokenizer.json"))
    training = Training(tokenizer, options.steps, options.seed, options.lr)
    if options.resume:
        training.load(options.run / "latest.pt")
    advance(training, options.stop_after or options.steps, options.run / "latest.pt")


if __name__ == "__main__":
    main()
