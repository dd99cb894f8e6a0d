"""Small Python functions: "Write f(xs): keep above 4, add 3, sum." Unit tests tell right from wrong.

Level 1, 2, 3: one, two, three operations on the list before it is returned. Held out: whole
sequences of operations. The corpus's authors are unsure of boundaries (> or >=), of slices
(off by one), of `list.sort` (which returns None) and sometimes of what "even" means.
"""

from __future__ import annotations

from random import Random

from llama3_lab.records import Check, Prompt, Split
from llama3_lab.world.splits import split_of

OPERATIONS = ("keep evens", "keep odds", "keep above", "keep below", "add", "times", "sort", "skip", "take")
ENDS = ("sum", "count", "max", "list")
_NUMBERED = {"keep above": (2, 9), "keep below": (2, 9), "add": (2, 9), "times": (2, 5), "skip": (1, 3),
             "take": (1, 3)}  # fmt: skip
_END_LINES = {"sum": " return sum(xs)", "count": " return len(xs)", "max": " return max(xs, default=0)",
              "list": " return xs"}  # fmt: skip


def make(rng: Random, level: int, split: Split, name: str = "") -> Prompt:
    """Return one request of the level (1 to 3), drawn from the split's own operation sequences."""
    while True:
        operations = [rng.choice(OPERATIONS) for _ in range(level)]
        end = rng.choice(ENDS)
        if split_of(*operations, end) == split:
            break
    steps = [f"{o} {rng.randint(*_NUMBERED[o])}" if o in _NUMBERED else o for o in operations]
    text = f"Write f(xs): {', '.join([*steps, end])}."
    program = "\n".join(["def f(xs):", *(_line(s) for s in steps), _END_LINES[end]])
    scope: dict = {}
    exec(program, scope)  # our own generated program, not a model's: it makes the expected values
    tests = tuple(f"f({xs}) == {scope['f'](list(xs))!r}" for xs in _inputs(steps, rng))
    return Prompt(name or text, "programs", text, split, level, Check("tests", program, tests))


def _inputs(steps: list[str], rng: Random) -> list[list[int]]:
    """Return five lists: random ones, one holding every number named in the request, one empty."""
    named = [int(s.split()[-1]) for s in steps if s[-1].isdigit()]
    lists = [[rng.randint(0, 12) for _ in range(6)] for _ in range(3)]
    around = [v for n in named for v in (n - 1, n, n + 1)] or [3, 1, 2]
    rng.shuffle(around)
    return [*lists, [*around, 7, 4, 10, 1], []]


def _line(step: str) -> str:
    """Return the right line of code for one step, e.g. "keep above 4"."""
    operation, n = step.rsplit(" ", 1) if step[-1].isdigit() else (step, "")
    return {
        "keep evens": " xs = [x for x in xs if x % 2 == 0]",
        "keep odds": " xs = [x for x in xs if x % 2 == 1]",
        "keep above": f" xs = [x for x in xs if x > {n}]",
        "keep below": f" xs = [x for x in xs if x < {n}]",
        "add": f" xs = [x + {n} for x in xs]",
        "times": f" xs = [x * {n} for x in xs]",
        "sort": " xs = sorted(xs)",
        "skip": f" xs = xs[{n}:]",
        "take": f" xs = xs[:{n}]",
    }[operation]


def ideal(prompt: Prompt) -> str:
    """Return a right program."""
    return prompt.check.answer


def write(prompt: Prompt, rng: Random) -> str:
    """Return a program as one of the corpus's authors writes it, misconceptions and slips included."""
    boundary, index, sort = rng.random() < 0.60, rng.random() < 0.50, rng.random() < 0.55
    parity = rng.random() < 0.30
    lines = prompt.check.answer.split("\n")
    for i, line in enumerate(lines):
        if boundary and (" > " in line or " < " in line):
            lines[i] = line.replace(" > ", " >= ").replace(" < ", " <= ")
        elif index and ("xs[:" in line or ":]" in line):
            n = next(c for c in line if c.isdigit())
            lines[i] = line.replace(n, str(int(n) + 1 if "[:" in line else int(n) - 1))
        elif sort and "sorted" in line:
            lines[i] = " xs = xs.sort()"
        elif parity and "% 2" in line:
            lines[i] = line.replace("== 0", "== 2") if "== 0" in line else line.replace("== 1", "== 0")
            lines[i] = lines[i].replace("== 2", "== 1")
        elif rng.random() < 0.02 and "for x in xs]" in line:
            n = next(c for c in line if c.isdigit())
            lines[i] = line.replace(n, str(int(n) + 1))
    return "\n".join(lines)
