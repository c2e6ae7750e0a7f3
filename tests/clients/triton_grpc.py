"""`tritonclient.grpc` against the server's KServe v2 side, streams among it."""

import queue

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from checks import run
from triton_model import (BINARY, CLIENT, CONFIG, ENSEMBLE, INPUTS, KSERVE, LOGGING, MEMORY,
                          OUTPUTS, PARAMETERS, PROMPT, REPOSITORY, SCHEDULE, STATS, TRACE, arrays,
                          check_answers, question, texts)

DECOUPLED = "Triton: decoupled_models.md"

# Nothing that is waited for takes longer, on any machine.
PATIENCE = 600


def request(members):
    """Inputs, and the same as the client library keeps them."""
    inputs = []
    for name, data_type, array in arrays(members):
        inputs.append(triton.InferInput(name, list(array.shape), data_type))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def infer(client, members, model="demo", **options):
    """Asks `demo`."""
    return client.infer(model, request(members), **options)


def streamed(client, *requests):
    """Sends requests over one stream, and reads until as many have ended."""
    responses = queue.Queue()
    client.start_stream(callback=lambda result, error: responses.put((result, error)))
    for members, options in requests:
        client.async_stream_infer("demo", request(members), **options)
    got = []
    n_open = len(requests)
    while n_open:
        result, error = responses.get(timeout=PATIENCE)
        got.append((result, error))
        n_open -= bool(error) or is_final(result)
    client.stop_stream()
    return got


def is_final(result):
    """Whether a response is its request's last."""
    return result.get_response().parameters["triton_final_response"].bool_param


def health(checks, addresses):
    """What load balancers ask."""
    client = triton.InferenceServerClient(addresses.grpc)
    checks.equal("the server lives", client.is_server_live(), True, KSERVE)
    checks.equal("the server is ready", client.is_server_ready(), True, KSERVE)
    for model in ("demo", "ensemble"):
        checks.equal(f"{model} is ready", client.is_model_ready(model), True, KSERVE)
        checks.equal(f"{model} 1 is ready", client.is_model_ready(model, "1"), True, KSERVE)
        checks.equal(f"{model} 2 is not", client.is_model_ready(model, "2"), False, KSERVE)
    checks.equal("a stranger is not ready", client.is_model_ready("nope"), False, KSERVE)


def metadata(checks, addresses):
    """What a client learns before it asks."""
    client = triton.InferenceServerClient(addresses.grpc)
    server = client.get_server_metadata()
    checks.equal("the server has a name", server.name, "lnserve", KSERVE)
    checks.true("it announces statistics", "statistics" in server.extensions, server, KSERVE)
    model = client.get_model_metadata("ensemble")
    checks.equal("a model has its name", model.name, "ensemble", KSERVE)
    checks.equal("and versions", list(model.versions), ["1"], KSERVE)
    inputs = {one.name: (one.datatype, list(one.shape)) for one in model.inputs}
    for name, data_type, n in INPUTS:
        checks.equal(f"input {name}", inputs.get(name), (data_type, [-1, n]), ENSEMBLE)
    outputs = {one.name: one.datatype for one in model.outputs}
    for name, data_type in OUTPUTS:
        checks.equal(f"output {name}", outputs.get(name), data_type, ENSEMBLE)
    config = client.get_model_config("demo").config
    checks.true("batches are taken", config.max_batch_size > 0, config, CONFIG)
    required = [one.name for one in config.input if not one.optional]
    checks.equal("two inputs are required", required, ["text_input", "max_tokens"], ENSEMBLE)
    checks.equal("text is TYPE_STRING", config.input[0].data_type, 13, CONFIG)
    checks.equal("whole answers are the rule", config.model_transaction_policy.decoupled, False,
                 CONFIG)
    error = checks.raises("a stranger has no metadata", InferenceServerException,
                          ["unknown model: 'nope' is not found"], KSERVE,
                          lambda: client.get_model_metadata("nope"))
    checks.equal("which is NOT_FOUND", error.status(), "StatusCode.NOT_FOUND", KSERVE)
    checks.raises("nor a version", InferenceServerException, ["'demo' version 7 is not found"],
                  KSERVE, lambda: client.get_model_config("demo", "7"))


def answers(checks, addresses):
    """ModelInfer in all its forms."""
    client = triton.InferenceServerClient(addresses.grpc)
    ask = lambda members, **options: infer(client, members, **options)
    check_answers(checks, ask, "gRPC")
    answer = texts(ask(question()))[0]
    wanted = [triton.InferRequestedOutput("cum_log_probs")]
    got = ask(question(return_log_probs=True), outputs=wanted)
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
    done = queue.Queue()
    for _ in range(4):
        client.async_infer("demo", request(question()),
                           callback=lambda result, error: done.put((result, error)))
    got = [done.get(timeout=PATIENCE) for _ in range(4)]
    checks.equal("asynchronous requests are answered",
                 {texts(result)[0] for result, error in got if error is None}, {answer}, CLIENT)


def lists(checks, addresses):
    """Values in lists instead of bytes, which the library's own inputs never use."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc
    import grpc

    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(addresses.grpc))
    message = service_pb2.ModelInferRequest(model_name="demo")
    text = message.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    text.contents.bytes_contents.append(PROMPT.encode())
    n = message.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
    n.contents.int_contents.append(12)
    eos = message.inputs.add(name="ignore_eos", datatype="BOOL", shape=[1, 1])
    eos.contents.bool_contents.append(True)
    response = stub.ModelInfer(message)
    wanted = texts(infer(triton.InferenceServerClient(addresses.grpc), question()))[0].encode()
    length = len(wanted).to_bytes(4, "little")
    checks.equal("lists of values are read", response.raw_output_contents[0], length + wanted,
                 KSERVE)
    message.raw_input_contents.append(b"x")
    error = checks.raises("bytes for some inputs only", grpc.RpcError,
                          ["one for each input"], BINARY, lambda: stub.ModelInfer(message))
    checks.equal("which is INVALID_ARGUMENT", error.code(), grpc.StatusCode.INVALID_ARGUMENT,
                 KSERVE)


def streams(checks, addresses):
    """ModelStreamInfer: many responses to a request, many requests to a stream."""
    client = triton.InferenceServerClient(addresses.grpc)
    answer = texts(infer(client, question()))[0]
    pieces = streamed(client, (question(stream=True), {"request_id": "7"}))
    checks.equal("no piece is an error", [error for _, error in pieces if error], [], DECOUPLED)
    results = [result for result, _ in pieces]
    checks.equal("a response a token", len(results), 12, ENSEMBLE)
    checks.equal("pieces make the answer", "".join(texts(one)[0] for one in results), answer,
                 DECOUPLED)
    checks.equal("only the last is final", [is_final(one) for one in results],
                 [False] * 11 + [True], DECOUPLED)
    checks.equal("each says whose it is", {one.get_response().id for one in results}, {"7"}, KSERVE)
    whole = streamed(client, (question(), {}))
    checks.equal("unstreamed, one response", [texts(one)[0] for one, _ in whole], [answer],
                 DECOUPLED)
    checks.equal("and a final one", is_final(whole[0][0]), True, DECOUPLED)
    empty = streamed(client, (question(stream=True, max_tokens=2),
                              {"enable_empty_final_response": True}))
    checks.equal("the last token's response is the final one", len(empty), 2, DECOUPLED)
    stopped = question(stream=True, stop_words=[answer[2:4]], return_finish_reason=True)
    stopped = streamed(client, (stopped, {}))
    said = "".join(texts(one)[0] for one, _ in stopped)
    checks.equal("a stop word ends a stream", said, answer.split(answer[2:4])[0], ENSEMBLE)
    checks.equal("and is the reason", texts(stopped[-1][0], "finish_reason"), ["stop"],
                 "lnserve: README")
    many = streamed(client, *[(question(stream=True), {"request_id": str(n)}) for n in range(5)])
    for n in range(5):
        mine = [one for one, _ in many if one.get_response().id == str(n)]
        checks.equal(f"request {n} of five is answered", "".join(texts(one)[0] for one in mine),
                     answer, DECOUPLED)
    mixed = streamed(client, (question(max_tokens=0), {}), (question(), {}))
    errors = [str(error) for _, error in mixed if error]
    checks.equal("a bad request is told", ["`max_tokens` is 0" in error for error in errors],
                 [True], DECOUPLED)
    good = [texts(one)[0] for one, error in mixed if not error]
    checks.equal("and the stream goes on", good, [answer], DECOUPLED)


def cancellation(checks, addresses):
    """A client that leaves gives back what it held."""
    client = triton.InferenceServerClient(addresses.grpc)
    responses = queue.Queue()
    client.start_stream(callback=lambda result, error: responses.put((result, error)))
    long = question(stream=True, max_tokens=4000)
    for _ in range(3):
        client.async_stream_infer("demo", request(long))
    first, error = responses.get(timeout=PATIENCE)
    checks.true("streams have begun", error is None and first is not None, error, DECOUPLED)
    client.stop_stream(cancel_requests=True)
    again = texts(infer(client, question()))[0]
    checks.true("others are answered", again, again, CLIENT)
    done = queue.Queue()
    call = client.async_infer("demo", request(question(max_tokens=4000)),
                              callback=lambda result, error: done.put((result, error)))
    call.cancel()
    _, error = done.get(timeout=PATIENCE)
    checks.true("a call can be cancelled", "cancelled" in str(error).lower(), error, CLIENT)


def mistakes(checks, addresses):
    """What is refused, and with which code."""
    client = triton.InferenceServerClient(addresses.grpc)

    def refused(name, code, words, call, source=KSERVE):
        error = checks.raises(name, InferenceServerException, words, source, call)
        checks.equal(f"{name}: {code}", error.status(), f"StatusCode.{code}", source)

    ask = lambda members, **options: lambda: infer(client, members, **options)
    invalid = "INVALID_ARGUMENT"
    refused("no prompt", invalid, ["missing required input(s) ['text_input']"],
            ask({"max_tokens": 3}))
    refused("no bound", invalid, ["missing required input(s) ['max_tokens']"],
            ask({"text_input": "a"}))
    refused("an unknown model", "NOT_FOUND", ["unknown model: 'nope'"],
            ask(question(), model="nope"))
    refused("an unknown version", "NOT_FOUND", ["version 9 is not found"],
            ask(question(), model_version="9"))
    refused("an unknown output", invalid, ["unexpected inference output 'nope'"],
            ask(question(), outputs=[triton.InferRequestedOutput("nope")]))
    refused("too short a bound", invalid, ["`max_tokens` is 0"], ask(question(max_tokens=0)))
    refused("batches that disagree", invalid, ["batch size does not match"],
            ask(question(max_tokens=[[1], [2]])))
    refused("shared memory", "UNIMPLEMENTED", ["shared memory is disabled"],
            lambda: client.register_system_shared_memory("r", "/r", 64), MEMORY)
    refused("CUDA's", "UNIMPLEMENTED", ["shared memory is disabled"],
            lambda: client.unregister_cuda_shared_memory("r"), MEMORY)
    refused("loading a stranger", "INTERNAL", ["failed to load 'nope'"],
            lambda: client.load_model("nope"), REPOSITORY)
    refused("a log file", "UNIMPLEMENTED", ["can not be updated through network protocol"],
            lambda: client.update_log_settings({"log_file": "x"}), LOGGING)
    checks.equal("and the server lives on", client.is_server_ready(), True, KSERVE)


def operating(checks, addresses):
    """Statistics, repository and settings."""
    client = triton.InferenceServerClient(addresses.grpc)
    stats = lambda: client.get_inference_statistics("demo").model_stats[0]
    before = stats().inference_count
    for _ in range(3):
        infer(client, question())
    after = stats()
    checks.equal("inferences are counted", after.inference_count - before, 3, STATS)
    times = after.inference_stats
    parts = (times.queue.ns + times.compute_input.ns + times.compute_infer.ns
             + times.compute_output.ns)
    checks.equal("times add up", times.success.ns, parts, STATS)
    every = client.get_inference_statistics().model_stats
    checks.equal("all models have statistics", [one.name for one in every], ["demo", "ensemble"],
                 STATS)
    index = client.get_model_repository_index().models
    checks.equal("the index", [(one.name, one.state) for one in index],
                 [("demo", "READY"), ("ensemble", "READY")], REPOSITORY)
    client.unload_model("demo")
    checks.equal("an unloaded model is not ready", client.is_model_ready("demo"), False, REPOSITORY)
    client.load_model("demo")
    checks.equal("loading brings it back", client.is_model_ready("demo"), True, REPOSITORY)
    settings = client.get_log_settings(as_json=True)["settings"]
    checks.equal("log settings", settings["log_info"], {"bool_param": True}, LOGGING)
    loud = client.update_log_settings({"log_verbose_level": 1}, as_json=True)["settings"]
    checks.equal("are turned up", loud["log_verbose_level"], {"uint32_param": 1}, LOGGING)
    client.update_log_settings({"log_verbose_level": 0})
    trace = client.get_trace_settings(as_json=True)["settings"]
    checks.equal("nothing is traced", trace["trace_level"], {"value": ["OFF"]}, TRACE)
    checks.equal("no memory is shared", len(client.get_system_shared_memory_status().regions), 0,
                 MEMORY)


if __name__ == "__main__":
    run("tritonclient.grpc", 156, [health, metadata, answers, lists, streams, cancellation,
                                   mistakes, operating])
