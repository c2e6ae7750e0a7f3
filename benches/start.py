"""How soon the program is there, and how soon it speaks: from its start until it is ready, and from
a request until the first token of a prompt of 64 tokens, both with the demo model.

    python3 benches/start.py target/release/lnserve

The goals are 300 ms and 15 ms. Each request's prompt is another, so that nothing of it is cached.
"""

import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
from lanes import free_port  # noqa: E402

N_STARTS, N_REQUESTS = 10, 50
N_PROMPT_TOKENS = 64
READY_GOAL_MS, TOKEN_GOAL_MS = 300, 15
#: Nothing that comes at all takes longer.
PATIENCE_S = 60


def start(program):
    """A server, its port, and the milliseconds that it took to be ready."""
    port = free_port()
    began = time.perf_counter()
    process = subprocess.Popen([program, "serve", "demo", "--port", str(port), "--log", "error"],
                               stdout=subprocess.DEVNULL)
    while time.perf_counter() < began + PATIENCE_S:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return process, port, 1e3 * (time.perf_counter() - began)
        except ConnectionError:
            time.sleep(0.001)
    process.kill()
    sys.exit(f"not ready after {PATIENCE_S} s")


def first_token(connection, request_idx):
    """Milliseconds until a stream's first event."""
    prompt = [3 + (7 * request_idx + 5 * token_idx) % 90 for token_idx in range(N_PROMPT_TOKENS)]
    body = {"model": "demo", "prompt": prompt, "max_tokens": 2, "ignore_eos": True,
            "temperature": 0, "stream": True}
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body),
                       {"content-type": "application/json"})
    reply = connection.getresponse()
    line = reply.readline()
    took = 1e3 * (time.perf_counter() - began)
    if reply.status != 200 or not line.startswith(b"data: "):
        sys.exit(f"status {reply.status}: {line + reply.read()}")
    reply.read()
    return took


def told(what, goal_ms, took_ms):
    """A line."""
    took_ms = sorted(took_ms)
    median = statistics.median(took_ms)
    verdict = "held" if median <= goal_ms else "missed"
    print(f"{what}: {median:.1f} ms at the median of {len(took_ms)}, {took_ms[0]:.1f} to "
          f"{took_ms[-1]:.1f}; goal {goal_ms} ms: {verdict}")


def main():
    """Both."""
    ready_ms = []
    for start_idx in range(N_STARTS):
        process, port, took_ms = start(sys.argv[1])
        ready_ms.append(took_ms)
        if start_idx + 1 < N_STARTS:
            process.terminate()
            process.wait(PATIENCE_S)
    told("start to ready", READY_GOAL_MS, ready_ms)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        told("first token of 64", TOKEN_GOAL_MS,
             [first_token(connection, idx) for idx in range(N_REQUESTS)])
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


if __name__ == "__main__":
    main()
