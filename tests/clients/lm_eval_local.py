"""`lm-eval` scores the demo model through `/v1/completions`, on problems of this repository.

Its model `local-completions` asks for the tokenizer (`/tokenizer_info`, `/tokenize`), scores
choices with `echo` and `logprobs`, and generates answers. Source: lm-evaluation-harness,
docs/API_guide.md. What the model is known to score on these problems, in PyTorch with inputs of FP8
products rounded and no others, stands in tests/demo-model/README.md: so rounds the server here.
Attention with inputs of BF16, which processors with AMX compute, solves five of 250 more.
"""

import json
import os
import pathlib
import re
import sys
import tempfile

# No hub is asked for anything: the task's data lies beside its description.
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
from lm_eval.tasks import TaskManager

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from checks import run
from lanes import start  # noqa: E402

GUIDE = "lm-evaluation-harness, docs/API_guide.md"
KNOWN_BY = "tests/demo-model/README.md, What it reached"
PROBLEMS = pathlib.Path(__file__).parents[1] / "data" / "arithmetic.jsonl"
# All sums that the model has not seen.
N_PROBLEMS = 250
# How many of these it is known to solve, "FP8, greedy", thinking on and off.
KNOWN = {"demo_reasons": 250, "demo_answers": 180}
# What hangs on a rounding: as many as between PyTorch's FP8 and its BF16.
MARGIN = 2

TURN = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
PROMPT = (
    TURN.format("system", "detailed thinking {}")
    + TURN.format("user", "{{{{question}}}}")
    + "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def generates(mode, before):
    """A task whose answer is the number that is written first after `before`."""
    pattern = before + "[^0-9-]*(-?[0-9]+)"
    return {
        "output_type": "generate_until",
        "doc_to_text": PROMPT.format(mode),
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<|eot_id|>"], "max_gen_toks": 200, "do_sample": False},
        "filter_list": [
            {
                "name": "number",
                "filter": [
                    {"function": "regex", "regex_pattern": pattern},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


TASKS = {
    "demo_reasons": generates("on", "</think>"),
    "demo_answers": generates("off", "^"),
    "demo_chooses": {
        "output_type": "multiple_choice",
        "doc_to_text": PROMPT.format("off"),
        "doc_to_choice": ["{{answer + 1}}", "{{answer}}", "{{answer + 10}}"],
        "doc_to_target": 1,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}


def write_tasks(folder):
    """The tasks' descriptions (JSON is YAML) and their data."""
    problems = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
    problems = [one for one in problems if one["kind"] == "add"]
    data = folder / "problems.json"
    data.write_text("\n".join(map(json.dumps, problems)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "num_fewshot": 0,
    }
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))


def evaluate(program):
    """What the harness says of a server of its own."""
    command = [program, "serve", "demo", "--port", "0", "--f32-inputs", "--log", "warn"]
    server, printed = start(command)
    http = re.search(r"on http://(\S+)", printed)[1]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_tasks(folder)
            os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
            return lm_eval.simple_evaluate(
                model="local-completions",
                model_args={
                    "model": "demo",
                    "base_url": f"http://{http}/v1/completions",
                    "tokenizer_backend": "remote",
                    "num_concurrent": 2,
                    "max_length": 1024,
                },
                tasks=list(TASKS),
                task_manager=TaskManager(include_path=str(folder), include_defaults=False),
                bootstrap_iters=0,
            )
    finally:
        server.terminate()
        server.wait()


def scores(checks, addresses):
    """Both ways in which the harness asks."""
    evaluated = evaluate(addresses.program)
    results = evaluated["results"]
    for name, known in KNOWN.items():
        solved = round(results[name]["exact_match,number"] * N_PROBLEMS)
        is_known = abs(solved - known) <= MARGIN
        checks.true(f"{name}: the score that it is known for", is_known, (solved, known), KNOWN_BY)
        print(f"lm-eval: {name} {solved} of {N_PROBLEMS}, known {known}", flush=True)
    chosen = results["demo_chooses"]["acc,none"]
    # Without reasoning it guesses, and far better than one in three.
    checks.true("it knows which sum is likely", chosen >= 0.5, results, GUIDE)
    asked = {name: count["effective"] for name, count in evaluated["n-samples"].items()}
    checks.equal("all were asked", asked, dict.fromkeys(TASKS, N_PROBLEMS), GUIDE)
    print(f"lm-eval: {chosen:.2f} chosen", flush=True)


if __name__ == "__main__":
    run("lm-eval", 4, [scores])
