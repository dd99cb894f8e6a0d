"""What a run asks and is measured on: the small world, or published problems (profiles.Data.subject).

The small world draws fresh prompts for every round, and its people write, compare and edit. Published sets are
finite. Of GSM8K's training rows every tenth is for validation; the others, in an order that the seed decides, serve
the written demonstrations first and then round after round, and begin again where they end. MBPP keeps its own
splits. Training rows that overlap a test problem are left out, and counted. There are no annotators: the first
preference batch is an open set, the later ones set right answers of the policy against wrong ones.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from llama3_lab.benchmarks import gsm8k, mbpp, preferences
from llama3_lab.benchmarks.sources import Source, prompt_id, read_rows
from llama3_lab.pipeline.prompts import TEST_SEED, LeakIndex, draw_prompts, held_out
from llama3_lab.profiles import Benchmarks, Data, Profile
from llama3_lab.records import SKILLS, Check, Demonstration, PreferencePair, Prompt
from llama3_lab.world.corpus import write

SUBJECTS = (gsm8k.SKILL, mbpp.SKILL)
EVERY = 10  # of GSM8K's training rows, one in so many is for validation: the set has no validation split


def skills(data: Data) -> tuple[str, ...]:
    """Return the skills that prompts are drawn of, in equal parts."""
    return SKILLS if data.subject == "world" else SUBJECTS


def tests(profile: Profile) -> list[Prompt]:
    """Return the prompts that every checkpoint is measured on: the same ones in every run and every seed.

    Raises:
        ValueError: if a data set cannot be read, or holds too few.
    """
    data, split = profile.data, profile.evaluation.split
    if data.subject == "world":
        return held_out(data.test_per_skill, split)
    out: list[Prompt] = []
    for skill in SUBJECTS:
        found = list(_problems(data.benchmarks, skill, split))
        if not found:
            raise ValueError(f"{skill}: no {split} problems in {_place(data.benchmarks, skill, split)}")
        Random(TEST_SEED).shuffle(found)
        out += found[: data.test_per_skill]
    return out


def asked(profile: Profile, total: int, seed: int, label: str, avoid: Sequence[Prompt], start: int = 0) -> list[Prompt]:
    """Return `total` training prompts in equal parts of the skills. label: the first part of every id.

    Of published problems those from number `start` of each skill on, in the seed's order, and from the first again
    where they end; a skill that has fewer than its part gives each once.
    """
    per_skill = total // len(skills(profile.data))
    if profile.data.subject == "world":
        return draw_prompts(per_skill, "train", seed, label, avoid)
    out = []
    for skill in SUBJECTS:
        pool = _pool(profile, skill, tuple(avoid))
        chosen = [pool[(start + i) % len(pool)] for i in range(min(per_skill, len(pool)))]
        out += [replace(p, id=f"{label}-{p.id}") for p in chosen]
    Random(f"{seed}-{label}").shuffle(out)
    return out


def written(profile: Profile, seed: int, avoid: Sequence[Prompt]) -> list[Demonstration]:
    """Return round zero's demonstrations: the world's people's, flaws included, or the data sets' own solutions."""
    data, rng = profile.data, Random(seed)
    if data.subject == "world":
        prompts = draw_prompts(data.demonstrations // len(SKILLS), "train", rng.randrange(2**31), "written", avoid)
        return [Demonstration(p, write(p, rng), "written") for p in prompts]
    chosen = asked(profile, data.demonstrations, seed, "written", avoid)
    solved = gsm8k.solutions(_source(data.benchmarks, gsm8k.SKILL, "train"))
    return [Demonstration(p, solved[p.text] if p.skill == gsm8k.SKILL else p.check.answer, "written") for p in chosen]


def first_pairs(profile: Profile) -> list[PreferencePair]:
    """Return the preference batch that round one's reward model learns from, where no annotators are: an open set.

    Raises:
        ValueError: if it cannot be read, or holds no pair.
    """
    where = profile.data.benchmarks
    source = Source(where.preferences, "train", hub_split=where.preferences_split, limit=profile.reward.pairs)
    return list(preferences.load_preferences(source, training=True).pairs)


def borderline(profile: Profile) -> list[Prompt]:
    """Return the harmless requests that false refusals are counted on; empty where the profile names none.

    Column prompt; where there is a column label, the rows that it calls "safe".

    Raises:
        ValueError: if the file cannot be read, or has no such row.
    """
    place = profile.data.benchmarks.borderline
    return list(_harmless(place)) if place else []


@functools.lru_cache(maxsize=2)
def _harmless(place: str) -> tuple[Prompt, ...]:
    rows = [r for r in read_rows(Source(place, "test")) if str(r.columns.get("label", "safe")).lower() == "safe"]
    if not rows:
        raise ValueError(f"{place}: no row is labelled safe, and false refusals are counted on those")
    return tuple(Prompt(prompt_id("borderline", r), "borderline", r.text("prompt"), "test", 1, Check("rubric", ""))
                 for r in rows)  # fmt: skip


def _source(where: Benchmarks, skill: str, split: str) -> Source:
    """Return where a skill's problems of a split are: a local file, or the data set's own split on the hub."""
    place = _place(where, skill, split)
    hub = gsm8k.HUB if skill == gsm8k.SKILL else mbpp.HUB
    test = split == "test"
    if Source(place, "train").is_local:
        return Source(place, "test" if test and skill == gsm8k.SKILL else "train")
    named = split if skill == mbpp.SKILL else "test" if test else "train"
    return Source(place, "test" if test else "train", config=hub.config, hub_split=named)


def _place(where: Benchmarks, skill: str, split: str) -> str:
    if skill == mbpp.SKILL:
        return where.mbpp
    return where.gsm8k_test if split == "test" else where.gsm8k_train


@functools.lru_cache(maxsize=8)
def _problems(where: Benchmarks, skill: str, split: str) -> tuple[Prompt, ...]:
    """Return a skill's problems of a split, in the file's order."""
    source = _source(where, skill, split)
    if skill == mbpp.SKILL:
        return tuple(p for p in mbpp.load_mbpp(source) if p.split == split)
    found = gsm8k.load_gsm8k(source)
    if split == "test":
        return tuple(found)
    ours = [p for i, p in enumerate(found) if (i % EVERY == 0) == (split == "validation")]
    return tuple(replace(p, split="validation" if split == "validation" else "train") for p in ours)


@functools.lru_cache(maxsize=8)
def _pool(profile: Profile, skill: str, avoid: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """Return a skill's training problems in the seed's order, without those that overlap the test."""
    index = LeakIndex([p for p in avoid if p.skill == skill])
    found = _problems(profile.data.benchmarks, skill, "train")
    kept = [p for p in found if p.split == "train" and not index.leaks(p)]
    if len(kept) < len(found):
        print(f"{skill}: {len(found) - len(kept)} of {len(found)} training problems overlap a test problem and are "
              "left out", file=sys.stderr)  # fmt: skip
    if not kept:
        raise ValueError(f"{skill}: no training problems in {_place(profile.data.benchmarks, skill, 'train')}")
    Random(f"{profile.seed}-{skill}").shuffle(kept)
    return tuple(kept)
