"""Open requests: "Tell me about the fox: colour, food." No checker; better and worse by a rubric.

The rubric is known to the world only: complete (every thing asked for, rightly), brief (nothing
else) and polite. Level 1, 2, 3: one, two, three things asked for. Held out: an animal together with
the set of things asked about it.
"""

from __future__ import annotations

from random import Random

from llama3_lab.records import Check, Prompt, Split
from llama3_lab.world.splits import split_of

FACTS = {
    "fox": ("red", "mice", "dens", "yip"), "owl": ("brown", "mice", "trees", "hoot"),
    "cow": ("white", "grass", "barns", "moo"), "bee": ("gold", "nectar", "hives", "buzz"),
    "cat": ("black", "fish", "houses", "purr"), "dog": ("brown", "meat", "houses", "bark"),
    "pig": ("pink", "roots", "barns", "oink"), "hen": ("white", "corn", "barns", "cluck"),
    "frog": ("green", "flies", "ponds", "croak"), "duck": ("gray", "bread", "ponds", "quack"),
    "wolf": ("gray", "meat", "dens", "howl"), "bear": ("brown", "honey", "caves", "growl"),
    "lion": ("gold", "meat", "plains", "roar"), "seal": ("gray", "fish", "seas", "bark"),
    "crow": ("black", "corn", "trees", "caw"), "goat": ("white", "grass", "hills", "bleat"),
    "crab": ("red", "plants", "seas", "click"), "bat": ("black", "flies", "caves", "squeak"),
    "swan": ("white", "plants", "lakes", "hiss"), "toad": ("green", "flies", "ponds", "croak"),
}  # fmt: skip
ASPECTS = ("colour", "food", "home", "sound")
SENTENCES = ("It is {}.", "It eats {}.", "It lives in {}.", "It makes a {}.")
OPENINGS = ("Tell me about the", "Describe the", "Please describe the", "I want to know about the")
POLITE, RUDE = ("Sure!", "Gladly!"), ("Oh no.", "Not again.")
FILLER = ("What can I say.", "So it goes.", "As you know.")


def make(rng: Random, level: int, split: Split, name: str = "") -> Prompt:
    """Return one request of the level (1 to 3) from the split's own animals and things asked."""
    while True:
        animal, asked = rng.choice(tuple(FACTS)), rng.sample(range(4), level)
        if split_of(animal, *(ASPECTS[i] for i in sorted(asked))) == split:
            break
    text = f"{rng.choice(OPENINGS)} {animal}: {', '.join(ASPECTS[i] for i in asked)}."
    wanted = tuple(SENTENCES[i].format(FACTS[animal][i]) for i in asked)
    return Prompt(name or text, "conversation", text, split, level,
                  Check("rubric", " ".join([POLITE[0], *wanted]), wanted))  # fmt: skip


def ideal(prompt: Prompt) -> str:
    """Return a complete, brief and polite answer."""
    return prompt.check.answer


def write(prompt: Prompt, rng: Random) -> str:
    """Return an answer as one of the corpus's authors writes it: often rude, wordy or incomplete."""
    wanted = list(prompt.check.items)
    animal = prompt.text.split(":")[0].split()[-1]
    if rng.random() < 0.45:
        wanted.remove(rng.choice(wanted))
    if rng.random() < 0.30 or not wanted:
        i = rng.randrange(4)
        extra = SENTENCES[i].format(FACTS[animal][i])
        if extra not in prompt.check.items:
            wanted.insert(rng.randint(0, len(wanted)), extra)
    for filler in FILLER:
        if rng.random() < 0.15:
            wanted.insert(rng.randint(0, len(wanted)), filler)
    manner = rng.random()
    opening = rng.choice(POLITE) if manner < 0.4 else rng.choice(RUDE) if manner < 0.7 else ""
    return " ".join([*([opening] if opening else []), *(wanted or [rng.choice(FILLER)])])


def sentences(text: str) -> list[str]:
    """Return the sentences of an answer, end marks included."""
    marked = text.replace(".", ".\n").replace("!", "!\n").split("\n")
    return [s.strip() for s in marked if s.strip()]


def quality(prompt: Prompt, text: str) -> float:
    """Return the true quality by the rubric, in logits: 4 is perfect, lower is worse, no floor.

    3 × share of the wanted sentences present, + 1 when it opens politely, − 1 when rudely, − 0.75
    for each other sentence (filler, wrong, unasked or repeated).
    """
    said = sentences(text)
    found = [w for w in prompt.check.items if w in said]
    polite = bool(said) and said[0] in POLITE
    manner = float(polite) - any(s in RUDE for s in said)
    extra = len(said) - len(found) - polite - sum(s in RUDE for s in said)
    return 3.0 * len(found) / len(prompt.check.items) + manner - 0.75 * extra


PERFECT = 4.0
