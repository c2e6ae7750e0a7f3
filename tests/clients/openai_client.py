"""The `openai` package against the server: what its typed calls send and what they make of answers.

Sources: OpenAI's API reference (sections named), vLLM's OpenAI-compatible server documentation for
what goes beyond it, and the package itself, whose types an answer has to fit.
"""

import json

import openai
from openai import OpenAI

from checks import run

CHAT = "API reference, Chat, create"
STREAM = "API reference, Chat, streaming"
MODELS = "API reference, Models"
ERRORS = "API guides, Error codes"
FORMATS = "API guides, Structured model outputs"
TOOLS = "API guides, Function calling"
VLLM = "vLLM, OpenAI-compatible server, extra parameters"
REASONING = "vLLM, Reasoning outputs"
QUESTION = [{"role": "user", "content": "What is 27 + 58?"}]
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
ADD = {
    "name": "add",
    "description": "Adds two digits",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


def connect(addresses):
    """A client that does not try again: every answer is the first."""
    return OpenAI(base_url=f"http://{addresses.http}/v1", api_key="none", max_retries=0)


def chat(client, **members):
    """A chat completion, greedy and without reasoning unless told otherwise."""
    members.setdefault("extra_body", OFF)
    members = {"model": "demo", "messages": QUESTION, "temperature": 0, **members}
    return client.chat.completions.create(**members)


def models(checks, addresses):
    """`client.models`."""
    client = connect(addresses)
    listed = client.models.list().data
    checks.equal("models lists the demo", [one.id for one in listed], ["demo"], MODELS)
    checks.equal("a model is an object", listed[0].object, "model", MODELS)
    checks.true("a model has a date", listed[0].created > 1.6e9, listed[0].created, MODELS)
    checks.equal("retrieve finds it", client.models.retrieve("demo").id, "demo", MODELS)
    call = lambda: client.models.retrieve("nope")
    error = checks.raises(
        "retrieve of a stranger is 404", openai.NotFoundError, ["nope"], ERRORS, call
    )
    checks.equal("its code", error.code, "model_not_found", ERRORS)
    checks.equal("its param", error.param, "model", ERRORS)


def whole_chats(checks, addresses):
    """`client.chat.completions.create`."""
    client = connect(addresses)
    answer = chat(client)
    choice = answer.choices[0]
    checks.equal("object", answer.object, "chat.completion", CHAT)
    checks.true("id", answer.id.startswith("chatcmpl-"), answer.id, CHAT)
    checks.equal("model", answer.model, "demo", CHAT)
    checks.equal("one choice", [one.index for one in answer.choices], [0], CHAT)
    checks.equal("role", choice.message.role, "assistant", CHAT)
    checks.true("content", choice.message.content, choice, CHAT)
    checks.equal("no tool calls", choice.message.tool_calls, None, CHAT)
    checks.equal("finish_reason stop", choice.finish_reason, "stop", CHAT)
    usage = answer.usage
    total = usage.prompt_tokens + usage.completion_tokens
    checks.equal("usage adds up", usage.total_tokens, total, CHAT)
    details = usage.completion_tokens_details
    checks.equal("no reasoning tokens", details.reasoning_tokens, 0, CHAT)
    for name in ("max_tokens", "max_completion_tokens"):
        short = chat(client, **{name: 2})
        checks.equal(f"{name} bounds", short.usage.completion_tokens, 2, CHAT)
        checks.equal(f"{name} is length", short.choices[0].finish_reason, "length", CHAT)
    several = chat(client, n=3, temperature=1, seed=7)
    checks.equal("n choices", [one.index for one in several.choices], [0, 1, 2], CHAT)
    again = chat(client, n=3, temperature=1, seed=7)
    texts = lambda answer: [one.message.content for one in answer.choices]
    checks.equal("a seed repeats", texts(again), texts(several), CHAT)
    stopped = chat(client, stop=["5"])
    checks.true("stop is left out", "5" not in stopped.choices[0].message.content, stopped, CHAT)
    checks.equal("stop is stop", stopped.choices[0].finish_reason, "stop", CHAT)
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is 27 + 58?"}]}]
    checks.equal("parts are text", texts(chat(client, messages=parts)), texts(answer), CHAT)
    developer = [{"role": "developer", "content": "detailed thinking off"}, *QUESTION]
    system = [{"role": "system", "content": "detailed thinking off"}, *QUESTION]
    told = [texts(chat(client, messages=one, extra_body={})) for one in (developer, system)]
    checks.equal("developer is system", told[0], told[1], CHAT)
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=QUESTION, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    checks.equal(
        "request id comes back",
        raw.headers["x-request-id"],
        "mine-1",
        "API reference, Debugging requests",
    )


def scores(checks, addresses):
    """Log-probabilities and biases."""
    client = connect(addresses)
    answer = chat(client, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    checks.equal("an entry a token", len(entries), answer.usage.completion_tokens, CHAT)
    best = all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    checks.true("greedy takes the best", best, entries, CHAT)
    checks.true("three alternatives", all(len(e.top_logprobs) == 3 for e in entries), entries, CHAT)
    checks.true("probabilities", all(entry.logprob <= 0 for entry in entries), entries, CHAT)
    written = b"".join(bytes(entry.bytes) for entry in entries).decode()
    content = answer.choices[0].message.content
    checks.true("bytes are the text", written.startswith(content), written, CHAT)
    checks.equal("none unless asked", chat(client).choices[0].logprobs, None, CHAT)
    ids = chat(client, extra_body={**OFF, "return_token_ids": True}).choices[0].token_ids
    banned = chat(
        client, logit_bias={str(ids[0]): -100}, extra_body={**OFF, "return_token_ids": True}
    )
    checks.true("a bias of -100 bans", ids[0] != banned.choices[0].token_ids[0], ids, CHAT)
    checks.equal("token ids are counted", len(ids), answer.usage.completion_tokens, VLLM)


def streams(checks, addresses):
    """`stream=True`."""
    client = connect(addresses)
    wanted = chat(client)
    chunks = list(chat(client, stream=True))
    text = "".join(one.choices[0].delta.content or "" for one in chunks)
    checks.equal("a stream says the same", text, wanted.choices[0].message.content, STREAM)
    checks.equal(
        "chunks are chunks", {one.object for one in chunks}, {"chat.completion.chunk"}, STREAM
    )
    checks.equal("one id", len({one.id for one in chunks}), 1, STREAM)
    checks.equal("the role comes first", chunks[0].choices[0].delta.role, "assistant", STREAM)
    roles = [one.choices[0].delta.role for one in chunks[1:]]
    checks.equal("and once", set(roles), {None}, STREAM)
    ends = [one.choices[0].finish_reason for one in chunks]
    checks.equal("the end comes last", ends[-1], "stop", STREAM)
    checks.equal("and once too", set(ends[:-1]), {None}, STREAM)
    checks.equal("no usage unless asked", {one.usage for one in chunks}, {None}, STREAM)
    options = {"include_usage": True}
    counted = list(chat(client, stream=True, stream_options=options))
    checks.equal("usage comes alone", counted[-1].choices, [], STREAM)
    count = lambda usage: (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    checks.equal("and is that of the whole", count(counted[-1].usage), count(wanted.usage), STREAM)
    checks.equal("and only there", {one.usage for one in counted[:-1]}, {None}, STREAM)
    options = {"include_usage": True, "continuous_usage_stats": True}
    always = list(chat(client, stream=True, stream_options=options))
    checks.true("continuous usage", all(one.usage for one in always), always, VLLM)
    both = list(chat(client, stream=True, n=2, temperature=1, seed=3))
    checks.equal("n is streamed", {one.choices[0].index for one in both}, {0, 1}, STREAM)
    with chat(client, stream=True) as stream:
        next(iter(stream))
    checks.true("a stream that is left does no harm", chat(client).choices, None, STREAM)
    with client.chat.completions.stream(
        model="demo", messages=QUESTION, temperature=0, extra_body=OFF
    ) as helped:
        final = helped.get_final_completion()
    checks.equal(
        "the helper agrees", final.choices[0].message.content, text, "openai-python, helpers.md"
    )


def reasoning(checks, addresses):
    """Reasoning, told apart, counted, bounded, switched."""
    client = connect(addresses)
    answer = chat(client, extra_body={})
    message = answer.choices[0].message
    checks.true("reasoning_content", message.reasoning_content, message, REASONING)
    checks.equal("reasoning is the same", message.reasoning, message.reasoning_content, REASONING)
    checks.true("no tags in the content", "think>" not in message.content, message, REASONING)
    n_tokens = answer.usage.completion_tokens_details.reasoning_tokens
    checks.true("it is counted", 0 < n_tokens < answer.usage.completion_tokens, n_tokens, CHAT)
    chunks = list(chat(client, extra_body={}, stream=True))
    deltas = [one.choices[0].delta for one in chunks]
    text = "".join(getattr(one, "reasoning_content", None) or "" for one in deltas)
    checks.equal("it is streamed", text, message.reasoning_content, REASONING)
    kinds = [
        "r" if getattr(one, "reasoning", None) else "c"
        for one in deltas
        if one.content or getattr(one, "reasoning", None)
    ]
    checks.equal("and comes first", kinds, sorted(kinds, reverse=True), REASONING)
    off = chat(client, reasoning_effort="none", extra_body={})
    checks.true("effort none is off", not hasattr(off.choices[0].message, "reasoning"), off, CHAT)
    on = chat(client, reasoning_effort="high", extra_body={})
    checks.equal("effort high is on", on.choices[0].message.content, message.content, CHAT)
    most = chat(client, reasoning_effort="max", extra_body={})
    checks.equal("effort max is on", most.choices[0].message.content, message.content, CHAT)
    untold = chat(client, extra_body={"include_reasoning": False})
    shown = untold.choices[0].message
    checks.true("include_reasoning off leaves it out", not hasattr(shown, "reasoning"), shown, VLLM)
    checks.equal("and only that", shown.content, message.content, VLLM)
    counted = untold.usage.completion_tokens_details.reasoning_tokens
    checks.equal("and counts it", counted, n_tokens, VLLM)
    chunks = list(chat(client, extra_body={"include_reasoning": False}, stream=True))
    deltas = [one.choices[0].delta for one in chunks]
    told = [one for one in deltas if getattr(one, "reasoning", None)]
    checks.equal("in streams, too", told, [], VLLM)
    text = "".join(one.content or "" for one in deltas)
    checks.equal("whose answer is whole", text, message.content, VLLM)
    short = chat(client, extra_body={"max_thinking_tokens": 4})
    n_short = short.usage.completion_tokens_details.reasoning_tokens
    checks.true("a budget closes it", n_short < n_tokens, n_short, REASONING)
    checks.true("and lets it answer", short.choices[0].message.content, short, REASONING)
    checks.equal("and ends well", short.choices[0].finish_reason, "stop", REASONING)
    cut = chat(client, extra_body={}, max_tokens=6)
    checks.equal("cut off within it, no content", cut.choices[0].message.content, None, REASONING)


def formats(checks, addresses):
    """`response_format` and vLLM's names."""
    client = connect(addresses)
    named = {
        "type": "json_schema",
        "json_schema": {"name": "sum", "strict": True, "schema": SCHEMA},
    }
    for what, body in (("off", OFF), ("on", {})):
        answer = chat(client, response_format=named, extra_body=body)
        value = json.loads(answer.choices[0].message.content)
        checks.equal(f"schema, thinking {what}: members", set(value), {"sum", "sure"}, FORMATS)
        types = (type(value["sum"]), type(value["sure"]))
        checks.equal(f"schema, thinking {what}: types", types, (int, bool), FORMATS)
        checks.equal(
            f"schema, thinking {what}: end", answer.choices[0].finish_reason, "stop", FORMATS
        )
        chunks = list(chat(client, response_format=named, extra_body=body, stream=True))
        text = "".join(one.choices[0].delta.content or "" for one in chunks)
        checks.equal(f"schema, thinking {what}: streamed", json.loads(text), value, FORMATS)
    several = chat(client, response_format=named, n=4, temperature=1, seed=2, max_tokens=200)
    whole = [one.message.content for one in several.choices if one.finish_reason == "stop"]
    checks.true(
        "n answers keep it",
        all(set(json.loads(one)) == set(SCHEMA["properties"]) for one in whole),
        whole,
        FORMATS,
    )
    plain = {"type": "json_object"}
    text = chat(client, response_format=plain, max_tokens=60).choices[0].message.content
    checks.true("json_object is one", text.lstrip().startswith("{"), text, FORMATS)
    guided = {"guided_choice": ["yes", "no"]}
    text = chat(client, extra_body={**OFF, **guided}).choices[0].message.content
    checks.true("guided_choice", text in ("yes", "no"), text, VLLM)
    text = chat(client, extra_body={**OFF, "guided_regex": "[0-9]{3}"}).choices[0].message.content
    checks.true("guided_regex", len(text) == 3 and text.isdigit(), text, VLLM)
    outputs = {"structured_outputs": {"grammar": 'start: "a" "b"'}}
    text = chat(client, extra_body={**OFF, **outputs}).choices[0].message.content
    checks.equal("structured_outputs grammar", text, "ab", VLLM)
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    call = lambda: chat(client, response_format=bad)
    words = ["response_format.json_schema.schema", "nonsense"]
    checks.raises("a schema that is none is 400", openai.BadRequestError, words, ERRORS, call)


def tools(checks, addresses):
    """`tools` and `tool_choice`."""
    client = connect(addresses)
    offered = [{"type": "function", "function": ADD}]
    named = {"type": "function", "function": {"name": "add"}}
    for what, choice in (("required", "required"), ("named", named)):
        answer = chat(client, tools=offered, tool_choice=choice, parallel_tool_calls=False)
        message = answer.choices[0].message
        checks.equal(f"{what}: finish_reason", answer.choices[0].finish_reason, "tool_calls", TOOLS)
        checks.equal(f"{what}: one call", len(message.tool_calls), 1, TOOLS)
        call = message.tool_calls[0]
        checks.equal(f"{what}: type", call.type, "function", TOOLS)
        checks.equal(f"{what}: name", call.function.name, "add", TOOLS)
        checks.true(f"{what}: id", call.id.startswith("call_"), call.id, TOOLS)
        digit = json.loads(call.function.arguments)["a"]
        checks.true(f"{what}: arguments", 0 <= digit <= 9, digit, TOOLS)
        checks.equal(f"{what}: no content", message.content, None, TOOLS)
        chunks = list(
            chat(client, tools=offered, tool_choice=choice, parallel_tool_calls=False, stream=True)
        )
        parts = [part for one in chunks for part in one.choices[0].delta.tool_calls or []]
        text = "".join(part.function.arguments for part in parts)
        checks.equal(f"{what}: streamed", text, call.function.arguments, TOOLS)
        checks.equal(f"{what}: streamed index", {part.index for part in parts}, {0}, TOOLS)
    free = chat(client, tools=offered).choices[0]
    checks.equal(
        "auto may answer", (free.finish_reason, free.message.tool_calls), ("stop", None), TOOLS
    )
    none = chat(client, tools=offered, tool_choice="none").choices[0]
    checks.equal(
        "none answers", none.message.content, chat(client).choices[0].message.content, TOOLS
    )
    history = [
        *QUESTION,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "85"},
    ]
    after = chat(client, tools=offered, messages=history, max_tokens=20)
    checks.true("a result is read", after.usage.prompt_tokens > 0, after, TOOLS)
    stranger = {"type": "function", "function": {"name": "sub"}}
    call = lambda: chat(client, tools=offered, tool_choice=stranger)
    checks.raises("a stranger is 400", openai.BadRequestError, ["tool_choice", "sub"], ERRORS, call)


if __name__ == "__main__":
    SECTIONS = [models, whole_chats, scores, streams, reasoning, formats, tools]
    run("openai", 105, SECTIONS)
