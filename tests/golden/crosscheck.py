"""The oracle's own oracle: transformers' LlamaForCausalLM in float64."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np

from checkpoint import Tensors
from config import llama
from model import Case
from oracle import Oracle

BOUND = 1e-9


def crosscheck_llama(case: Case, tensors: Tensors, tokens: np.ndarray) -> list[float]:
    """Largest difference in logits, with and without rope scaling; asserts that both are tiny."""
    unscaled = dataclasses.replace(case.model, rope_scaling=None)
    differences = []
    for model in (case.model, unscaled):
        ours = Oracle(model, tensors).logits(tokens)
        theirs = transformers_logits(llama(model), tensors, tokens)
        differences.append(float(np.abs(ours - theirs).max()))
    assert all(difference < BOUND for difference in differences), differences
    return differences


def transformers_logits(config: dict, tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
    """tokens [T] -> [T, V] by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with float32_means_float64(torch):
        content = {key: value for key, value in config.items() if key != "torch_dtype"}
        model = LlamaForCausalLM(LlamaConfig(**content, attn_implementation="eager")).double()
        state = {name: torch.from_numpy(x.astype(np.float64)) for name, x in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
        model.tie_weights()
        with torch.no_grad():
            return model(torch.from_numpy(tokens)[None]).logits[0].numpy()


@contextlib.contextmanager
def float32_means_float64(torch):
    """transformers computes norms, softmax and rope in float32 whatever the model's dtype is.

    Under this context its unmodified code does them in float64, so that a bound of 1e-9 has sense.
    """
    saved = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved
