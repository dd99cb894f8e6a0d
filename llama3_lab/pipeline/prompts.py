"""draw_prompts(), load_prompts(): what a round asks, and the refusal of anything that is in the test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from llama3_lab.records import BENCHMARKS, SKILLS, Prompt, Split
from llama3_lab.store import read_records
from llama3_lab.world.corpus import make_prompt

LEVELS = (1, 2, 3)
TEST_SEED = 20_24_07  # the test and validation prompts are the same in every run and every seed
N_GRAM = 8


def draw_prompts(per_skill: int, split: Split, seed: int, label: str, avoid: Sequence[Prompt] = ()) -> list[Prompt]:
    """Return `per_skill` prompts of each skill, levels in equal parts, all texts different.

    Where a level has no text left (one-step programs are few), the others fill up. label: the first
    part of every id, e.g. "round1". avoid: test prompts; what overlaps them is drawn again. Order:
    shuffled, by the seed.

    Raises:
        ValueError: if the skill has fewer different texts than that in this split.
    """
    rng, index = Random(f"{seed}-{label}-{split}"), LeakIndex(avoid)
    out: list[Prompt] = []
    seen: set[str] = set()
    for skill in SKILLS:
        levels, n = list(LEVELS), 0
        while n < per_skill:
            level = levels[n % len(levels)]
            new = _new_prompt(rng, (skill, level, split), f"{label}-{skill}-{n:04d}", seen)
            if new is not None and index.leaks(new):
                continue
            if new is not None:
                out.append(new)
                n += 1
            elif len(levels) > 1:
                levels.remove(level)
            else:
                raise ValueError(
                    f"the world has fewer than {per_skill} different {skill} prompts in {split}; ask for fewer"
                )
    rng.shuffle(out)
    return out


def _new_prompt(rng: Random, kind: tuple[str, int, Split], name: str, seen: set[str]) -> Prompt | None:
    """Return a prompt whose text is not in `seen` (and put it there), or None where 300 tries find none."""
    for _ in range(300):
        prompt = make_prompt(rng, *kind, name)
        if prompt.text not in seen:
            seen.add(prompt.text)
            return prompt
    return None


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
            raise ValueError(
                f"{path}:{line}: id {prompt.id!r} stands on line {seen[prompt.id]} already; ids are unique"
            )
        if prompt.split != "train":
            raise ValueError(f'{path}:{line}: split is "{prompt.split}"; only "train" prompts may train')
        if prompt.skill not in (*SKILLS, *BENCHMARKS):
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


class LeakIndex:
    """The texts and 8-grams of test prompts, indexed, to hold other prompts against."""

    def __init__(self, test: Sequence[Prompt], share: float = 0.5) -> None:
        self.share = share
        self.exact = {tuple(words(t.text)): t for t in test}
        self.tests = {t.id: (t, len(n_grams(t.text))) for t in test}
        self.holders: dict[tuple[str, ...], list[str]] = {}
        for t in test:
            for gram in n_grams(t.text):
                self.holders.setdefault(gram, []).append(t.id)

    def leaks(self, prompt: Prompt) -> list[tuple[Prompt, str]]:
        """Return the test prompts that this prompt overlaps, each with the reason."""
        if (same := self.exact.get(tuple(words(prompt.text)))) is not None:
            return [(same, "the same words")]
        shared = Counter(name for gram in n_grams(prompt.text) for name in self.holders.get(gram, ()))
        found = [(*self.tests[name], n) for name, n in shared.items()]
        return [(test, f"{n} of its {total} 8-grams") for test, total, n in found if n > self.share * total]


def find_leaks(train: Iterable[Prompt], test: Sequence[Prompt]) -> list[tuple[Prompt, Prompt, str]]:
    """Return (train prompt, test prompt, why) for every overlap, exact or by 8-grams.

    Exact: the same words. 8-gram: one training prompt holds more than half of a test prompt's
    8-grams (the paper counts 8-gram overlap against a threshold too, §5.1.4). A bare shared 8-gram is
    no leak here: a small world repeats its phrases.
    """
    index = LeakIndex(test)
    return [(prompt, t, why) for prompt in train for t, why in index.leaks(prompt)]


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
