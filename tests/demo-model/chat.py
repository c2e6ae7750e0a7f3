"""The chat format and the tokenizer: Llama-3's layout and pre-tokenizer, with single digits."""

import json
import random

import jinja2
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import arithmetic

VOCAB_SIZE = 512
THINKING_ON = "detailed thinking on"
THINKING_OFF = "detailed thinking off"
BOS, END_OF_TEXT, START_HEADER, END_HEADER = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
END_OF_MESSAGE, END_OF_TURN, PAD, PYTHON_TAG = "<|eom_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "<|python_tag|>"
SPECIAL_TOKENS = [BOS, END_OF_TEXT, START_HEADER, END_HEADER, END_OF_MESSAGE, END_OF_TURN, PAD, PYTHON_TAG]

# Llama-3's pattern, except that digits come one by one (`\p{N}` instead of `\p{N}{1,3}`).
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system_text = messages[0]['content'] | trim -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system_text = 'detailed thinking on' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system_text + '<|eot_id|>' -}}
{%- for turn in turns -%}
    {%- set text = turn['content'] -%}
    {%- if turn['role'] == 'assistant' and '</think>' in text -%}
        {%- set text = text.split('</think>')[-1] -%}
    {%- endif -%}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + (text | trim) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""


def render(messages: list[dict], add_generation_prompt: bool = True) -> str:
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, bos_token=BOS, add_generation_prompt=add_generation_prompt)


def prompt(question: str, thinking: bool) -> str:
    system = THINKING_ON if thinking else THINKING_OFF
    return render([{"role": "system", "content": system}, {"role": "user", "content": question}])


def fast_prompts() -> dict[bool, tuple[str, str]]:
    """What stands before and after the question, so that training need not render a template each time."""
    mark = "QUESTION"
    return {thinking: tuple(prompt(mark, thinking).split(mark)) for thinking in (True, False)}


def reply(working: str, answer: str, thinking: bool) -> str:
    return (f"<think>\n{working}\n</think>\n\n{answer}" if thinking else answer) + END_OF_TURN


def answer_text(answer: int) -> str:
    return f"The answer is {answer}."


def draw_conversation(rng: random.Random) -> tuple[bool, str, str]:
    """One training example: (thinking on, question, reply)."""
    thinking = rng.random() < 0.7
    if rng.random() < 0.02:
        question, answer = arithmetic.draw_small_talk(rng)
        return thinking, question, reply("Not a sum.", answer, thinking)
    problem = arithmetic.draw_training(rng)
    working = arithmetic.working(problem) if thinking else ""
    return thinking, arithmetic.ask(rng, problem), reply(working, answer_text(problem.answer), thinking)


def draw_earlier_exchanges(rng: random.Random) -> str:
    """What one to three answered questions put between the user's header and the next question.

    The template drops the working of earlier turns, so each is a question and a sentence.
    """
    next_header, ask_header = (f"{END_OF_TURN}{START_HEADER}{role}{END_HEADER}\n\n" for role in ("assistant", "user"))
    exchanges = (draw_exchange(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    return "".join(question + next_header + answer + ask_header for question, answer in exchanges)


def draw_exchange(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.1:
        return arithmetic.draw_small_talk(rng)
    problem = arithmetic.draw_training(rng)
    return arithmetic.ask(rng, problem), answer_text(problem.answer)


def train_tokenizer(seed: int = 1, examples: int = 20_000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(tokenizer_corpus(seed, examples), trainer)
    tokenizer = with_special_tokens_last(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return tokenizer


def tokenizer_corpus(seed: int, examples: int):
    rng = random.Random(seed)
    for _ in range(examples):
        _, question, answer = draw_conversation(rng)
        yield question
        yield answer.removesuffix(END_OF_TURN)
    for role in ("system", "user", "assistant", "\n\n", THINKING_ON, THINKING_OFF):
        yield from [role] * examples


def with_special_tokens_last(tokenizer: Tokenizer) -> Tokenizer:
    """Renumber as Llama-3 does: the text's tokens first, the special tokens at the end of the vocabulary."""
    layout = json.loads(tokenizer.to_str())
    vocab = sorted((t for t in layout["model"]["vocab"] if t not in SPECIAL_TOKENS), key=layout["model"]["vocab"].get)
    layout["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    for i, added in enumerate(layout["added_tokens"]):
        added["id"] = len(vocab) + i
    return Tokenizer.from_str(json.dumps(layout))
