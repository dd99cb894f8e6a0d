"""draw_prompts(), load_prompts(): what a round asks, and the refusal of anything that is in the test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from llama3_lab.records import SKILLS, Prompt, Split
from llama3_lab.store import read_records
from llama3_lab.world.corpus import make_prompt

LEVELS = (1, 2, 3)
TEST_SEED = 20_24_07  # the test and validation prompts are the same in every run and every seed
N_GRAM = 8


def draw_prompts(per_skill: int, split: Split, seed: int, label: str, skills: Sequence[str] = SKILLS) -> list[Prompt]:
    """Return `per_skill` prompts of each skill, levels in equal parts, all texts different.

    label: the first part of every id, e.g. "round1". Order: shuffled, by the seed.
    """
    rng, out, seen = Random(f"{seed}-{label}-{split}"), [], set()
    for skill in skills:
        n, tries = 0, 0
        while n < per_skill:
            level = LEVELS[n % len(LEVELS)]
            prompt = make_prompt(rng, skill, level, split, f"{label}-{skill}-{n:04d}")
            tries += 1
            if prompt.text in seen:
                if tries > 200 * per_skill:
                    raise ValueError(f"the world has fewer than {per_skill} different {skill} prompts in {split}")
                continue
            seen.add(prompt.text)
            out.append(prompt)
            n += 1
    rng.shuffle(out)
    return out


def held_out(per_skill: int, split: Split) -> list[Prompt]:
    """Return the validation or test prompts: the same ones for every run."""
    return draw_prompts(per_skill, split, TEST_SEED, split)


def load_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a JSONL file, one `Prompt` record a line.

    Raises:
        ValueError: naming file and line, for a missing file, a malformed line or an id used twice;
            and for a prompt whose split is not "train".
    """
    prompts = read_records(path, Prompt)
    seen: dict[str, int] = {}
    for line, prompt in enumerate(prompts, 1):
        if prompt.id in seen:
            raise ValueError(f"{path}:{line}: id {prompt.id!r} stands on line {seen[prompt.id]} already; ids are unique")
        if prompt.split != "train":
            raise ValueError(f'{path}:{line}: split is "{prompt.split}"; only "train" prompts may train')
        if prompt.skill not in SKILLS:
            raise ValueError(f"{path}:{line}: skill {prompt.skill!r} is not one of {', '.join(SKILLS)}")
        seen[prompt.id] = line
    if not prompts:
        raise ValueError(f"{path}: no prompts in it; write one Prompt record a line")
    return prompts


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, with digits, marks dropped."""
    return re.findall(r"[a-z0-9]+", text.lower())


def n_grams(text: str) -> set[tuple[str, ...]]:
    """Return the 8-grams of a text, over words."""
    w = words(text)
    return {tuple(w[i : i + N_GRAM]) for i in range(len(w) - N_GRAM + 1)}


def find_leaks(train: Iterable[Prompt], test: Sequence[Prompt], share: float = 0.5) -> list[tuple[Prompt, Prompt, str]]:
    """Return (train prompt, test prompt, why) for every overlap, exact or by 8-grams.

    Exact: the same words. 8-gram: one training prompt holds more than `share` of a test prompt's
    8-grams (the paper counts 8-gram overlap against a threshold too, §5.1.4). A bare shared 8-gram is
    no leak here: a small world repeats its phrases.
    """
    exact = {tuple(words(t.text)): t for t in test}
    grams = {t.id: n_grams(t.text) for t in test}
    holders: dict[tuple[str, ...], list[Prompt]] = {}
    for t in test:
        for gram in grams[t.id]:
            holders.setdefault(gram, []).append(t)
    leaks = []
    for prompt in train:
        if (same := exact.get(tuple(words(prompt.text)))) is not None:
            leaks.append((prompt, same, "the same words"))
            continue
        shared: dict[str, int] = {}
        by_id = {}
        for gram in n_grams(prompt.text):
            for t in holders.get(gram, ()):
                shared[t.id], by_id[t.id] = shared.get(t.id, 0) + 1, t
        leaks += [
            (prompt, by_id[i], f"{n} of {len(grams[i])} 8-grams") for i, n in shared.items() if n > share * len(grams[i])
        ]
    return leaks


def refuse_leaks(train: Sequence[Prompt], test: Sequence[Prompt]) -> None:
    """Raise where a training prompt overlaps a test prompt.

    Raises:
        ValueError: naming the first overlap and how many there are.
    """
    leaks = find_leaks(train, test)
    if leaks:
        a, b, why = leaks[0]
        raise ValueError(
            f"training prompt {a.id!r} overlaps test prompt {b.id!r} ({why}); "
            f"{len(leaks)} such overlaps; remove these training prompts"
        )
