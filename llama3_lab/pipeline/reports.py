"""evaluate(), compare(): rates with intervals, paired tests, best-of-K curves. No torch here.

The unit is the prompt, everywhere: several samples of one prompt are averaged first, and every
interval says what would change with other prompts of the same kind. None of them says what would
change with another training seed; for that, run several seeds and look at `pooled` beside each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from math import comb, isfinite, sqrt
from typing import Any, Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from llama3_lab.records import (
    DECIDED,
    BestOfK,
    Candidate,
    Comparison,
    Evaluation,
    Prompt,
    PromptScore,
    Rate,
    SkillScore,
    Split,
    in_order,
)

Metric = Literal["greedy", "sampled", "at_k", "quality"]
Rows = Sequence[PromptScore]
ALPHA = 0.05  # every interval is a 95 % interval


def rate(values: Sequence[float] | np.ndarray, samples: int = 1) -> Rate:
    """Return the mean of per-prompt shares (each in [0, 1]) with its 95 % interval over prompts.

    All values 0 or 1: Wilson's score interval. Otherwise Student's t on the shares, clipped to
    [0, 1]; where the shares do not vary at all, Wilson's with n prompts, because t would claim
    to know the rate exactly. No values: n=0 and the interval [0, 1].

    Raises:
        ValueError: if a value is outside [0, 1] or is not a number.
    """
    x = np.asarray(values, dtype=float)
    if not len(x):
        return Rate(0.0, 0, 0.0, 1.0, samples)
    if not ((x >= 0) & (x <= 1)).all():
        worst = x[~((x >= 0) & (x <= 1))][0]
        raise ValueError(f"a share must lie in [0, 1]; got {worst}; divide counts by their number")
    mean = float(x.mean())
    if np.ptp(x) == 0 or np.isin(x, (0.0, 1.0)).all():
        low, high = _wilson(mean, len(x))
    else:
        half = float(stats.t.ppf(1 - ALPHA / 2, len(x) - 1) * stats.sem(x))
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Rate(mean, len(x), low, high, samples)


def score_prompts(prompts: Sequence[Prompt], greedy: Sequence[Candidate],
                  samples: Sequence[Sequence[Candidate]], right: Callable[[Candidate], bool],
                  quality: Callable[[Candidate], float]) -> list[PromptScore]:
    """Return one row per prompt, in order: `samples[i]` and `greedy[i]` answer `prompts[i]`.

    An answer cut off at the cap is never right, whatever `right` says. `quality`, `ended` and
    `n_tokens` are means over the samples.

    Raises:
        ValueError: if the three differ in length, an answer belongs to another prompt, or a
            prompt has no samples.
    """
    if not len(prompts) == len(greedy) == len(samples):
        raise ValueError(f"{len(prompts)} prompts, {len(greedy)} greedy answers and {len(samples)} lists of "
                         "samples: give one of each per prompt")
    rows = []
    for prompt, first, drawn in zip(prompts, greedy, samples, strict=True):
        if not drawn:
            raise ValueError(f"{prompt.id}: no samples; draw at least one answer per prompt")
        strays = {c.prompt.id for c in (first, *drawn)} - {prompt.id}
        if strays:
            raise ValueError(f"{prompt.id}: holds an answer to {strays.pop()}; keep answers in prompt order")
        hits = [c.finished and right(c) for c in drawn]
        rows.append(PromptScore(
            prompt.id, prompt.skill, prompt.level, float(first.finished and right(first)),
            float(np.mean(hits)), float(any(hits)), float(np.mean([quality(c) for c in drawn])),
            float(np.mean([c.finished for c in drawn])), float(np.mean([c.n_tokens for c in drawn]))))
    return rows


def evaluate(stage: str, round: int, split: Split, rows: Rows, samples: int) -> Evaluation:
    """Return the rates of every skill at every level, then of skill "all".

    Level 0 pools the levels of a skill; "all" (level 0 only) pools the prompts of the checkable
    three, so a skill weighs as much as it has prompts. Skills without rows are left out.

    Raises:
        ValueError: if there are no rows, or a prompt id comes twice.
    """
    if not rows:
        raise ValueError(f"{stage}: no prompts to evaluate; give at least one row")
    _by_id(stage, rows)
    scores = []
    for skill in in_order(r.skill for r in rows):
        of_skill = [r for r in rows if r.skill == skill]
        scores.append(_skill_score(skill, 0, of_skill, samples))
        for level in sorted({r.level for r in of_skill}):
            scores.append(_skill_score(skill, level, [r for r in of_skill if r.level == level], samples))
    checkable = [r for r in rows if r.skill in DECIDED]
    if checkable:
        scores.append(_skill_score("all", 0, checkable, samples))
    return Evaluation(stage, round, split, samples, tuple(scores))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that at least one of k answers, drawn without replacement, is right.

    n answers were drawn, c of them right. Unbiased: 1 − C(n − c, k) / C(n, k).

    Raises:
        ValueError: unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", Eq. 1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n}: needs k and right ≤ n; draw more answers")
    return 1.0 - comb(n - c, k) / comb(n, k)


def compare(name: str, a: Rows, b: Rows, metric: Metric = "sampled", skill: str = "all",
            names: tuple[str, str] = ("a", "b")) -> Comparison:
    """Return the paired difference a − b on the same prompts (skill "all": the checkable three).

    Where every value is 0 or 1 (greedy, at_k): exact McNemar p, and Newcombe's interval for paired
    proportions. Otherwise Student's t on per-prompt differences. p_holm is p until `holm` is called.

    Raises:
        ValueError: if the two sides hold different prompts, or fewer than two of this skill.

    Source: Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10 (hybrid score with φ).
    """
    left, right = _paired(name, a, b, metric, skill)
    return _comparison((name, metric, skill), names, left, right)


def pooled(name: str, seeds: Sequence[tuple[Rows, Rows]], metric: Metric = "sampled", skill: str = "all",
           names: tuple[str, str] = ("a", "b")) -> Comparison:
    """Return one comparison over several training seeds, `seeds[i]` holding the rows of (a, b).

    Same prompts in every seed: each side is averaged per prompt first, so n is the number of
    prompts and the interval speaks of other prompts with these seeds. Different prompts: the
    seeds are concatenated, each (seed, prompt) one unit.

    Raises:
        ValueError: as `compare`, or if there is no seed.
    """
    if not seeds:
        raise ValueError(f"{name}: no seeds to pool; give at least one pair of rows")
    sides = [_paired(f"{name}, seed {i}", a, b, metric, skill) for i, (a, b) in enumerate(seeds)]
    same = len({frozenset(r.prompt_id for r in _of_skill(a, skill)) for a, _ in seeds}) == 1
    join = (lambda xs: np.mean(xs, axis=0)) if same else np.concatenate
    return _comparison((name, metric, skill), names, join([s[0] for s in sides]), join([s[1] for s in sides]))


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the same comparisons, in order, with p_holm over this family and the verdict renewed.

    The verdict speaks of the interval alone; a "better" with p_holm ≥ 0.05 is one that does not
    outlive the correction, and whoever reports it has to say so.
    """
    if not comparisons:
        return []
    adjusted = multipletests([c.p for c in comparisons], method="holm")[1]
    return [replace(c, p_holm=float(p), verdict=_verdict(c.low, c.high))
            for c, p in zip(comparisons, adjusted, strict=True)]


def best_of_k_curve(judge: str, skill: str, ks: Sequence[int],
                    picks: Sequence[Sequence[tuple[float, bool]]]) -> BestOfK:
    """Return how often the answer that a judge scores highest among k is right.

    picks: per prompt, (score, is right) of each of its K answers. Exact, over all subsets of k of
    the K, not only the first k drawn: sorted by score, the answers up to rank r hold the top of
    C(r, k) subsets. Equal scores share the pick evenly, so a constant score is the judge "random".

    Raises:
        ValueError: if a score is NaN, or a prompt has fewer than max(ks) answers.
    """
    _need(judge, skill, ks, [len(p) for p in picks])
    if any(np.isnan(score) for prompt in picks for score, _ in prompt):
        raise ValueError(f"{judge} on {skill}: a score is NaN; was an answer empty?")
    chances_PK = np.array([[_top_of_k(p, k) for k in ks] for p in picks]).reshape(len(picks), len(ks))
    return BestOfK(skill, judge, tuple(ks), tuple(_drawn_rate(chances_PK[:, i], k) for i, k in enumerate(ks)))


def majority_vote(skill: str, ks: Sequence[int],
                  votes: Sequence[Sequence[tuple[Hashable | None, bool]]]) -> BestOfK:
    """Return how often the most frequent answer among k is right; ties are split evenly.

    votes: per prompt, (key of the answer, is right) of each of its K answers. Key None is an answer
    that could not be read: it is drawn but has no vote; where nobody votes, nothing is right.
    Exact, over all subsets of k of the K. Answers with one key count as the share of them right.

    Raises:
        ValueError: if a prompt has fewer than max(ks) answers.
    """
    _need("majority vote", skill, ks, [len(v) for v in votes])
    chances_PK = np.zeros((len(votes), len(ks)))
    for i, prompt in enumerate(votes):
        counts = Counter(key for key, _ in prompt if key is not None)
        hits = Counter(key for key, is_right in prompt if is_right)
        keys = sorted(counts, key=lambda key: (counts[key], hits[key]))
        silent = len(prompt) - sum(counts.values())
        wins_JK = _vote_wins(tuple(counts[key] for key in keys), silent, tuple(ks))
        for key, wins_K in zip(keys, wins_JK, strict=True):
            chances_PK[i] += hits[key] / counts[key] * np.array(wins_K)
    rates = tuple(_drawn_rate(chances_PK[:, i], k) for i, k in enumerate(ks))
    return BestOfK(skill, "majority vote", tuple(ks), rates)


def _wilson(share: float, n: int) -> tuple[float, float]:
    low, high = proportion_confint(share * n, n, alpha=ALPHA, method="wilson")
    return max(0.0, min(float(low), share)), min(1.0, max(float(high), share))  # 1.0 gives .9999…


def _skill_score(skill: str, level: int, rows: Rows, samples: int) -> SkillScore:
    def of(metric: str, drawn: int) -> Rate:
        return rate([getattr(r, metric) for r in rows], drawn)

    return SkillScore(skill, level, of("greedy", 1), of("sampled", samples), of("at_k", samples),
                      of("ended", samples), float(np.mean([r.quality for r in rows])),
                      float(np.mean([r.n_tokens for r in rows])))


def _by_id(name: str, rows: Rows) -> dict[str, PromptScore]:
    by_id = {r.prompt_id: r for r in rows}
    if len(by_id) < len(rows):
        twice = Counter(r.prompt_id for r in rows).most_common(1)[0][0]
        raise ValueError(f"{name}: prompt {twice} comes twice; give one row per prompt")
    return by_id


def _of_skill(rows: Rows, skill: str) -> list[PromptScore]:
    return [r for r in rows if (r.skill in DECIDED if skill == "all" else r.skill == skill)]


def _paired(name: str, a: Rows, b: Rows, metric: Metric, skill: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the metric of both sides, aligned by prompt id in sorted order."""
    left, right = (_by_id(name, _of_skill(side, skill)) for side in (a, b))
    odd = sorted(left.keys() ^ right.keys())
    if odd:
        raise ValueError(f"{name}: {len(odd)} prompts are on one side only, e.g. {odd[0]}; evaluate both "
                         "stages on the same prompts")
    if len(left) < 2:
        raise ValueError(f"{name}: {len(left)} prompts of skill {skill!r}; a paired test needs at least two")
    ids = sorted(left)
    return (np.array([getattr(left[i], metric) for i in ids], dtype=float),
            np.array([getattr(right[i], metric) for i in ids], dtype=float))


def _comparison(what: tuple[str, Metric, str], names: tuple[str, str], a: np.ndarray,
                b: np.ndarray) -> Comparison:
    name, metric, skill = what
    difference = a - b
    mean = float(difference.mean())
    if metric != "quality" and np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        low, high = _newcombe(a, b)
        wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
        p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    elif np.ptp(difference) < 1e-12:  # no spread: t has nothing to measure its error by
        low, high = _newcombe(a, b) if metric != "quality" else (mean, mean)
        p = 1.0 if abs(mean) < 1e-12 else float(2.0 ** (1 - len(a)))  # sign test: all on one side
    else:
        test = stats.ttest_1samp(difference, 0.0)
        low, high = (float(x) for x in test.confidence_interval(1 - ALPHA))
        p = float(test.pvalue)
    return Comparison(name, *names, metric, skill, mean, low, high, p, p, len(a), _verdict(low, high))


def _newcombe(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Newcombe's method 10: Wilson's limits of both rates, joined with their correlation φ.

    φ = 0 where a margin is empty; a positive numerator gives up n / 2, his continuity correction.
    """
    n, pa, pb = len(a), float(a.mean()), float(b.mean())
    (la, ua), (lb, ub) = _wilson(pa, n), _wilson(pb, n)
    scale = n * n * sqrt(pa * (1 - pa) * pb * (1 - pb))
    numerator = n * float((a * b).sum()) - float(a.sum() * b.sum())  # both·neither − only a·only b
    numerator = max(0.0, numerator - n / 2) if numerator > 0 else numerator
    phi = numerator / scale if scale > 0 else 0.0
    down, up = pa - la, ub - pb
    low = pa - pb - sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))
    down, up = pb - lb, ua - pa
    return low, pa - pb + sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))


def _verdict(low: float, high: float) -> Literal["better", "worse", "inconclusive"]:
    if not (isfinite(low) and isfinite(high)):
        return "inconclusive"
    return "better" if low > 0 else "worse" if high < 0 else "inconclusive"


def _need(judge: str, skill: str, ks: Sequence[int], sizes: Sequence[int]) -> None:
    if not ks or min(ks) < 1 or any(x >= y for x, y in pairwise(ks)):
        raise ValueError(f"{judge} on {skill}: ks is {tuple(ks)}; give ascending numbers from 1 up")
    if sizes and min(sizes) < max(ks):
        raise ValueError(f"{judge} on {skill}: best of {max(ks)} needs as many answers, but a prompt has "
                         f"{min(sizes)}; sample more or shorten ks")


def _drawn_rate(chances: np.ndarray, k: int) -> Rate:
    return rate(np.clip(chances, 0.0, 1.0), k)  # exact sums of floats may leave [0, 1] by 1e-16


def _top_of_k(prompt: Sequence[tuple[float, bool]], k: int) -> float:
    groups: dict[float, list[bool]] = {}
    for score, is_right in prompt:
        groups.setdefault(float(score), []).append(is_right)
    chance, rank, total = 0.0, 0, comb(len(prompt), k)
    for score in sorted(groups):
        group = groups[score]
        subsets = comb(rank + len(group), k) - comb(rank, k)  # those whose highest score is this one
        chance += subsets / total * sum(group) / len(group)
        rank += len(group)
    return chance


@lru_cache(maxsize=4096)  # prompts share few patterns of counts: K = 16 has 915 of them at most
def _vote_wins(counts: tuple[int, ...], silent: int, ks: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Return, for each key, its expected share of the win in a random subset of each size k."""
    total = sum(counts) + silent
    return tuple(tuple(w / comb(total, k) for w, k in zip(_wins_of(j, counts, silent, ks), ks, strict=True))
                 for j in range(len(counts)))


def _wins_of(j: int, counts: tuple[int, ...], silent: int, ks: tuple[int, ...]) -> list[float]:
    """Count the subsets of size k that key j wins, a tie among t + 1 keys counting 1 / (t + 1)."""
    wins = [0.0] * len(ks)
    for c in range(1, counts[j] + 1):  # j gets c votes; ways[t][n]: the rest sends n, t of them also c
        ways: dict[tuple[int, int], int] = {(0, n): comb(silent, n) for n in range(silent + 1)}
        for i, m in enumerate(counts):
            if i != j:
                ways = _add_key(ways, m, c)
        for i, k in enumerate(ks):
            rest: Any = ((t, w) for (t, n), w in ways.items() if n == k - c)
            wins[i] += comb(counts[j], c) * sum(w / (t + 1) for t, w in rest)
    return wins


def _add_key(ways: dict[tuple[int, int], int], m: int, c: int) -> dict[tuple[int, int], int]:
    more: dict[tuple[int, int], int] = {}
    for (t, n), w in ways.items():
        for votes in range(min(m, c) + 1):
            spot = (t + (votes == c), n + votes)
            more[spot] = more.get(spot, 0) + w * comb(m, votes)
    return more
