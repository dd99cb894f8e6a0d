"""The pre-training text: questions and answers by authors who are often wrong, in no chat format.

A document is a heading, the question, a heading, an answer as written by one of the world's authors.
Headings come in several forms, of which `Q:` and `A:` is the commonest: a base that has seen one form
only ties its skills to that form's positions, and loses half of them with the first chat template
(EXPERIMENTS.md). Hard levels are rare. Prompts come from the train split's combinations only, so
that nothing of the validation and test splits is ever read.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from llama3_lab.records import Prompt, Split
from llama3_lab.world import arithmetic, conversation, orderings, programs

WORLD = {"arithmetic": arithmetic, "programs": programs, "orderings": orderings, "conversation": conversation}
MIX = {"arithmetic": 0.30, "programs": 0.15, "orderings": 0.46, "conversation": 0.09}
LEVELS = {1: 0.45, 2: 0.30, 3: 0.25}
# (above the question, above the answer); {n} and {m} are numbers. The first is the base's own format.
HEADINGS = {
    ("Q:", "A:"): 0.40,
    ("Question", "Reply"): 0.12,
    ("A pupil asks:", "The teacher says:"): 0.12,
    ("Page {n}, exercise {m}", "Solution"): 0.12,
    ("Forum\n\nA reader writes:", "Somebody replies:"): 0.12,
    ("Quiz, number {n}:", "My answer:"): 0.12,
}


def make_prompt(rng: Random, skill: str, level: int, split: Split, name: str = "") -> Prompt:
    """Return one prompt of the skill, level and split."""
    return WORLD[skill].make(rng, level, split, name)


def ideal(prompt: Prompt) -> str:
    """Return a right (for the open skill: perfect) answer."""
    return WORLD[prompt.skill].ideal(prompt)


def write(prompt: Prompt, rng: Random) -> str:
    """Return an answer by one of the world's authors, flaws included."""
    return WORLD[prompt.skill].write(prompt, rng)


def base_text(question: str, answer: str, headings: tuple[str, str] = ("Q:", "A:")) -> str:
    """Return a document of the corpus, without its begin and end tokens; by default in the base's own format."""
    return f"{headings[0]}\n\n{question}\n\n{headings[1]}\n\n{answer}"


def draw_headings(rng: Random) -> tuple[str, str]:
    """Return the headings of one document, numbers filled in."""
    above_question, above_answer = rng.choices(tuple(HEADINGS), tuple(HEADINGS.values()))[0]
    return above_question.format(n=rng.randint(1, 40), m=rng.randint(1, 9)), above_answer


def documents(n: int, seed: int, easy_share: float = 0.0) -> Iterator[str]:
    """Yield n documents. Of the orderings, `easy_share` have only two names (a curriculum's start)."""
    rng = Random(seed)
    for _ in range(n):
        skill = rng.choices(tuple(MIX), tuple(MIX.values()))[0]
        level = rng.choices(tuple(LEVELS), tuple(LEVELS.values()))[0]
        if skill == "orderings" and rng.random() < easy_share:
            level = 0
        prompt = make_prompt(rng, skill, level, "train")
        yield base_text(prompt.text, write(prompt, rng), draw_headings(rng))
