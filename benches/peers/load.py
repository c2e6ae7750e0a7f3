"""The load: one engine's share of a pass."""

import http.client
import json
import random
import threading
import time

N_PROMPT = 512
N_PROMPT_DECODE = 16
N_NEW = 96
BATCHES = (1, 8, 32)
N_PREFILLS = 3
# Behind the tokenizer's bytes and special tokens, before the end of the vocabulary.
FIRST_TOKEN, LAST_TOKEN = 1000, 32_000
# Nobody is waited for longer, on any machine.
PATIENCE = 600

drawn = random.Random(1)


def prompt(n_tokens):
    """Token ids that were never asked before."""
    return [drawn.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(n_tokens)]


def ask(port, ids, n_new):
    """One request, on a connection of its own, whose answer must have `n_new` tokens."""
    body = {
        "model": "m",
        "prompt": ids,
        "max_tokens": n_new,
        "temperature": 0,
        "ignore_eos": True,
        # llama.cpp's, off for a fair comparison; others know no such word.
        "cache_prompt": False,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("POST", "/v1/completions", json.dumps(body),
                       {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"port {port} answered {answer.status}: {text[:500]!r}")
    usage = json.loads(text)["usage"]
    told = (usage["prompt_tokens"], usage["completion_tokens"])
    if told != (len(ids), n_new):
        raise RuntimeError(f"port {port} read and wrote {told} tokens, not {(len(ids), n_new)}")


def seconds_of(port, n_requests, n_prompt, n_new):
    """How long so many requests take that are made at once."""
    failures = []

    def one(ids):
        try:
            ask(port, ids, n_new)
        except Exception as failure:  # handed to the caller, who raises it
            failures.append(failure)

    threads = [threading.Thread(target=one, args=(prompt(n_prompt),)) for _ in range(n_requests)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if failures:
        raise failures[0]
    return took


def warm_up(port):
    """Every shape that is measured, once: engines compile, pack and map pages on first use."""
    seconds_of(port, 1, N_PROMPT, 1)
    for n_requests in BATCHES:
        seconds_of(port, n_requests, N_PROMPT_DECODE, 8)


def measure(port):
    """What this engine does now: pairs of a case and tokens a second."""
    prefills = [seconds_of(port, 1, N_PROMPT, 1) for _ in range(N_PREFILLS)]
    yield "prefill 512", N_PROMPT / sorted(prefills)[N_PREFILLS // 2]
    for n_requests in BATCHES:
        took = seconds_of(port, n_requests, N_PROMPT_DECODE, N_NEW)
        yield f"decode {n_requests}", n_requests * N_NEW / took
