"""The `openai` package against the server: completions, the Responses API, refusals.

Sources as in `openai_client.py`.
"""

import json

import openai

from checks import run
from openai_client import ADD, CHAT, ERRORS, OFF, QUESTION, SCHEMA, VLLM, chat, connect

COMPLETIONS = "API reference, Completions (legacy)"
RESPONSES = "API reference, Responses"


def completions(checks, addresses):
    """`client.completions.create`."""
    client = connect(addresses)
    create = lambda **members: client.completions.create(
        **{"model": "demo", "prompt": "27 + 58 =", "temperature": 0, "max_tokens": 8, **members}
    )
    answer = create()
    checks.equal("completion object", answer.object, "text_completion", COMPLETIONS)
    checks.true("completion id", answer.id.startswith("cmpl-"), answer.id, COMPLETIONS)
    checks.equal("completion usage", answer.usage.completion_tokens <= 8, True, COMPLETIONS)
    listed = create(prompt=["27 + 58 =", "1 + 1 ="])
    checks.equal("a list of prompts", [one.index for one in listed.choices], [0, 1], COMPLETIONS)
    checks.equal(
        "the first is the first", listed.choices[0].text, answer.choices[0].text, COMPLETIONS
    )
    echoed = create(echo=True, logprobs=0, max_tokens=0)
    checks.equal("echo", echoed.choices[0].text, "27 + 58 =", COMPLETIONS)
    scored = echoed.choices[0].logprobs
    checks.equal("the first token has no score", scored.token_logprobs[0], None, COMPLETIONS)
    checks.true(
        "the others do", all(one <= 0 for one in scored.token_logprobs[1:]), scored, COMPLETIONS
    )
    checks.equal("lists of one length", len(scored.tokens), len(scored.text_offset), COMPLETIONS)
    post = lambda path, body: client.post(
        f"http://{addresses.http}{path}", cast_to=object, body=body
    )
    tokens = post("/tokenize", {"prompt": "27 + 58 ="})
    checks.equal("tokenize counts", tokens["count"], len(tokens["tokens"]), VLLM)
    bare = post("/tokenize", {"prompt": "27 + 58 =", "add_special_tokens": False})
    checks.equal("tokenize adds a beginning", tokens["tokens"][1:], bare["tokens"], VLLM)
    text = post("/detokenize", {"tokens": bare["tokens"]})
    checks.equal("detokenize undoes it", text["prompt"], "27 + 58 =", VLLM)
    rendered = post("/tokenize", {"messages": QUESTION, **OFF})
    checks.equal(
        "tokenize renders a chat", rendered["count"], chat(client).usage.prompt_tokens, VLLM
    )
    as_ids = create(prompt=tokens["tokens"])
    checks.equal("ids are a prompt", as_ids.choices[0].text, answer.choices[0].text, COMPLETIONS)
    chunks = list(create(stream=True))
    streamed = "".join(one.choices[0].text for one in chunks)
    checks.equal("completions stream", streamed, answer.choices[0].text, COMPLETIONS)
    guided = create(extra_body={"guided_choice": ["left", "right"]}, max_tokens=20)
    checks.true(
        "completions keep a format", guided.choices[0].text in ("left", "right"), guided, VLLM
    )


def responses(checks, addresses):
    """`client.responses.create`."""
    client = connect(addresses)
    create = lambda **members: client.responses.create(
        **{
            "model": "demo",
            "input": "What is 27 + 58?",
            "temperature": 0,
            "reasoning": {"effort": "none"},
            **members,
        }
    )
    answer = create()
    checks.equal("response object", answer.object, "response", RESPONSES)
    checks.true("response id", answer.id.startswith("resp_"), answer.id, RESPONSES)
    checks.equal("status", answer.status, "completed", RESPONSES)
    checks.equal(
        "output_text", answer.output_text, chat(client).choices[0].message.content, RESPONSES
    )
    checks.equal("one message", [one.type for one in answer.output], ["message"], RESPONSES)
    total = answer.usage.input_tokens + answer.usage.output_tokens
    checks.equal("response usage", answer.usage.total_tokens, total, RESPONSES)
    thought = create(reasoning={"effort": "high"})
    checks.equal(
        "reasoning is an item",
        [one.type for one in thought.output],
        ["reasoning", "message"],
        RESPONSES,
    )
    checks.true(
        "reasoning tokens",
        thought.usage.output_tokens_details.reasoning_tokens > 0,
        thought,
        RESPONSES,
    )
    short = create(max_output_tokens=2)
    checks.equal(
        "incomplete",
        (short.status, short.incomplete_details.reason),
        ("incomplete", "max_output_tokens"),
        RESPONSES,
    )
    listed = create(
        input=[{"role": "user", "content": [{"type": "input_text", "text": "What is 27 + 58?"}]}]
    )
    checks.equal("items are input", listed.output_text, answer.output_text, RESPONSES)
    told = create(instructions="detailed thinking off", reasoning=None)
    checks.equal("instructions", told.output_text, answer.output_text, RESPONSES)
    shaped = create(text={"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA}})
    checks.equal("text.format", set(json.loads(shaped.output_text)), {"sum", "sure"}, RESPONSES)
    called = create(
        tools=[{"type": "function", **ADD}], tool_choice="required", parallel_tool_calls=False
    )
    checks.equal(
        "a call is an item", [one.type for one in called.output], ["function_call"], RESPONSES
    )
    checks.equal("its name", called.output[0].name, "add", RESPONSES)
    result = {"type": "function_call_output", "call_id": called.output[0].call_id, "output": "85"}
    history = [
        {"role": "user", "content": "?"},
        called.output[0].model_dump(exclude_none=True),
        result,
    ]
    checks.true(
        "its result is input", create(input=history, max_output_tokens=5).output, None, RESPONSES
    )
    events = list(create(stream=True))
    kinds = [one.type for one in events]
    wanted = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    checks.equal("first events", kinds[:4], wanted, RESPONSES)
    last = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    checks.equal("last events", kinds[-4:], last, RESPONSES)
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    checks.equal("deltas", text, answer.output_text, RESPONSES)
    checks.equal(
        "sequence numbers",
        [one.sequence_number for one in events],
        list(range(len(events))),
        RESPONSES,
    )
    checks.equal(
        "the last has it all", events[-1].response.output_text, answer.output_text, RESPONSES
    )
    for what, members in (
        ("top_logprobs", {"top_logprobs": 2}),
        ("include", {"include": ["message.output_text.logprobs"]}),
    ):
        call = lambda members=members: create(**members)
        checks.raises(f"scores by {what} are 400", openai.BadRequestError, [what], RESPONSES, call)
    sealed = create(include=["reasoning.encrypted_content"])
    checks.equal("what else is included", sealed.output_text, answer.output_text, RESPONSES)
    call = lambda: create(previous_response_id="resp_1")
    checks.raises(
        "nothing is kept", openai.BadRequestError, ["previous_response_id"], RESPONSES, call
    )


def errors(checks, addresses):
    """What the package makes of refusals."""
    client = connect(addresses)
    cases = [
        ("temperature 101", {"temperature": 101}, "temperature"),
        ("n 0", {"n": 0}, "`n`"),
        ("max_tokens 0", {"max_tokens": 0}, "max_tokens"),
        ("a role", {"messages": [{"role": "me", "content": "x"}]}, "role"),
        ("no messages", {"messages": []}, "messages"),
        (
            "an image",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "image_url",
        ),
        ("a search", {"web_search_options": {}}, "web_search_options"),
        ("a voice", {"modalities": ["text", "audio"]}, "modalities"),
        ("too long", {"max_tokens": 100_000}, "context"),
        ("tool_choice alone", {"tool_choice": "required"}, "tools"),
    ]
    for what, members, word in cases:
        call = lambda members=members: chat(client, **members)
        error = checks.raises(f"{what} is 400", openai.BadRequestError, [word], ERRORS, call)
        checks.equal(f"{what}: type", error.type, "invalid_request_error", ERRORS)
    turns = [
        {"role": "user", "content": "What is 27 + 58?"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]},
        {"role": "user", "content": "What is 27 + 58?"},
    ]
    said = {**turns[1], "content": "I will not."}
    answers = [
        chat(client, messages=[turns[0], turn, turns[2]]).usage.prompt_tokens
        for turn in (turns[1], said)
    ]
    checks.equal("a refusal is what was said", answers[0], answers[1], CHAT)
    call = lambda: chat(client, model="nope")
    checks.raises("an unknown model is 404", openai.NotFoundError, ["nope"], ERRORS, call)
    version = client.get(f"http://{addresses.http}/version", cast_to=object)
    checks.true("version", version["version"], version, VLLM)


if __name__ == "__main__":
    run("openai, text", 63, [completions, responses, errors])
