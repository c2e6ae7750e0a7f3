"""NVIDIA's perf_analyzer, the program that genai-perf runs, over both protocols.

Wheels of tritonclient carried it up to 2.49; the lane unpacks it beside the virtual environment.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from checks import run

SOURCE = "perf_analyzer: docs/cli.md"
ENVIRONMENT = pathlib.Path(sys.prefix)
PROGRAM = ENVIRONMENT / "perf" / "perf_analyzer"

N_TOKENS = 8
# On a busy machine one run of some thirty, over either wire, ends well, with a whole report, and
# leaves its file of requests empty. The server has answered all by then, as both count; why the
# program does so was not found. It is run again.
N_RUNS_MAX = 4
PROMPTS = ["What is 27 + 58?", "What is 3 + 4?"]


def measure(folder, url, *arguments):
    """One run: its report's first row, and the responses of each request, if it wrote them."""
    data = folder / "data.json"
    rows = [{"text_input": [text], "max_tokens": [N_TOKENS], "ignore_eos": [True]}
            for text in PROMPTS]
    if "--streaming" in arguments:
        rows = [row | {"stream": [True]} for row in rows]
    data.write_text(json.dumps({"data": rows}))
    report, profile = folder / "report.csv", folder / "profile.json"
    command = [PROGRAM, "-m", "demo", "-u", url, "--input-data", data, "-f", report,
               "--profile-export-file", profile, "--concurrency-range", "2",
               "--shape", "stop_words:1", "--shape", "bad_words:1",
               "--request-count", "24", *arguments]
    libraries = ":".join(str(path) for path in ENVIRONMENT.glob("lib/*/site-packages/nvidia/*/lib"))
    done = subprocess.run(command, env=os.environ | {"LD_LIBRARY_PATH": libraries}, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        return done, None, []
    with report.open() as lines:
        first = next(csv.DictReader(lines))
    written = profile.read_text()
    return done, first, json.loads(written)["experiments"][0]["requests"] if written else None


def check(checks, name, url, n_responses, *arguments):
    """A run without an error, whose answers are complete."""
    for _ in range(N_RUNS_MAX):
        with tempfile.TemporaryDirectory() as folder:
            done, report, requests = measure(pathlib.Path(folder), url, *arguments)
        if requests is not None:
            break
    checks.equal(f"{name}: it completes", done.returncode, 0, SOURCE + "\n" + done.stdout[-2000:])
    if report is None:
        return
    checks.true(f"{name}: it measured", float(report["Inferences/Second"]) > 0, report, SOURCE)
    requests = requests or []
    checks.true(f"{name}: requests ran", len(requests) >= 24, len(requests), SOURCE)
    counts = {len(one["response_timestamps"]) for one in requests}
    checks.equal(f"{name}: responses to each", counts, {n_responses}, SOURCE)
    checks.true(f"{name}: the server told its times", "Server Compute Infer" in report, report,
                SOURCE)


def protocols(checks, addresses):
    """Whole answers over both wires, and a stream over the one that has streams."""
    check(checks, "HTTP", addresses.http, 1, "-i", "http")
    check(checks, "gRPC", addresses.grpc, 1, "-i", "grpc")
    check(checks, "gRPC stream", addresses.grpc, N_TOKENS, "-i", "grpc", "--streaming", "--async")


if __name__ == "__main__":
    run("perf_analyzer", 15, [protocols])
