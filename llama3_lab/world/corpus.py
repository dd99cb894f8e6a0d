"""The pre-training text: questions and answers by authors who are often wrong, in no chat format.

A document is `Q:`, the question, `A:`, an answer as written by one of the world's authors. Hard
levels are rare. Prompts come from the train split's combinations only, so that nothing of the
validation and test splits is ever read.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from llama3_lab.records import Prompt, Split
from llama3_lab.world import arithmetic, conversation, orderings, programs

WORLD = {"arithmetic": arithmetic, "programs": programs, "orderings": orderings, "conversation": conversation}
MIX = {"arithmetic": 0.36, "programs": 0.18, "orderings": 0.36, "conversation": 0.10}
LEVELS = {1: 0.45, 2: 0.30, 3: 0.25}


def make_prompt(rng: Random, skill: str, level: int, split: Split, name: str = "") -> Prompt:
    """Return one prompt of the skill, level and split."""
    return WORLD[skill].make(rng, level, split, name)


def ideal(prompt: Prompt) -> str:
    """Return a right (for the open skill: perfect) answer."""
    return WORLD[prompt.skill].ideal(prompt)


def write(prompt: Prompt, rng: Random) -> str:
    """Return an answer by one of the world's authors, flaws included."""
    return WORLD[prompt.skill].write(prompt, rng)


def base_text(question: str, answer: str) -> str:
    """Return the document form of the corpus, without its begin and end tokens."""
    return f"Q:\n\n{question}\n\nA:\n\n{answer}"


def documents(n: int, seed: int, easy_share: float = 0.0) -> Iterator[str]:
    """Yield n documents. Of the orderings, `easy_share` have only two names (a curriculum's start)."""
    rng = Random(seed)
    for _ in range(n):
        skill = rng.choices(tuple(MIX), tuple(MIX.values()))[0]
        level = rng.choices(tuple(LEVELS), tuple(LEVELS.values()))[0]
        if skill == "orderings" and rng.random() < easy_share:
            level = 0
        prompt = make_prompt(rng, skill, level, "train")
        yield base_text(prompt.text, write(prompt, rng))
