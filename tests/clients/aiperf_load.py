"""NVIDIA's aiperf, genai-perf's successor, over OpenAI's endpoints and Triton's generate_stream.

It loads the demo model's own tokenizer from a folder, so that it counts tokens for itself, and
asks no hub. It has no KServe client (0.13): generate_stream goes through its template endpoint.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from checks import run

SOURCE = "aiperf: docs/cli_options.md, docs/metrics_reference.md"
PROGRAM = pathlib.Path(sys.prefix) / "bin" / "aiperf"
DEMO = pathlib.Path(__file__).parents[2] / "server" / "demo"

N_REQUESTS = 16
N_TOKENS = 16
# Nobody answers there: what is asked of a hub fails, and is seen.
NO_HUB = "http://127.0.0.1:9"
TEMPLATE = (
    '{"text_input": {{ text|tojson }}, "max_tokens": {{ max_tokens }},'
    ' "stream": true, "ignore_eos": true}'
)


def measure(folder, addresses, *arguments):
    """One run: the process, its report, what it wrote of each request, what it read of /metrics."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    # Beside a configuration of a model that it does not know, it loads none.
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, tokenizer)
    command = [PROGRAM, "profile", "-m", "demo", "--url", f"http://{addresses.http}",
               "--tokenizer", tokenizer, "--artifact-dir", folder / "report", "--ui", "none",
               "--no-gpu-telemetry", "--random-seed", "7", "--concurrency", "2",
               "--request-count", str(N_REQUESTS), "--prompt-input-tokens-mean", "40",
               "--output-tokens-mean", str(N_TOKENS), *arguments]
    environment = os.environ | {"HF_ENDPOINT": NO_HUB, "HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, env=environment, check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        return done, None, [], None
    report = json.loads((folder / "report" / "profile_export_aiperf.json").read_text())
    lines = (folder / "report" / "profile_export.jsonl").read_text().splitlines()
    requests = [json.loads(line)["metrics"] for line in lines]
    metrics = json.loads((folder / "report" / "server_metrics_export.json").read_text())
    return done, report, requests, metrics


def values(requests, name):
    """A metric of each request."""
    return [one[name]["value"] for one in requests if name in one]


def check(checks, addresses, name, *arguments):
    """A run without an error, whose answers are complete. Returns what was seen of each."""
    with tempfile.TemporaryDirectory() as folder:
        done, report, requests, metrics = measure(pathlib.Path(folder), addresses, *arguments)
    checks.equal(f"{name}: it completes", done.returncode, 0, SOURCE + "\n" + done.stdout[-2000:])
    if report is None:
        return []
    ended = [report["error_summary"], report["was_cancelled"], report["is_complete"]]
    checks.equal(f"{name}: no error on the client's side", ended, [[], False, True], SOURCE)
    counts = [report[key]["avg"] for key in ("request_count", "completed_request_count")]
    checks.equal(f"{name}: all requests were answered", counts, [N_REQUESTS] * 2, SOURCE)
    checks.equal(f"{name}: each was recorded", len(requests), N_REQUESTS, SOURCE)
    latencies = values(requests, "request_latency")
    checks.true(f"{name}: each took its time", len(latencies) == N_REQUESTS and min(latencies) > 0,
                latencies, SOURCE)
    read = set(metrics["metrics"])
    wanted = {"vllm:generation_tokens", "vllm:time_to_first_token_seconds",
              "nv_inference_request_success"}
    checks.true(f"{name}: it read the server's metrics", wanted <= read, read, SOURCE)
    return requests


def check_stream(checks, name, requests):
    """Answers came piece by piece, the first before the last."""
    firsts, latencies = values(requests, "time_to_first_token"), values(requests, "request_latency")
    in_order = all(0 < first <= whole for first, whole in zip(firsts, latencies, strict=True))
    checks.true(f"{name}: the first token came before the end", in_order, (firsts, latencies),
                SOURCE)
    gaps = [len(one) for one in values(requests, "inter_chunk_latency")]
    checks.true(f"{name}: answers came in pieces", len(gaps) == N_REQUESTS and min(gaps) >= 2, gaps,
                SOURCE)


def check_lengths(checks, name, requests):
    """The server counts as many tokens as were asked for."""
    generated = values(requests, "usage_completion_tokens")
    checks.equal(f"{name}: tokens of each answer", generated, [N_TOKENS] * N_REQUESTS, SOURCE)


def openai(checks, addresses):
    """OpenAI's three endpoints."""
    endless = ["--extra-inputs", "ignore_eos:true"]
    requests = check(checks, addresses, "chat", "--endpoint-type", "chat", "--streaming", *endless,
                     "--use-server-token-count")
    check_stream(checks, "chat", requests)
    check_lengths(checks, "chat", requests)
    requests = check(checks, addresses, "completions", "--endpoint-type", "completions", *endless)
    check_lengths(checks, "completions", requests)
    told = values(requests, "usage_prompt_tokens")
    # A text begins with one token that the client does not count.
    counted = [n + 1 for n in values(requests, "input_sequence_length")]
    checks.equal("completions: tokens of each prompt", told, counted, SOURCE)
    requests = check(checks, addresses, "responses", "--endpoint-type", "responses", "--streaming",
                     "--use-server-token-count", *endless)
    # An answer that is cut short ends with `response.incomplete`, in which aiperf reads no usage.
    check_stream(checks, "responses", requests)


def triton(checks, addresses):
    """Triton's generate_stream, for the model's alias."""
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write(TEMPLATE)
        template.flush()
        requests = check(checks, addresses, "generate_stream", "--endpoint-type", "template",
                         "--streaming", "--custom-endpoint", "/v2/models/ensemble/generate_stream",
                         "--extra-inputs", f"payload_template:{template.name}",
                         "--extra-inputs", "response_field:text_output")
    check_stream(checks, "generate_stream", requests)


if __name__ == "__main__":
    run("aiperf", 33, [openai, triton])
