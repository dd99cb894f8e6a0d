"""Arithmetic word problems: a numeric answer, and working that can be checked step by step.

Level 1, 2, 3: two, three, four steps, with totals up to 20, 40, 60. Held out: whole sequences of
verbs. The corpus's authors hold two misconceptions, found in real pupils too: they take the smaller
digit from the larger instead of borrowing, and they forget to carry.
"""

from __future__ import annotations

from random import Random

from llama3_lab.records import Check, Prompt, Split
from llama3_lab.world.splits import draw_sequence

NAMES = ("Ann", "Bob", "Cid", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
THINGS = ("pens", "cups", "keys", "hats", "nuts", "maps", "coins", "books")
VERBS = {"finds": "+", "buys": "+", "loses": "-", "sells": "-", "gives": "-", "doubles": "*"}
STEPS = {1: 2, 2: 3, 3: 4}
LARGEST = {1: 20, 2: 40, 3: 60}


def make(rng: Random, level: int, split: Split, name: str = "") -> Prompt:
    """Return one problem of the level (1 to 3), drawn from the split's own verb sequences."""
    while True:
        verbs = draw_sequence(tuple(VERBS), STEPS[level], split, rng)
        start = total = rng.randint(2, LARGEST[level] // 2)
        told, working = [], []
        for verb in verbs:
            sign = VERBS[verb]
            n = 2 if sign == "*" else rng.randint(2, 9)
            new = {"+": total + n, "-": total - n, "*": total * n}[sign]
            told.append(f"{verb} them" if sign == "*" else f"{verb} {n}")
            working.append(f"{total}{sign}{n}={new}")
            total = new
            if not 1 <= total <= LARGEST[level]:
                break
        else:
            who, what = rng.choice(NAMES), rng.choice(THINGS)
            text = f"{who} has {start} {what}, {', '.join(told)}. How many {what}?"
            check = Check("number", str(total), tuple(working))
            return Prompt(name or text, "arithmetic", text, split, level, check)


def ideal(prompt: Prompt) -> str:
    """Return the right working and answer."""
    return "\n".join([*prompt.check.items, f"Answer: {prompt.check.answer}"])


def write(prompt: Prompt, rng: Random) -> str:
    """Return an answer as one of the corpus's authors writes it, misconceptions and slips included."""
    no_borrow, no_carry = rng.random() < 0.60, rng.random() < 0.45
    total, lines = int(prompt.check.items[0].split("=")[0].split("+")[0].split("-")[0].split("*")[0]), []
    for item in prompt.check.items:
        sign = next(s for s in "+-*" if s in item)
        n = int(item.split("=")[0].split(sign)[1])
        new = {"+": total + n, "-": total - n, "*": total * n}[sign]
        units = total % 10
        if sign == "-" and total > n and units < n and no_borrow:
            new = total - units + (n - units)
        elif sign == "+" and units + n >= 10 and no_carry:
            new = total - units + (units + n) % 10
        elif sign == "*" and units >= 5 and no_carry:
            new = (total - units) * 2 + (units * 2) % 10
        if rng.random() < 0.03:
            new += rng.choice((-1, 1))
        new = max(new, 0)
        lines.append(f"{total}{sign}{n}={new}")
        total = new
    return "\n".join([*lines, f"Answer: {total}"])
