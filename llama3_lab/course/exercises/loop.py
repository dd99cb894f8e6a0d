"""Exercises of 08_the_loop, and its museum piece: a control that is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.pipeline.demonstrations import by_prompt, select, select_at_random
from llama3_lab.records import Candidate, Check, Demonstration, Judged, Prompt, Verdict

HARD_RATE, K = 0.05, 16  # of 08.1: the share of right samples at the hardest level, and samples a prompt
ORDER = ("first", "sibling", "batch-0", "round1-reward", "round1-judged", "round1-sft", "batch-1", "round1-policy")


def museum_control(judged: Sequence[Judged], best: Sequence[Demonstration], seed: int = 0) -> list[Demonstration]:
    """Return as many demonstrations as `best`, by lot. (A museum piece: one thing is wrong with it.)"""
    rng = Random(seed)
    groups = [[j.candidate for j in g if j.candidate.finished] for g in by_prompt(judged)]
    drawn = [rng.choice(g) for g in rng.sample([g for g in groups if g], len(best))]
    return [Demonstration(c.prompt, c.text, "random") for c in drawn]


def sample_of_judged() -> list[Judged]:
    """Return six prompts with four judged answers each; the last three prompts are too hard for all of them."""
    out = []
    for n in range(6):
        prompt = Prompt(f"p{n}", "arithmetic", f"{n}+{n}?", "train", 1 + n // 3 * 2, Check("number", str(2 * n)))
        for i in range(4):
            right = n < 3 and i != n
            candidate = Candidate(prompt, f"Answer: {2 * n if right else 90 + i}", "first", 1.0, i, 3, True, -1.0)
            out.append(Judged(candidate, Verdict("pass" if right else "fail", "exact_number", ""), float(i)))
    return out


def _solved(answer: float) -> str | None:
    if not 0 <= answer <= 1:
        return "share"
    near = {"one try": HARD_RATE, "expected": K * HARD_RATE, "none": (1 - HARD_RATE) ** K}
    if math.isclose(answer, 1 - near["none"], abs_tol=0.015):
        return None
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.006)), "far")


def _feeds(feed: Callable[..., Any]) -> str | None:
    earlier, newest = [["a1", "a2"], ["b1"]], ["c1", "c2"]
    reward, dpo = (sorted(part, key=str) for part in feed(earlier, newest))
    if (earlier, newest) != ([["a1", "a2"], ["b1"]], ["c1", "c2"]):
        return "changed"
    if (reward, dpo) == (["a1", "a2", "b1"], ["c1", "c2"]):
        return None
    if reward == ["c1", "c2"] and dpo == ["a1", "a2", "b1"]:
        return "swapped"
    if any(isinstance(p, list) for p in (*reward, *dpo)):
        return "nested"
    return "stale" if set(dpo) & {"a1", "a2", "b1"} else "future" if set(reward) & {"c1", "c2"} else "lost"


def _fair(fair: Callable[..., Any]) -> str | None:
    judged = sample_of_judged()
    best = select(judged)
    for seed in range(5):
        if not fair(select_at_random(judged, best, seed), best):
            return "alarm"
    broken = [museum_control(judged, best, seed) for seed in range(12)]
    off = [c for c in broken if {d.prompt.id for d in c} != {d.prompt.id for d in best}]
    return "missed" if any(fair(c, best) for c in off) else None


def _plan(runs: Collection[tuple[str, int]]) -> str | None:
    seeds = {order: {s for o, s in runs if o == order} for order in ("paper", "field_report")}
    if {o for o, _ in runs} - set(seeds):
        return "order"
    if not all(seeds.values()):
        return "one side"
    if seeds["paper"] != seeds["field_report"]:
        return "unpaired"
    return "anecdote" if len(seeds["paper"]) < 3 else None


def _no_longer(names: Collection[str]) -> str | None:
    named = set(names) - {"batch-0"}
    if isinstance(names, str) or named - set(ORDER):
        return "names"
    if named & {"first", "sibling"}:
        return "before"
    if "round1-reward" not in named:
        return "reader"
    if "round1-judged" not in named:
        return "rewards"
    return None if named == set(ORDER[3:]) else "on"


EXERCISES = (
    Exercise(
        "08.1", "predict", "Hard prompts that survive", 1, 3, 3, 2, _solved,
        {"share": "Give a share between 0 and 1.",
         "one try": "That is the chance of one sample; each prompt has sixteen.",
         "expected": "That is how many of sixteen pass on average; one prompt may have two, and still gives one row.",
         "none": "That is the share of prompts where all sixteen fail.",
         "far": "Think of the prompt on which every sample fails: how likely are that many failures in a row?"},
        "An easy prompt nearly always survives, so the filter makes the training set easier than the prompts were.",
    ),
    Exercise(
        "08.2", "implement", "What feeds what", 2, 3, 8, 1, _feeds,
        {"changed": "Your function changes a list that it was given; the next round would find it changed.",
         "swapped": "Both parts are there, the wrong way round.",
         "nested": "Return pairs, not batches: the lists are still inside each other.",
         "stale": "DPO got pairs that an older model's answers gave; see the third row of the table at the top.",
         "future": "When the reward model is trained, this round's newest batch has not been collected yet.",
         "lost": "Some pairs are in neither part, or came from nowhere."},
        "The reward model may learn from every model's answers; DPO wants those of the model that it trains.",
    ),
    Exercise(
        "08.3", "diagnose", "A control that is none", 2, 3, 10, 3, _fair,
        {"alarm": "Your check also refuses the package's control. The two may differ in the texts: that is the point.",
         "missed": "Your check lets the museum's control pass. Print both, row by row: what was each row asked?"},
        "It drew other, harder prompts, so the gain over it would have mixed two things.",
    ),
    Exercise(
        "08.4", "design", "Which order is better?", 2, 2, 5, 3, _plan,
        {"order": "The package knows two orders: paper and field_report.",
         "one side": "A comparison needs both orders.",
         "unpaired": "Give both orders the same seeds: then each difference is between two runs that share their luck.",
         "anecdote": "With so few seeds you cannot tell the order's effect from the seed's."},
        "An interval over prompts says nothing about another seed; only more seeds do.",
    ),
    Exercise(
        "08.5", "predict", "What no longer follows", 2, 2, 4, 4, _no_longer,
        {"names": "Give a set of the names that stand above, as they are written there.",
         "before": "One of these learned from written demonstrations; no preference went into it.",
         "reader": "Who is trained on these pairs?",
         "rewards": "The candidates stay the same, but they carry something that the reward model gave them.",
         "on": "You have begun the chain; follow it to its end."},
        "That is why the ledger keeps the order in which stages were finished.",
    ),
)
