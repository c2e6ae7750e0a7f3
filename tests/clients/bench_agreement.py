"""`lnserve bench` and NVIDIA's aiperf measure the same server, and must agree with each other and
with what the server itself wrote down.

The server's answers come at set moments, in steps so large that what a busy machine adds to a timer
is far below the 5 % that are allowed. Where one of the tools was held up all the same, the median of
some runs stands for it; they take turns.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from checks import run
from paced_server import PacedServer

AIPERF = pathlib.Path(sys.prefix) / "bin" / "aiperf"
DEMO = pathlib.Path(__file__).parents[2] / "server" / "demo"
SOURCE = "aiperf: docs/metrics_reference.md"
# Nobody answers there: what is asked of a hub fails, and is seen.
NO_HUB = "http://127.0.0.1:9"

ALLOWED = 0.05
N_RUNS = 3
N_REQUESTS = 6
N_TOKENS = 10
N_USERS = 2


def by_aiperf(folder, url):
    """One run of aiperf: its figures under our names."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, tokenizer)
    command = [AIPERF, "profile", "-m", "paced", "--url", url, "--endpoint-type", "chat",
               "--streaming", "--use-server-token-count", "--tokenizer", tokenizer,
               "--artifact-dir", folder / "report", "--ui", "none", "--no-gpu-telemetry",
               "--no-server-metrics", "--concurrency", str(N_USERS),
               "--request-count", str(N_REQUESTS), "--prompt-input-tokens-mean", "40",
               "--output-tokens-mean", str(N_TOKENS)]
    environment = os.environ | {"HF_ENDPOINT": NO_HUB, "HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, env=environment, check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-2000:]
    report = json.loads((folder / "report" / "profile_export_aiperf.json").read_text())
    return {
        "TTFT": report["time_to_first_token"]["avg"],
        "TPOT": report["inter_token_latency"]["avg"],
        "ITL": report["inter_chunk_latency"]["avg"],
        "E2E": report["request_latency"]["avg"],
        "output tokens/s": report["output_token_throughput"]["avg"],
        "requests/s": report["request_throughput"]["avg"],
    }


def by_lnserve(folder, url, program):
    """One run of `lnserve bench`."""
    result = folder / "result.json"
    command = [program, "bench", "--url", url, "--concurrency", str(N_USERS),
               "--requests", str(N_REQUESTS), "--isl", "40", "--osl", str(N_TOKENS),
               "--warmup", "0", "--check-answers", "0", "--lag-max-ms", "100000", "--quiet",
               "--json", result]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-2000:]
    figures = json.loads(result.read_text())["runs"][0]["figures"]
    return {
        "TTFT": figures["ttft_ms"]["mean"],
        "TPOT": figures["tpot_ms"]["mean"],
        "ITL": figures["itl_ms"]["mean"],
        "E2E": figures["e2e_ms"]["mean"],
        "output tokens/s": figures["output_tokens_per_s"],
        "requests/s": figures["requests_per_s"],
    }


def by_server(answers):
    """What the server wrote down of the last run's requests."""
    # What went before is how tools look at a server, not what they measure.
    answers = answers[-N_REQUESTS:]
    assert [len(moments) for _, moments in answers] == [N_TOKENS] * N_REQUESTS, answers
    ttft = statistics.mean(moments[0] - arrived for arrived, moments in answers)
    e2e = statistics.mean(moments[-1] - arrived for arrived, moments in answers)
    gap = statistics.mean((moments[-1] - moments[0]) / (N_TOKENS - 1) for _, moments in answers)
    first = min(arrived for arrived, _ in answers)
    seconds = max(moments[-1] for _, moments in answers) - first
    return {
        "TTFT": ttft * 1e3,
        "TPOT": gap * 1e3,
        "ITL": gap * 1e3,
        "E2E": e2e * 1e3,
        "output tokens/s": N_REQUESTS * N_TOKENS / seconds,
        "requests/s": N_REQUESTS / seconds,
    }


def agreement(checks, addresses):
    """Ratios of figures, and their medians."""
    ratios = {"aiperf": [], "lnserve": [], "lnserve to aiperf": []}
    with PacedServer() as server:
        url = f"http://127.0.0.1:{server.port}"
        for _ in range(N_RUNS):
            seen, written = {}, {}
            tools = [("aiperf", by_aiperf, []), ("lnserve", by_lnserve, [addresses.program])]
            for name, tool, arguments in tools:
                with tempfile.TemporaryDirectory() as folder:
                    seen[name] = tool(pathlib.Path(folder), url, *arguments)
                written[name] = by_server(server.take())
                ratio = {key: seen[name][key] / written[name][key] for key in seen[name]}
                ratios[name].append(ratio)
            both = {key: seen["lnserve"][key] / seen["aiperf"][key] for key in seen["lnserve"]}
            ratios["lnserve to aiperf"].append(both)
    for pair, runs in ratios.items():
        for key in runs[0]:
            median = statistics.median(one[key] for one in runs)
            name = f"{pair}: {key} within {ALLOWED:.0%}" if " to " in pair else \
                f"{pair} to the server's own: {key} within {ALLOWED:.0%}"
            checks.true(name, abs(median - 1) <= ALLOWED, [one[key] for one in runs], SOURCE)
            print(f"      median {median:.4f}")


if __name__ == "__main__":
    run("agreement", 18, [agreement])
