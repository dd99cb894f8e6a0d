"""Orderings: "Bob beats Cid. Bob loses to Ann. Who is first?" A chain, checked link by link.

Level 1, 2, 3: three, four, five names, the statements shuffled. Held out: whole sets of names. The
corpus's authors sometimes read "loses to" the wrong way round, and sometimes answer "Who is last?"
with the first.
"""

from __future__ import annotations

from random import Random

from llama3_lab.records import Check, Prompt, Split
from llama3_lab.world.splits import draw

NAMES = ("Ann", "Bob", "Cid", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned",
         "Oto", "Pam")  # fmt: skip
LENGTHS = {0: 2, 1: 3, 2: 4, 3: 5}


def make(rng: Random, level: int, split: Split, name: str = "") -> Prompt:
    """Return one puzzle of the level (1 to 3; 0, two names, is for the corpus only)."""
    chain = draw(NAMES, LENGTHS[level], split, rng)
    facts = [
        f"{b} loses to {a}." if rng.random() < 0.3 else f"{a} beats {b}."
        for a, b in zip(chain, chain[1:], strict=False)
    ]
    rng.shuffle(facts)
    which = rng.choice(("first", "last"))
    text = f"{' '.join(facts)} Who is {which}?"
    links = tuple(f"{a} > {b}" for a, b in zip(chain, chain[1:], strict=False))
    check = Check("chain", chain[0] if which == "first" else chain[-1], links)
    return Prompt(name or text, "orderings", text, split, level, check)


def _chain(prompt: Prompt) -> list[str]:
    links = [item.split(" > ") for item in prompt.check.items]
    return [links[0][0], *(b for _, b in links)]


def ideal(prompt: Prompt) -> str:
    """Return the right chain and answer."""
    return f"{' > '.join(_chain(prompt))}\nAnswer: {prompt.check.answer}"


def write(prompt: Prompt, rng: Random) -> str:
    """Return an answer as one of the corpus's authors writes it, misreadings included."""
    chain = _chain(prompt)
    misreads_passive, misreads_last = rng.random() < 0.40, rng.random() < 0.35
    if misreads_passive and " loses to " in prompt.text:
        winner = prompt.text.split(" loses to ")[1].split(".")[0]
        i = chain.index(winner)
        chain[i], chain[i + 1] = chain[i + 1], chain[i]
    last = prompt.text.endswith("last?") and not misreads_last
    return f"{' > '.join(chain)}\nAnswer: {chain[-1] if last else chain[0]}"
