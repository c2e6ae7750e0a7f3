"""`tritonclient.http` against the server's KServe v2 side."""

import json

import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from checks import run
from triton_model import (BINARY, CLIENT, CONFIG, ENSEMBLE, INPUTS, KSERVE, LOGGING, MEMORY,
                          OUTPUTS, PARAMETERS, PROMPT, REPOSITORY, SCHEDULE, STATS, TRACE, arrays,
                          check_answers, question, texts)


def infer(client, members, binary=True, outputs=None, **options):
    """Asks `demo`."""
    inputs = []
    for name, data_type, array in arrays(members):
        inputs.append(triton.InferInput(name, list(array.shape), data_type))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    model = options.pop("model", "demo")
    return client.infer(model, inputs, outputs=outputs, **options)


def health(checks, addresses):
    """What load balancers ask."""
    client = triton.InferenceServerClient(addresses.http)
    checks.equal("the server lives", client.is_server_live(), True, KSERVE)
    checks.equal("the server is ready", client.is_server_ready(), True, KSERVE)
    for model in ("demo", "ensemble"):
        checks.equal(f"{model} is ready", client.is_model_ready(model), True, KSERVE)
        checks.equal(f"{model} 1 is ready", client.is_model_ready(model, "1"), True, KSERVE)
        checks.equal(f"{model} 2 is not", client.is_model_ready(model, "2"), False, KSERVE)
    checks.equal("a stranger is not ready", client.is_model_ready("nope"), False, KSERVE)


def metadata(checks, addresses):
    """What a client learns before it asks."""
    client = triton.InferenceServerClient(addresses.http)
    server = client.get_server_metadata()
    checks.equal("the server has a name", server["name"], "lnserve", KSERVE)
    for extension in ("binary_tensor_data", "statistics", "model_configuration",
                      "model_repository", "logging", "schedule_policy", "parameters"):
        checks.true(f"it announces {extension}", extension in server["extensions"], server, KSERVE)
    for extension in ("system_shared_memory", "cuda_shared_memory", "trace", "classification"):
        checks.true(f"it does not announce {extension}", extension not in server["extensions"],
                    server, KSERVE)
    model = client.get_model_metadata("ensemble")
    checks.equal("a model has its name", model["name"], "ensemble", KSERVE)
    checks.equal("and versions", model["versions"], ["1"], KSERVE)
    inputs = {tensor["name"]: tensor for tensor in model["inputs"]}
    for name, data_type, n in INPUTS:
        told = {"name": name, "datatype": data_type, "shape": [-1, n]}
        checks.equal(f"input {name}", inputs.get(name), told, ENSEMBLE)
    outputs = {tensor["name"]: tensor["datatype"] for tensor in model["outputs"]}
    for name, data_type in OUTPUTS:
        checks.equal(f"output {name}", outputs.get(name), data_type, ENSEMBLE)
    config = client.get_model_config("demo")
    checks.true("batches are taken", config["max_batch_size"] > 0, config, CONFIG)
    required = [tensor["name"] for tensor in config["input"] if not tensor["optional"]]
    checks.equal("two inputs are required", required, ["text_input", "max_tokens"], ENSEMBLE)
    checks.raises("a stranger has no metadata", InferenceServerException,
                  ["unknown model: 'nope' is not found"], KSERVE,
                  lambda: client.get_model_metadata("nope"))
    checks.raises("nor a version", InferenceServerException, ["'demo' version 7 is not found"],
                  KSERVE, lambda: client.get_model_config("demo", "7"))


def answers(checks, addresses):
    """Infer in all its forms."""
    client = triton.InferenceServerClient(addresses.http)
    ask = lambda members, **options: infer(client, members, **options)
    check_answers(checks, ask, "HTTP")
    answer = texts(ask(question()))[0]
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput("text_output", binary_data=binary)]
        for given in (True, False):
            got = texts(ask(question(), binary=given, outputs=wanted))[0]
            checks.equal(f"binary in {given}, out {binary}", got, answer, BINARY)
    for algorithm in ("gzip", "deflate"):
        got = ask(question(), request_compression_algorithm=algorithm)
        checks.equal(f"a {algorithm} request", texts(got)[0], answer, CLIENT)
        got = ask(question(), response_compression_algorithm=algorithm)
        checks.equal(f"a {algorithm} response", texts(got)[0], answer, CLIENT)
    got = ask(question(return_log_probs=True),
              outputs=[triton.InferRequestedOutput("cum_log_probs")])
    checks.equal("only what is asked for comes", got.as_numpy("text_output"), None, KSERVE)
    checks.true("and that does", got.as_numpy("cum_log_probs") is not None, got, KSERVE)
    checks.equal("the alias answers alike", texts(ask(question(), model="ensemble"))[0], answer,
                 "lnserve: README")
    checks.equal("so does a version", texts(ask(question(), model_version="1"))[0], answer, KSERVE)
    for options in ({"priority": 1}, {"priority": 2}, {"timeout": 60_000_000}):
        checks.equal(f"with {options}", texts(ask(question(), **options))[0], answer, SCHEDULE)
    checks.equal("unknown parameters are let be",
                 texts(ask(question(), parameters={"mine": 3, "theirs": "x"}))[0], answer,
                 PARAMETERS)
    several = [client.async_infer("demo", request(question())) for _ in range(4)]
    got = {texts(one.get_result())[0] for one in several}
    checks.equal("asynchronous requests are answered", got, {answer}, CLIENT)


def request(members):
    """Inputs in binary form."""
    inputs = []
    for name, data_type, array in arrays(members):
        inputs.append(triton.InferInput(name, list(array.shape), data_type))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def mistakes(checks, addresses):
    """What is refused, and how."""
    client = triton.InferenceServerClient(addresses.http)
    refused = lambda name, words, call, source=KSERVE: checks.raises(
        name, InferenceServerException, words, source, call)
    ask = lambda members, **options: lambda: infer(client, members, **options)
    refused("no prompt", ["missing required input(s) ['text_input']"], ask({"max_tokens": 3}))
    refused("no bound", ["missing required input(s) ['max_tokens']"], ask({"text_input": "a"}))
    refused("an unknown model", ["unknown model: 'nope'"], ask(question(), model="nope"))
    refused("an unknown version", ["version 9 is not found"], ask(question(), model_version="9"))
    unknown = [triton.InferRequestedOutput("nope")]
    refused("an unknown output", ["unexpected inference output 'nope'"],
            ask(question(), outputs=unknown))
    refused("too short a bound", ["`max_tokens` is 0"], ask(question(max_tokens=0)), ENSEMBLE)
    refused("beams", ["`beam_width` is not supported"], ask(question(beam_width=4)), ENSEMBLE)
    refused("logits", ["return_context_logits"], ask(question(return_context_logits=True)), ENSEMBLE)
    refused("classes", ["classification"], ask(question(), outputs=[
        triton.InferRequestedOutput("text_output", class_count=3)]))
    wrong = request(question())
    wrong[1] = triton.InferInput("max_tokens", [1, 1], "FP32")
    wrong[1].set_data_from_numpy(next(arrays({"temperature": 3.0}))[2])
    refused("a wrong type", ["data-type is 'FP32', but model 'demo' expects 'INT32'"],
            lambda: client.infer("demo", wrong))
    refused("batches that disagree", ["batch size does not match"],
            ask(question(max_tokens=[[1], [2]])))
    refused("a reserved parameter", ["reserved"],
            ask(question(), parameters={"triton_x": True}), PARAMETERS)
    checks.equal("and the server lives on", client.is_server_ready(), True, KSERVE)


def operating(checks, addresses):
    """Statistics, repository, log and what is not offered."""
    client = triton.InferenceServerClient(addresses.http)
    stats = lambda: client.get_inference_statistics("demo")["model_stats"][0]
    before = stats()
    for _ in range(3):
        infer(client, question())
    after = stats()
    counted = after["inference_count"] - before["inference_count"]
    checks.equal("inferences are counted", counted, 3, STATS)
    times = after["inference_stats"]
    parts = sum(times[name]["ns"]
                for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    checks.equal("times add up", times["success"]["ns"], parts, STATS)
    every = client.get_inference_statistics()["model_stats"]
    checks.equal("all models have statistics", [one["name"] for one in every],
                 ["demo", "ensemble"], STATS)
    index = client.get_model_repository_index()
    checks.equal("the index", [(one["name"], one["state"]) for one in index],
                 [("demo", "READY"), ("ensemble", "READY")], REPOSITORY)
    client.unload_model("demo")
    checks.equal("an unloaded model is not ready", client.is_model_ready("demo"), False, REPOSITORY)
    checks.equal("nor the server", client.is_server_ready(), False, REPOSITORY)
    checks.raises("nor is it asked", InferenceServerException, ["no available versions"],
                  REPOSITORY, lambda: infer(client, question()))
    client.load_model("demo")
    checks.equal("loading brings it back", client.is_model_ready("demo"), True, REPOSITORY)
    checks.true("to answer", texts(infer(client, question()))[0], "", REPOSITORY)
    checks.raises("a stranger is not loaded", InferenceServerException, ["failed to load 'nope'"],
                  REPOSITORY, lambda: client.load_model("nope"))
    checks.raises("nor is a configuration", InferenceServerException, ["not supported"],
                  REPOSITORY, lambda: client.load_model("demo", config=json.dumps({})))
    settings = client.get_log_settings()
    checks.equal("log settings", settings["log_verbose_level"], 0, LOGGING)
    loud = client.update_log_settings({"log_verbose_level": 1})
    checks.equal("are turned up", loud["log_verbose_level"], 1, LOGGING)
    quiet = client.update_log_settings({"log_verbose_level": 0})
    checks.equal("and down", quiet, settings, LOGGING)
    checks.raises("there is no log file", InferenceServerException,
                  ["can not be updated through network protocol"], LOGGING,
                  lambda: client.update_log_settings({"log_file": "x"}))
    checks.equal("nothing is traced", client.get_trace_settings()["trace_level"], ["OFF"], TRACE)
    checks.raises("nor will be", InferenceServerException, ["not supported"], TRACE,
                  lambda: client.update_trace_settings("demo", {"trace_level": ["TIMESTAMPS"]}))
    checks.equal("no memory is shared", client.get_system_shared_memory_status(), [], MEMORY)
    checks.equal("of no kind", client.get_cuda_shared_memory_status(), [], MEMORY)
    checks.raises("nor can be", InferenceServerException, ["shared memory is disabled"], MEMORY,
                  lambda: client.register_system_shared_memory("r", "/r", 64))


def generation(checks, addresses):
    """The generate extension, which the client library leaves to plain HTTP."""
    client = triton.InferenceServerClient(addresses.http)
    source = "Triton: extension_generate.md"
    body = {"text_input": PROMPT, "max_tokens": 12, "ignore_eos": True}
    whole = client.generate("demo", body) if hasattr(client, "generate") else post(client, body)
    answer = texts(infer(client, question()))[0]
    checks.equal("generate answers as infer does", whole["text_output"], answer, source)
    checks.equal("it names the model", whole["model_name"], "demo", source)
    checks.equal("and the version", whole["model_version"], "1", source)


def post(client, body):
    """One call of generate."""
    response = client._post("v2/models/demo/generate", json.dumps(body), {}, {})
    return json.loads(response.read())


if __name__ == "__main__":
    run("tritonclient.http", 156,
        [health, metadata, answers, mistakes, operating, generation])
