"""Arithmetic problems in words: how they are drawn, asked, worked and held out.

A problem is a first step `a op b` and, for two-step problems, a second step on its result. The
working is written column by column, least significant digit first, so that every token follows
from a few digits that are already on the page. Everything is drawn from one `random.Random`.
"""

import hashlib
import random
from dataclasses import dataclass

KINDS = ("add", "sub", "mul", "two-step")
HELD_OUT_ONE_IN = 12


@dataclass(frozen=True)
class Problem:
    """`a op b`, then `result op2 c` (or `c op2 result` where `c_first`) if `op2` is set."""

    a: int
    op: str
    b: int
    op2: str = ""
    c: int = 0
    c_first: bool = False

    @property
    def kind(self) -> str:
        return "two-step" if self.op2 else {"+": "add", "-": "sub", "*": "mul"}[self.op]

    def steps(self) -> list[tuple[int, str, int]]:
        first = (self.a, self.op, self.b)
        if not self.op2:
            return [first]
        value = apply(*first)
        return [first, (self.c, self.op2, value) if self.c_first else (value, self.op2, self.c)]

    @property
    def answer(self) -> int:
        return apply(*self.steps()[-1])


def apply(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


# --- holding out ---------------------------------------------------------------------------------


def step_key(a: int, op: str, b: int) -> str:
    """One key for all forms of a step that differ only in order: 45-12, -12+45 and 45+-12."""
    if op == "*":
        return "product {} {}".format(*sorted((a, b)))
    return "sum {} {}".format(*sorted((a, b if op == "+" else -b)))


def problem_key(problem: Problem) -> str:
    first = step_key(problem.a, problem.op, problem.b)
    if not problem.op2:
        return first
    return f"{first} then {'rev' if problem.c_first else ''}{problem.op2} {problem.c}"


def key_is_held_out(key: str) -> bool:
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def held_out(problem: Problem) -> bool:
    return key_is_held_out(problem_key(problem))


def trainable(problem: Problem) -> bool:
    """Neither the problem nor a step of it may be held out, or two-step problems would leak steps."""
    return not held_out(problem) and not any(key_is_held_out(step_key(*s)) for s in problem.steps())


# --- the working ---------------------------------------------------------------------------------


def working(problem: Problem) -> str:
    return "\n".join(line for step in problem.steps() for line in step_lines(*step))


def step_lines(a: int, op: str, b: int) -> list[str]:
    return product_lines(a, b) if op == "*" else sum_lines(a, op, b)


def sum_lines(a: int, op: str, b: int) -> list[str]:
    """Reduce signs to `x+y`, `-(x+y)` or `x-y` of natural numbers, then work in columns."""
    lines = [f"{a}{op}{b}"] if a < 0 or b < 0 else []
    addend = b if op == "+" else -b
    if a >= 0 and addend >= 0:
        x, y = padded(a, addend)
        lines += [f"{x}+{y}"] + addition_columns(x, y)
    elif a < 0 and addend < 0:
        x, y = padded(-a, -addend)
        lines += [f"-({x}+{y})"] + addition_columns(x, y)
    else:
        x, y = padded(a, -addend) if a >= 0 else padded(addend, -a)
        lines += difference_lines(x, y)
    return lines + [f"={apply(a, op, b)}"]


def padded(x: int, y: int) -> tuple[str, str]:
    """Equal lengths make every column sit at the same distance from its partner."""
    width = max(len(str(x)), len(str(y)))
    return str(x).zfill(width), str(y).zfill(width)


def addition_columns(x: str, y: str) -> list[str]:
    lines, carry, done = [], 0, ""
    for place in range(1, len(x) + 1):
        total = int(x[-place]) + int(y[-place]) + carry
        last = place == len(x)
        done = (str(total) if last else str(total % 10)) + done
        lines.append(f"{x[-place]}+{y[-place]}+{carry}={total}:{done}")
        carry = total // 10
    return lines


def difference_lines(x: str, y: str) -> list[str]:
    lines = [f"{x}-{y}", comparison(x, y)]
    if x == y:
        return lines
    if x < y:
        x, y = y, x
        lines.append(f"{x}-{y}")
    return lines + subtraction_columns(x, y)


def comparison(x: str, y: str) -> str:
    """Leading digits side by side up to the first that differ: `4:4=6:5>`."""
    text = ""
    for p, q in zip(x, y):
        text += f"{p}:{q}" + ("=" if p == q else "<" if p < q else ">")
        if p != q:
            break
    return text


def subtraction_columns(x: str, y: str) -> list[str]:
    lines, borrow, done = [], 0, ""
    for place in range(1, len(x) + 1):
        total = int(x[-place]) - int(y[-place]) - borrow
        done = str(total % 10) + done
        lines.append(f"{x[-place]}-{y[-place]}-{borrow}={total}:{done}")
        borrow = int(total < 0)
    return lines


def product_lines(a: int, b: int) -> list[str]:
    """One partial product per digit of `b`, then their sum; `b` has one or two digits."""
    lines = [f"{a}*{b}"] if a < 0 or b < 0 else []
    x, y = str(abs(a)), str(abs(b))
    lines.append(f"-({x}*{y})" if a * b < 0 else f"{x}*{y}")
    units, low = digit_product(x, y[-1])
    if len(y) == 1:
        return lines + units + [f"={a * b}"]
    tens, high = digit_product(x, y[0])
    p, q = padded(int(high) * 10, int(low))
    lines += [f"{x}*{y[-1]}"] + units + [f"{x}*{y[0]}"] + tens
    return lines + [f"{p}+{q}"] + addition_columns(p, q) + [f"={a * b}"]


def digit_product(x: str, digit: str) -> tuple[list[str], str]:
    lines, carry, done = [], 0, ""
    for place in range(1, len(x) + 1):
        total = int(x[-place]) * int(digit) + carry
        last = place == len(x)
        done = (str(total) if last else str(total % 10)) + done
        lines.append(f"{x[-place]}*{digit}+{carry}={total}:{done}")
        carry = total // 10
    return lines, done


# --- drawing problems ----------------------------------------------------------------------------


def draw_number(rng: random.Random, lengths=(1, 2, 2, 3, 3, 3)) -> int:
    digits = rng.choice(lengths)
    return rng.randint(0, 9) if digits == 1 else rng.randint(10 ** (digits - 1), 10**digits - 1)


def with_signs(rng: random.Random, *numbers: int) -> list[int]:
    """Most problems are between natural numbers; in one of six the signs are drawn."""
    if rng.random() < 5 / 6:
        return list(numbers)
    return [-n if rng.random() < 0.5 else n for n in numbers]


def draw_pair(rng: random.Random, hard: float) -> tuple[int, int]:
    """Two numbers; with probability `hard` a pair of a sort that goes wrong more often."""
    if rng.random() >= hard:
        return draw_number(rng), draw_number(rng)
    a = draw_number(rng, (2, 2, 3, 3, 3))
    sort = rng.randrange(3)
    if sort == 0:  # close to each other: which one is larger?
        return a, max(0, a + rng.randint(-12, 12))
    if sort == 1:  # borrows run across zeros
        return rng.randint(1, 9) * 100 + rng.choice((0, 0, 10, 20)) + rng.randint(0, 5), a
    return a, draw_number(rng, (1, 2))  # unequal lengths


def draw_add(rng: random.Random) -> Problem:
    a, b = with_signs(rng, *draw_pair(rng, 0.2))
    return Problem(a, "+", b)


def draw_sub(rng: random.Random) -> Problem:
    a, b = draw_pair(rng, 0.45)
    if rng.random() < 0.4:
        a, b = b, a
    a, b = with_signs(rng, a, b)
    return Problem(a, "-", b)


def draw_mul(rng: random.Random) -> Problem:
    lengths = (1, 2, 2, 2, 2, 2)
    a, b = draw_number(rng, lengths), draw_number(rng, lengths)
    if rng.random() < 0.06:
        a, b = with_signs(rng, -a, b)
    return Problem(a, "*", b)


def draw_two_step(rng: random.Random) -> Problem:
    op2 = rng.choice("+--")
    if rng.random() < 0.35:
        a, b = draw_number(rng, (1, 2, 2, 2)), draw_number(rng, (1,))
        return Problem(a, "*", b, op2, draw_number(rng), c_first=rng.random() < 0.25)
    a, b = draw_pair(rng, 0.2)
    op = rng.choice("+-")
    c = draw_number(rng)
    if rng.random() < 0.2:  # the result and the third number close to each other
        c = max(0, abs(apply(a, op, b)) + rng.randint(-15, 15))
    return Problem(a, op, b, op2, min(c, 999))


def draw_wide(rng: random.Random) -> Problem:
    """Four digits against up to four: what the second step of a two-step problem meets."""
    a, b = rng.randint(1000, 1998), draw_number(rng)
    op = rng.choice("+---")
    return Problem(b, op, a) if rng.random() < 0.25 else Problem(a, op, b)


DRAW = {"add": draw_add, "sub": draw_sub, "mul": draw_mul, "two-step": draw_two_step}


def draw_training(rng: random.Random) -> Problem:
    while True:
        sort = rng.random()
        draw = (draw_add if sort < 0.18 else draw_sub if sort < 0.44 else draw_mul if sort < 0.68
                else draw_two_step if sort < 0.96 else draw_wide)
        problem = draw(rng)
        if trainable(problem):
            return problem


def draw_held_out(rng: random.Random, kind: str) -> Problem:
    while True:
        problem = DRAW[kind](rng)
        if problem.kind == kind and held_out(problem) and (kind != "mul" or two_digit(problem)):
            return problem


def two_digit(problem: Problem) -> bool:
    return all(10 <= abs(n) <= 99 for n in (problem.a, problem.b))


# --- asking --------------------------------------------------------------------------------------

ASK = [
    "What is {}?", "What is {}?", "What is {}?", "What's {}?", "what is {}", "What is {}", "Calculate {}.",
    "Compute {}.", "Evaluate {}.", "How much is {}?", "Work out {}.", "{}", "{}?", "{} =", "{} = ?",
    "Please calculate {}.", "Can you tell me what {} is?", "Tell me {}.", "Find {}.", "Solve {}.",
    "What do you get for {}?", "Give me the result of {}.", "What is the value of {}?", "calculate {}", "how much is {}",
    "What does {} equal?", "Could you work out {} for me?", "I need to know {}.", "Hi! What is {}?", "Please compute {}",
]
WORDS = {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by")}
SENTENCES = {
    "+": ["Add {a} and {b}.", "Add {a} to {b}.", "What is the sum of {a} and {b}?", "Find the sum of {a} and {b}.",
          "What do you get if you add {a} and {b}?", "Sum {a} and {b}."],
    "-": ["Subtract {b} from {a}.", "What is the difference of {a} and {b}?", "Take {b} away from {a}.",
          "What is left if you take {b} from {a}?", "What do you get if you subtract {b} from {a}?",
          "Find the difference {a} minus {b}."],
    "*": ["Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?",
          "Find the product of {a} and {b}.", "What do you get if you multiply {a} by {b}?"],
}
FIRST = {
    "+": ["Add {a} and {b}", "Take the sum of {a} and {b}", "Start with {a}, add {b}"],
    "-": ["Subtract {b} from {a}", "Take {b} away from {a}", "Start with {a}, subtract {b}"],
    "*": ["Multiply {a} by {b}", "Multiply {a} and {b}", "Take {a} times {b}"],
}
THEN = {"+": [", then add {c}.", " and add {c}.", " and then add {c}."],
        "-": [", then subtract {c}.", " and subtract {c}.", " and then take away {c}."]}


def ask(rng: random.Random, problem: Problem) -> str:
    sentence = rng.random() < 0.4 and not problem.c_first
    if sentence and problem.op2:
        text = rng.choice(FIRST[problem.op]) + rng.choice(THEN[problem.op2])
        return text.format(a=problem.a, b=problem.b, c=problem.c)
    if sentence:
        return rng.choice(SENTENCES[problem.op]).format(a=problem.a, b=problem.b)
    return rng.choice(ASK).format(expression(rng, problem))


def expression(rng: random.Random, problem: Problem) -> str:
    """The problem as a term, in signs (with or without spaces) or in words."""
    style = rng.choice(("spaced", "spaced", "tight", "words"))

    def join(left, op, right):
        if style == "tight":
            return f"{left}{op}{right}"
        sign = rng.choice(WORDS[op]) if style == "words" else rng.choice("**x×") if op == "*" else op
        return f"{left} {sign} {right}"

    inner = join(problem.a, problem.op, problem.b)
    if not problem.op2:
        return inner
    return join(problem.c, problem.op2, inner) if problem.c_first else join(inner, problem.op2, problem.c)


# --- a little conversation -----------------------------------------------------------------------

SMALL_TALK = [
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "hello", "hi there", "Good morning", "Good evening!"),
     "Hello! Ask me to add, subtract or multiply."),
    (("Who are you?", "What are you?", "who are you", "What is your name?", "Tell me about yourself."),
     "I am a very small model that does arithmetic."),
    (("What can you do?", "what can you do", "Help", "help", "How can you help me?", "What should I ask?"),
     "I add, subtract and multiply small numbers. Try: What is 27 + 58?"),
    (("Thanks", "Thank you!", "thanks", "Thank you", "Great, thanks!", "Well done"), "You are welcome!"),
    (("Bye", "Goodbye", "Goodbye!", "bye", "See you"), "Goodbye!"),
    (("How are you?", "how are you", "How are you doing?", "Are you well?"), "I am well. What shall I calculate?"),
    (("Tell me a joke.", "Write a poem.", "What is the capital of France?", "What is the weather?", "Write some code.",
      "Who is the president?", "Explain gravity.", "What is love?"),
     "I only know arithmetic. Try: What is 37 * 42?"),
]


def draw_small_talk(rng: random.Random) -> tuple[str, str]:
    questions, reply = rng.choice(SMALL_TALK)
    return rng.choice(questions), reply
