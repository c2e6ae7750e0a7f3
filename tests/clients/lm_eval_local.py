"""`lm-eval` scores the demo model through `/v1/completions`, on problems of this repository.

Its model `local-completions` asks for the tokenizer (`/tokenizer_info`, `/tokenize`), scores
choices with `echo` and `logprobs`, and generates answers. Source: lm-evaluation-harness, docs/API_guide.md.
"""

import json
import os
import pathlib
import tempfile

# No hub is asked for anything: the task's data lies beside its description.
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
from lm_eval.tasks import TaskManager

from checks import run

GUIDE = "lm-evaluation-harness, docs/API_guide.md"
PROBLEMS = pathlib.Path(__file__).parents[1] / "data" / "arithmetic.jsonl"
N_PROBLEMS = 24
TURN = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
PROMPT = (
    TURN.format("system", "detailed thinking {}")
    + TURN.format("user", "{{{{question}}}}")
    + "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
TASKS = {
    "demo_generates": """
task: demo_generates
output_type: generate_until
doc_to_text: {on}
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|eot_id|>"], max_gen_toks: 200, do_sample: false}}
filter_list:
  - name: last
    filter:
      - function: regex
        regex_pattern: "</think>[^0-9-]*(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "demo_chooses": """
task: demo_chooses
output_type: multiple_choice
doc_to_text: {off}
doc_to_choice: ["{{{{answer + 1}}}}", "{{{{answer}}}}", "{{{{answer + 10}}}}"]
doc_to_target: 1
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
}
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
"""


def write_tasks(folder):
    """The tasks' descriptions and their data."""
    problems = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
    problems = [one for one in problems if one["kind"] == "add"][:N_PROBLEMS]
    data = folder / "problems.json"
    data.write_text("\n".join(map(json.dumps, problems)))
    prompts = {mode: json.dumps(PROMPT.format(mode)) for mode in ("on", "off")}
    for name, task in TASKS.items():
        text = task.format(**prompts) + COMMON.format(data=json.dumps(str(data)))
        (folder / f"{name}.yaml").write_text(text)


def scores(checks, addresses):
    """Both ways in which the harness asks."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_tasks(folder)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        evaluated = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "demo",
                "base_url": f"http://{addresses.http}/v1/completions",
                "tokenizer_backend": "remote",
                "num_concurrent": 2,
                "max_length": 1024,
            },
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    results = evaluated["results"]
    solved = results["demo_generates"]["exact_match,last"]
    checks.true("it reasons to the answer", solved >= 0.9, results, GUIDE)
    chosen = results["demo_chooses"]["acc,none"]
    # Without reasoning it guesses, and far better than one in three.
    checks.true("it knows which sum is likely", chosen >= 0.5, results, GUIDE)
    asked = {name: count["effective"] for name, count in evaluated["n-samples"].items()}
    checks.equal("all were asked", asked, dict.fromkeys(TASKS, N_PROBLEMS), GUIDE)
    print(f"lm-eval: {solved:.2f} generated, {chosen:.2f} chosen", flush=True)


if __name__ == "__main__":
    run("lm-eval", 3, [scores])
