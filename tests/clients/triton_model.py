"""What both scripts for Triton's clients expect of the model: its tensors, and a request's inputs.

The names, data types and shapes are those of TensorRT-LLM's ensemble
(triton_backend/all_models/inflight_batcher_llm/ensemble/config.pbtxt).
"""

import json

import numpy
from tritonclient.utils import InferenceServerException

KSERVE = "KServe v2 predict protocol"
BINARY = "Triton: extension_binary_data.md"
CONFIG = "Triton: extension_model_configuration.md"
STATS = "Triton: extension_statistics.md"
REPOSITORY = "Triton: extension_model_repository.md"
SCHEDULE = "Triton: extension_schedule_policy.md"
LOGGING = "Triton: extension_logging.md"
TRACE = "Triton: extension_trace.md"
MEMORY = "Triton: extension_shared_memory.md"
PARAMETERS = "Triton: extension_parameters.md"
ENSEMBLE = "TensorRT-LLM: inflight_batcher_llm/ensemble/config.pbtxt"
CLIENT = "tritonclient: the docstring of the call"

PROMPT = "What is 27 + 58?"

# Name, data type, values in a row.
INPUTS = [
    ("text_input", "BYTES", 1),
    ("max_tokens", "INT32", 1),
    ("num_return_sequences", "INT32", 1),
    ("bad_words", "BYTES", -1),
    ("stop_words", "BYTES", -1),
    ("exclude_input_in_output", "BOOL", 1),
    ("end_id", "INT32", 1),
    ("pad_id", "INT32", 1),
    ("top_k", "INT32", 1),
    ("top_p", "FP32", 1),
    ("temperature", "FP32", 1),
    ("length_penalty", "FP32", 1),
    ("repetition_penalty", "FP32", 1),
    ("min_tokens", "INT32", 1),
    ("presence_penalty", "FP32", 1),
    ("frequency_penalty", "FP32", 1),
    ("seed", "UINT64", 1),
    ("return_log_probs", "BOOL", 1),
    ("return_context_logits", "BOOL", 1),
    ("return_generation_logits", "BOOL", 1),
    ("return_perf_metrics", "BOOL", 1),
    ("return_num_input_tokens", "BOOL", 1),
    ("return_num_output_tokens", "BOOL", 1),
    ("beam_width", "INT32", 1),
    ("stream", "BOOL", 1),
    ("guided_decoding_guide_type", "BYTES", 1),
    ("guided_decoding_guide", "BYTES", 1),
]

OUTPUTS = [
    ("text_output", "BYTES"),
    ("cum_log_probs", "FP32"),
    ("output_log_probs", "FP32"),
    ("num_input_tokens", "INT32"),
    ("num_output_tokens", "INT32"),
    ("kv_cache_alloc_new_blocks", "INT32"),
    ("kv_cache_reused_blocks", "INT32"),
    ("kv_cache_alloc_total_blocks", "INT32"),
    ("arrival_time_ns", "INT64"),
    ("first_scheduled_time_ns", "INT64"),
    ("first_token_time_ns", "INT64"),
    ("last_token_time_ns", "INT64"),
]

TYPES = {name: data_type for name, data_type, _ in INPUTS} | {
    "ignore_eos": "BOOL",
    "return_finish_reason": "BOOL",
    "sampling_parameters": "BYTES",
    "random_seed": "UINT64",
    "min_length": "INT32",
    "streaming": "BOOL",
}

NUMPY = {
    "BYTES": numpy.object_,
    "INT32": numpy.int32,
    "UINT64": numpy.uint64,
    "FP32": numpy.float32,
    "BOOL": numpy.bool_,
}


def arrays(members):
    """Name, data type and array of each of `members`; a value is a row, a list of lists a batch."""
    for name, value in members.items():
        rows = value if isinstance(value, list) and isinstance(value[0], list) else [
            value if isinstance(value, list) else [value]
        ]
        data_type = TYPES[name]
        if data_type == "BYTES":
            rows = [[text.encode() for text in row] for row in rows]
        yield name, data_type, numpy.array(rows, dtype=NUMPY[data_type])


def question(**members):
    """The inputs of a short greedy answer, with some added or replaced."""
    return {"text_input": PROMPT, "max_tokens": 12, "ignore_eos": True} | members


def texts(result, name="text_output"):
    """An output's strings, flat. From JSON the library makes strings, from bytes it makes bytes."""
    flat = result.as_numpy(name).flatten()
    return [text if isinstance(text, str) else text.decode() for text in flat]


def check_answers(checks, infer, wire):
    """What answers hold, whatever the wire. `infer(members, **options)` asks `demo`."""
    plain = infer(question())
    answer = texts(plain)[0]
    checks.equal("an answer has one text", plain.as_numpy("text_output").shape, (1, 1), ENSEMBLE)
    checks.true("it says something", answer, answer, ENSEMBLE)
    checks.equal("greedy answers repeat", texts(infer(question()))[0], answer, ENSEMBLE)
    named = infer(question(), request_id="abc-1").get_response()
    named = named["id"] if isinstance(named, dict) else named.id
    checks.equal("the id comes back", named, "abc-1", KSERVE)
    for name in ("cum_log_probs", "output_log_probs", "num_output_tokens", "arrival_time_ns"):
        unasked = plain.as_numpy(name)
        checks.equal(f"{name} is not there unasked", unasked, None, ENSEMBLE)
    told = infer(question(return_log_probs=True, return_num_input_tokens=True,
                          return_num_output_tokens=True, return_finish_reason=True,
                          return_perf_metrics=True))
    checks.equal("asking for more changes no text", texts(told)[0], answer, ENSEMBLE)
    each = told.as_numpy("output_log_probs")
    checks.equal("every token has a score", each.shape, (1, 1, 12), ENSEMBLE)
    checks.true("scores are logarithms", (each <= 0).all(), each, ENSEMBLE)
    total = told.as_numpy("cum_log_probs")
    checks.true("their sum is told", abs(total[0, 0] - each.sum()) < 1e-3, total, ENSEMBLE)
    checks.equal("output tokens", told.as_numpy("num_output_tokens").tolist(), [[12]], ENSEMBLE)
    n_input = told.as_numpy("num_input_tokens")
    checks.true("input tokens", n_input[0, 0] > 4, n_input, ENSEMBLE)
    checks.equal("the finish reason", texts(told, "finish_reason"), ["length"], "lnserve: README")
    moments = [told.as_numpy(name)[0, 0] for name, kind in OUTPUTS if kind == "INT64"]
    checks.true("moments are in order", moments == sorted(moments), moments, ENSEMBLE)
    blocks = [told.as_numpy(name)[0, 0] for name, _ in OUTPUTS if name.startswith("kv_cache")]
    checks.equal("KV blocks add up", blocks[0] + blocks[1], blocks[2], ENSEMBLE)
    check_options(checks, infer, answer)
    check_guides(checks, infer)
    check_batches(checks, infer, answer)
    checks.equal(f"{wire} answers are not scored unasked", plain.as_numpy("cum_log_probs"), None,
                 ENSEMBLE)


def check_guides(checks, infer):
    """`guided_decoding_guide` in the kinds that the ensemble knows."""
    one = lambda kind, guide, **members: texts(infer(question(
        guided_decoding_guide_type=kind, guided_decoding_guide=guide, max_tokens=60, **members)))[0]
    digits = one("regex", "[0-9]{3}")
    checks.true("a regex is kept", len(digits) == 3 and digits.isdigit(), digits, ENSEMBLE)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}},
              "required": ["n"], "additionalProperties": False}
    value = json.loads(one("json_schema", json.dumps(schema)))
    checks.true("a schema is kept", set(value) == {"n"} and value["n"] <= 9, value, ENSEMBLE)
    checks.equal("a grammar is kept", one("ebnf_grammar", 'start: "a" "b"'), "ab", ENSEMBLE)
    text = one("json", "").lstrip()
    checks.true("json is an object", text.startswith("{"), text, ENSEMBLE)
    for name, kind, guide, words in (
        ("a kind that is none", "xml", "x", ["guided_decoding_guide_type", "xml"]),
        ("a regex that is none", "regex", "[a", ["guided_decoding_guide"]),
        ("a schema that is none", "json_schema", "{", ["guided_decoding_guide"]),
        ("no guide", "regex", "", ["guided_decoding_guide"]),
    ):
        checks.raises(f"{name} is refused", InferenceServerException, words, ENSEMBLE,
                      lambda kind=kind, guide=guide: one(kind, guide))


def check_options(checks, infer, answer):
    """Inputs that shape an answer."""
    one = lambda **members: texts(infer(question(**members)))[0]
    checks.equal("top_k 1 is greedy", one(top_k=1, temperature=0.7), answer, ENSEMBLE)
    checks.equal("an end_id beyond the vocabulary is nothing", one(end_id=1048576), answer, ENSEMBLE)
    checks.equal("pad_id is nothing", one(pad_id=5), answer, ENSEMBLE)
    checks.equal("beam_width 1 is nothing", one(beam_width=1), answer, ENSEMBLE)
    checks.equal("an empty stop word is nothing", one(stop_words=[""]), answer, ENSEMBLE)
    checks.equal("the prompt may be kept", one(exclude_input_in_output=False), PROMPT + answer,
                 ENSEMBLE)
    short = one(max_tokens=3)
    checks.true("max_tokens cuts", answer.startswith(short) and short != answer, short, ENSEMBLE)
    letter = next(c for c in answer[1:] if c != answer[0])
    stopped = one(stop_words=[letter, "never said"])
    checks.equal("a stop word ends and is left out", stopped, answer.split(letter)[0], ENSEMBLE)
    hot = {"temperature": 1.5, "max_tokens": 40}
    drawn = one(seed=7, **hot)
    checks.equal("a seed repeats", one(seed=7, **hot), drawn, ENSEMBLE)
    checks.equal("random_seed is the same", one(random_seed=7, **hot), drawn,
                 "TensorRT-LLM: tensorrt_llm_bls/config.pbtxt")
    others = {one(seed=seed, **hot) for seed in range(4)}
    checks.true("other seeds draw otherwise", len(others) > 1, others, ENSEMBLE)
    checks.equal("seeds are unsigned", one(seed=2**64 - 1, **hot), one(seed=2**64 - 1, **hot),
                 ENSEMBLE)
    long = {"max_tokens": 40}
    plain = one(**long)
    checks.equal("a top_p of nearly nothing is greedy",
                 one(top_p=1e-4, temperature=1.0, seed=3, **long), plain, ENSEMBLE)
    for name, none, much in (("repetition_penalty", 1.0, 2.0), ("presence_penalty", 0.0, 2.0),
                             ("frequency_penalty", 0.0, 2.0)):
        checks.equal(f"a {name} of {none} is nothing", one(**{name: none}, **long), plain, ENSEMBLE)
        punished = one(**{name: much}, **long)
        checks.true(f"a {name} of {much} is something", punished != plain, punished, ENSEMBLE)
    digit = next(c for c in plain if c.isdigit())
    tamed = one(bad_words=[digit], **long)
    checks.true("a bad word is not said", digit not in tamed, tamed, ENSEMBLE)
    as_json = {"text_input": PROMPT, "sampling_parameters":
               '{"max_tokens": 12, "temperature": "0", "ignore_eos": true}'}
    checks.equal("vLLM's sampling_parameters", texts(infer(as_json))[0], answer,
                 "vllm_backend: README, Triton's vLLM backend")
    several = infer(question(num_return_sequences=3, temperature=1.5, seed=1, max_tokens=30))
    checks.equal("several answers", several.as_numpy("text_output").shape, (1, 3), ENSEMBLE)
    checks.true("they differ", len(set(texts(several))) > 1, texts(several), ENSEMBLE)


def check_batches(checks, infer, answer):
    """Several prompts in one request."""
    batch = {name: [[value], [value]] for name, value in question().items()}
    two = infer(batch)
    checks.equal("a batch has a row a prompt", two.as_numpy("text_output").shape, (2, 1), KSERVE)
    checks.equal("each is answered as if alone", texts(two), [answer, answer], KSERVE)
    batch["max_tokens"] = [[12], [5]]
    batch["return_log_probs"] = [[True], [True]]
    batch["return_num_output_tokens"] = [[True], [True]]
    uneven = infer(batch)
    checks.equal("rows have lengths of their own",
                 uneven.as_numpy("num_output_tokens").tolist(), [[12], [5]], ENSEMBLE)
    scores = uneven.as_numpy("output_log_probs")
    checks.equal("scores are filled up", scores.shape, (2, 1, 12), ENSEMBLE)
    checks.true("with zeros", (scores[1, 0, 5:] == 0).all(), scores, ENSEMBLE)
