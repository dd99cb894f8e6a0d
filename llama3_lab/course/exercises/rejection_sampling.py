"""Exercises of 05_rejection_sampling, and its museum piece: rewards compared across prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.pipeline.demonstrations import by_prompt
from llama3_lab.pipeline.reports import pass_at_k
from llama3_lab.records import Candidate, Check, Demonstration, Judged, Prompt, Verdict

COUNTS, DRAWN, K = (8, 1, 0), 16, 4  # of 05.1: right answers of three prompts, of so many drawn; K to come
RIGHT_CHAINS, NAMES = 0.06, 5  # of 05.5: share of answers whose chain is right; names to guess among
BUDGET = 3000  # of 05.4: tokens for the second batch
# Of 05.4, by prompt: chance that one more answer passes (of prompts of its kind), tokens an answer.
WAITING = {
    "arithmetic-2": (0.06, 28), "arithmetic-3": (0.04, 36), "programs-3": (0.03, 45),
    "orderings-2": (0.06, 12), "orderings-3": (0.02, 14), "programs-1 (solved)": (0.50, 23),
}  # fmt: skip
SOLVED = "programs-1 (solved)"


def museum_quarter(judged: Sequence[Judged]) -> list[Judged]:
    """Return the quarter with the highest rewards. (A museum piece: two things are wrong with it.)"""
    ranked = sorted(judged, key=lambda j: j.reward, reverse=True)
    return ranked[: len(judged) // 4]


def rewarded() -> list[Judged]:
    """Return four prompts of eight finished answers each; their rewards lie apart. One more answer was cut off."""
    out = []
    for n, offset in enumerate((4.0, 0.0, -3.0, 9.0)):
        prompt = Prompt(f"p{n}", "conversation", f"Tell me about {n}.", "train", 1, Check("rubric", ""))
        for i in range(8 + (n == 2)):
            candidate = Candidate(prompt, f"Answer {i}.", "first", 1.0, i, 3, i < 8, -1.0)
            reward = offset + (5.0 if i == 8 else 0.3 * ((3 * i + n) % 8))
            out.append(Judged(candidate, Verdict("abstain", "rubric", ""), reward))
    return out


def uneven_rows() -> list[Demonstration]:
    """Return demonstrations of two skills, fewer of them at the harder levels, and none of orderings at level 2."""
    out = []
    for skill, level, n in (("arithmetic", 1, 5), ("arithmetic", 2, 3), ("arithmetic", 3, 2),
                            ("orderings", 1, 4), ("orderings", 3, 1)):  # fmt: skip
        for i in range(n):
            prompt = Prompt(f"{skill}-{level}-{i}", skill, f"Ask {i}.", "train", level, Check("number", "1"))
            out.append(Demonstration(prompt, f"Answer: {i}", "both"))
    return out


def solved_in_all(further: Mapping[str, int]) -> float:
    """Return how many prompts of WAITING are expected to be solved by so many further answers each."""
    return sum(1 - (1 - WAITING[name][0]) ** n for name, n in further.items() if name != SOLVED)


def _kept_at_four(answer: float) -> str | None:
    exact = sum(pass_at_k(DRAWN, c, K) for c in COUNTS)
    if math.isclose(answer, exact, abs_tol=0.012):
        return None
    mean = sum(COUNTS) / DRAWN / len(COUNTS)
    near = {
        "share": exact / len(COUNTS), "plug in": sum(1 - (1 - c / DRAWN) ** K for c in COUNTS),
        "pooled": len(COUNTS) * (1 - (1 - mean) ** K), "sixteen": float(sum(c > 0 for c in COUNTS)),
        "linear": K * sum(COUNTS) / DRAWN,
    }  # fmt: skip
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.012)), "far")


def _balanced(balance: Callable[..., Any]) -> str | None:
    rows = uneven_rows()
    got = Counter(balance(rows))
    if rows != uneven_rows():
        return "changed"
    if set(got) - set(rows):
        return "invented"
    if set(rows) - set(got):
        return "dropped"
    sizes: Counter[tuple[str, int]] = Counter()
    for d, n in got.items():
        sizes[d.prompt.skill, d.prompt.level] += n
    if all(n == max(m for (s, _), m in sizes.items() if s == skill) for (skill, _), n in sizes.items()):
        for kind in sizes:
            copies = [n for d, n in got.items() if (d.prompt.skill, d.prompt.level) == kind]
            if max(copies) - min(copies) > 1:
                return "uneven"
        return None
    by_level: Counter[int] = Counter()
    for (_, level), n in sizes.items():
        by_level[level] += n
    return "skills" if len(set(by_level.values())) == 1 else "levels"


def _quarter(quarter: Callable[..., Any]) -> str | None:
    judged = rewarded()
    kept = list(quarter(judged))
    if any(not j.candidate.finished for j in kept):
        return "unfinished"
    by_id = Counter(j.candidate.prompt.id for j in kept)
    if len(by_id) < len(by_prompt(judged)):
        return "across"
    if set(by_id.values()) != {2}:
        return "number"
    for group in by_prompt(judged):
        ranked = sorted((j.reward for j in group if j.candidate.finished), reverse=True)
        if {j.reward for j in kept if j.candidate.prompt == group[0].candidate.prompt} != set(ranked[:2]):
            return "lower"
    return None


def _spent(further: Mapping[str, int]) -> str | None:
    if set(further) - set(WAITING) or any(n != int(n) or n < 0 for n in further.values()):
        return "names"
    if further.get(SOLVED, 0):
        return "solved"
    tokens = {name: n * WAITING[name][1] for name, n in further.items()}
    if sum(tokens.values()) > BUDGET:
        return "budget"
    if sum(tokens.values()) < 0.95 * BUDGET:
        return "unused"
    if max(tokens.values()) > BUDGET / 2:
        return "one"
    return None if solved_in_all(further) >= 0.985 * solved_in_all(best_plan()) else "better"


def best_plan() -> dict[str, int]:
    """Return the plan that buys, answer by answer, where a token adds most to the prompts expected to be solved."""
    plan, left = {name: 0 for name in WAITING if name != SOLVED}, BUDGET
    while affordable := [name for name in plan if WAITING[name][1] <= left]:
        gains = {n: WAITING[n][0] * (1 - WAITING[n][0]) ** plan[n] / WAITING[n][1] for n in affordable}
        chosen = max(gains, key=lambda name: gains[name])
        plan[chosen] += 1
        left -= WAITING[chosen][1]
    return plan


def _truly_right(answer: float) -> str | None:
    lucky = (1 - RIGHT_CHAINS) / NAMES
    near = {"prior": RIGHT_CHAINS, "guess": 1 - 1 / NAMES, "passes": RIGHT_CHAINS + lucky,
            "other": lucky / (RIGHT_CHAINS + lucky)}  # fmt: skip
    if math.isclose(answer, RIGHT_CHAINS / (RIGHT_CHAINS + lucky), abs_tol=0.004):
        return None
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.004)), "far")


EXERCISES = (
    Exercise(
        "05.1", "predict", "Three prompts, four answers", 2, 3, 6, 2, _kept_at_four,
        {"share": "That is the mean over the prompts; the question is how many of the three.",
         "plug in": "Close, but the sixteen are drawn without putting back: use the unbiased estimator.",
         "pooled": "You averaged the rates first; prompts differ, and the mean of pass@K is not pass@K of the mean.",
         "sixteen": "That is how many have a right answer among all sixteen; only four are kept here.",
         "linear": "That is the expected number of right answers; a prompt with two right ones still counts once.",
         "far": "Work out pass@4 for each prompt by itself, then add."},
        "Easy prompts saturate at once, so almost all that a larger K adds comes from the hard ones.",
    ),
    Exercise(
        "05.2", "implement", "Mend the mix by repeating", 2, 2, 10, 3, _balanced,
        {"changed": "Your function changes the list that it was given; build a new one.",
         "invented": "Some rows of your result were not among those given.",
         "dropped": "Rows are missing: repeat the rare ones, do not throw away the frequent ones.",
         "levels": "Within a skill, the levels do not yet have equally many rows.",
         "skills": "Over all skills the levels are even, but not within each: a skill's level 3 is not another's.",
         "uneven": "One row is repeated much more often than its neighbours; take turns."},
        "Repeating changes the weights only: a level without any row stays empty, and only new answers can fill it.",
    ),
    Exercise(
        "05.3", "diagnose", "The best quarter", 2, 3, 10, 1, _quarter,
        {"across": "Some prompts still keep nothing. What does a reward of 2 mean for one prompt, and for another?",
         "unfinished": "An answer that was cut off is among those kept: nobody saw its end, whatever its reward.",
         "number": "Keep a quarter of each prompt's finished answers: as many from each prompt as its share.",
         "lower": "The numbers are right, but a prompt has a better answer than one that you keep."},
        "Bradley–Terry only ever saw differences within a prompt, so a constant added to one of them costs no loss.",
    ),
    Exercise(
        "05.4", "design", "Spend the second batch", 3, 2, 15, 5, _spent,
        {"names": "Give a whole number of further answers, 0 or more, for names of WAITING.",
         "solved": "One of these prompts has a right answer already; the rule keeps one a prompt.",
         "budget": "Over the budget: count tokens, not answers.",
         "unused": "There are tokens left.",
         "one": "More than half on one prompt: there, the next answer adds less and less.",
         "better": "It fits, but some tokens would solve more elsewhere. Where does the next token add most?"},
        "An even split of the tokens is not far behind: a good rule of thumb, and it needs no estimate of the chances.",
    ),
    Exercise(
        "05.5", "predict", "Right by luck", 2, 3, 5, 4, _truly_right,
        {"prior": "That is the share before any checker; passing does say something.",
         "guess": "That is how often a guess is wrong. Count what passes: the right chains and the lucky guesses.",
         "passes": "That is the share that passes; how much of it is right?",
         "other": "That is the share of the passes that are lucky; the question is about the rest.",
         "far": "Of 1000 answers, how many pass with a right chain, and how many by a lucky guess?"},
        "The rarer right answers are, the more of a weak checker's passes are luck: it fails where it is needed.",
    ),
)  # fmt: skip
