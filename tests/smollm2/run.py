"""Real weights from the outside: SmolLM2-135M-Instruct, converted, served, and compared with an
engine that is not ours.

    python tests/smollm2/run.py PROGRAM MODEL.gguf FOLDER

FOLDER is where checkpoints go; it is made anew.

**What is compared.** llama.cpp runs the same weights in F32 with an F32 cache and answers every
prompt greedily. Of `prompts.txt` the first twenty are taken whose every step leaves no doubt: the
likeliest token is ahead of the second by MARGIN nats at least, so that a rounding cannot turn the
choice. On each of them the program must write the same text, with one rank and with three.

**How much FP8 loses.** The perplexity of fixed texts (`text.txt` and the repository's LICENSE),
as the program scores it, with BF16 weights and with both FP8 formats: within BOUND of each other,
and within SAME of what a forward pass in NumPy finds (`network.py`), which reads the same files;
where inputs are rounded to e4m3 within SAME_FP8, since one at a boundary falls to either side:
NumPy itself moves by 0.3 % when it sums in another order. Static scales, and which modules both
formats leave in BF16, come from other texts: the prompts and `calibration.txt`. With none left
out NumPy's perplexity rises by 5.4 % with static scales and by 2.5 % with scales of rows and
tokens: e4m3 is coarse for so small a model. The noise moves a token's logarithm by a quarter, and
those of one text alike: on few texts the same loss is anything from nothing to twice as much.
"""

import json
import math
import pathlib
import re
import shutil
import sys
import urllib.request

import convert
import network
import xllamacpp

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from lanes import start  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
N_PROMPTS = 20
N_TOKENS = 16
MARGIN = 0.05
BOUND = 0.02
SAME = 0.0005
SAME_FP8 = 0.02
N_CHARS_MAX = 2400


def post(base, path, body):
    request = urllib.request.Request(
        base + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


class Reference:
    """llama.cpp in this process, asked over its own HTTP."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 4096
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # One thread: several wait for each other busily, which on a busy machine takes for ever.
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.warmup = False
        params.verbosity = 0
        self.server = xllamacpp.Server(params)
        self.base = self.server.listening_address

    def tokens(self, text):
        return post(self.base, "/tokenize", {"content": text, "add_special": False})["tokens"]

    def greedy(self, prompt):
        """The answer, and how far its least certain token was ahead."""
        body = {
            "prompt": prompt,
            "n_predict": N_TOKENS,
            "temperature": 0,
            "repeat_penalty": 1.0,
            "n_probs": 2,
            "cache_prompt": False,
        }
        answer = post(self.base, "/completion", body)
        margins = []
        for step in answer["completion_probabilities"]:
            first, second = step["top_logprobs"][:2]
            margins.append(first["logprob"] - second["logprob"])
        return answer["content"], min(margins)


class Program:
    """The server on one checkpoint."""

    def __init__(self, program, folder, n_ranks):
        options = ["--port", "0", "--log", "warn", "--tp", str(n_ranks), "--kv-dtype", "f32"]
        # As NumPy's forward pass does: what meets BF16 weights is not rounded.
        options += ["--f32-inputs"]
        options += ["--max-model-len", "1024", "--max-seqs", "4"]
        command = [program, "serve", str(folder), *options]
        self.process, printed = start(command)
        self.base = "http://" + re.search(r"http://([^/\s]+)", printed)[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def greedy(self, prompt):
        body = {"prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0}
        return post(self.base, "/v1/completions", body)["choices"][0]["text"]

    def perplexity(self, texts):
        known = []
        for text in texts:
            body = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
            scores = post(self.base, "/v1/completions", body)["choices"][0]["logprobs"]
            # The first has nothing before it, the last is not the text's.
            known += scores["token_logprobs"][1:-1]
        return math.exp(-sum(known) / len(known)), len(known)


def pieces(text):
    """Paragraphs, put together as long as they fit a request."""
    found = [""]
    for paragraph in text.split("\n\n"):
        if len(found[-1]) + len(paragraph) > N_CHARS_MAX:
            found.append("")
        found[-1] += paragraph + "\n\n"
    return found


def main():
    program, source, out = sys.argv[1:]
    out = pathlib.Path(out)
    shutil.rmtree(out, ignore_errors=True)
    model = convert.Model(source)
    convert.write_dense(model, out)
    reference = Reference(out / "reference.gguf")
    prompts = (FOLDER / "prompts.txt").read_text().splitlines()
    calibration = ["\n".join(prompts), *pieces((FOLDER / "calibration.txt").read_text())]
    calibration = [reference.tokens(text) for text in calibration]
    excluded, share = convert.write_quantized(model, out, calibration)
    n_left = len(excluded)
    print(f"{share:.1%} of projections are FP8, {n_left} modules are not", flush=True)

    chosen = []
    n_asked = 0
    for prompt in prompts:
        if len(chosen) == N_PROMPTS:
            break
        n_asked += 1
        answer, margin = reference.greedy(prompt)
        if margin >= MARGIN:
            chosen.append((prompt, answer))
    print(f"{len(chosen)} of {n_asked} prompts leave no doubt", flush=True)
    problems = []
    if len(chosen) < N_PROMPTS:
        problems.append(f"only {len(chosen)} prompts leave no doubt")
    for n_ranks in (1, 3):
        with Program(program, out / "bf16", n_ranks) as served:
            n_same = 0
            for prompt, expected in chosen:
                found = served.greedy(prompt)
                n_same += found == expected
                if found != expected:
                    problems.append(f"{n_ranks} ranks, {prompt!r}: {found!r}, not {expected!r}")
        print(f"bf16, {n_ranks} ranks: {n_same} of {len(chosen)} answers are llama.cpp's", flush=True)

    texts = pieces((FOLDER / "text.txt").read_text() + (FOLDER / "../../LICENSE").read_text())
    tokens = [reference.tokens(text) for text in texts]
    oracle = network.Network(model)
    plain = None
    for name in ("bf16", "modelopt-fp8", "fp8-dynamic"):
        stored = network.Stored(out / name / "model.safetensors")
        expected, n_expected = oracle.perplexity(tokens, stored.linear)
        print(f"{name}, NumPy: perplexity {expected:.4f} of {n_expected} tokens", flush=True)
        for n_ranks in (1, 3):
            with Program(program, out / name, n_ranks) as served:
                found, n_tokens = served.perplexity(texts)
            plain = plain or found
            change, off = found / plain - 1, found / expected - 1
            said = f"{name}, {n_ranks} ranks: perplexity {found:.4f}, {change:+.2%} of BF16's, "
            said += f"{off:+.2%} of NumPy's"
            print(said, flush=True)
            if n_tokens != n_expected:
                problems.append(f"{name}: {n_tokens} tokens, not {n_expected}")
            same = SAME if name == "bf16" else SAME_FP8
            if abs(change) > BOUND or abs(off) > same:
                problems.append(said)
    shutil.rmtree(out)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
