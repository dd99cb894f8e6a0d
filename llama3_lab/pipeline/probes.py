"""raters(), couples(), accuracy(), calibration(), longer_wins(), climb(): what preferences and rewards are worth.

Judged answers in, plain numbers out; no model is asked here, and the truth decides. The unit is the prompt: what
several answers of one prompt say is averaged first, and every interval is over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from llama3_lab.pipeline.demonstrations import by_prompt
from llama3_lab.pipeline.reports import ALPHA, rate
from llama3_lab.pipeline.truth import PASS_QUALITY, are_right, true_qualities
from llama3_lab.records import STRENGTHS, Judged, PreferencePair, Prompt, PromptScore, Rate
from llama3_lab.world import conversation
from llama3_lab.world.annotators import NOISE, strength

EQUAL = 1e-9  # true qualities nearer than this are the same quality
LONGER_COSTS = 0.75  # of true quality, for each sentence that was not asked for


@dataclass(frozen=True)
class Mean:
    """A mean over n prompts with its 95 % interval (Student's t); unlike a `Rate` it may be any number."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] n={self.n}"


@dataclass(frozen=True)
class Couple:
    """Two answers to one prompt, of which the truth says which is better.

    gap: true quality of the better less that of the worse, in logits, > 0. lead: the same difference in reward;
    negative where the reward model is wrong.
    """

    prompt_id: str
    skill: str
    gap: float
    lead: float


@dataclass(frozen=True)
class Accuracy:
    """Share of couples on which a judge and the truth agree; skill and strength may be "any".

    The judge is a reward model (strength: a noiseless rater's word for the true gap), or raters (their own word).
    """

    skill: str
    strength: str
    couples: int
    rate: Rate


@dataclass(frozen=True)
class CalibrationBin:
    """Couples of which the reward model is about equally sure: its confidence lies in [low, high).

    predicted: mean confidence, σ(|lead|). true: share in which the answer with the higher reward is better. raters:
    how often raters, with their noise, would choose it.
    """

    low: float
    high: float
    couples: int
    predicted: float
    true: Rate
    raters: Rate


@dataclass(frozen=True)
class Climb:
    """What a judge picks out of k answers, in expectation over which k, as k grows.

    quality: true quality of the pick. reward: its reward less the prompt's mean reward. right: share of picks that
    are right. n_tokens: length of the pick. All at ks[i].
    """

    judge: str
    skill: str
    ks: tuple[int, ...]
    quality: tuple[Mean, ...]
    reward: tuple[Mean, ...]
    right: tuple[Rate, ...]
    n_tokens: tuple[Mean, ...]


def mean(values: Sequence[float] | np.ndarray) -> Mean:
    """Return the mean of one number a prompt, with its interval; one number alone has no interval (±∞).

    Raises:
        ValueError: if there are none.
    """
    x = np.asarray(values, dtype=float)
    if not len(x):
        raise ValueError("a mean needs at least one prompt; give one number for each")
    half = float(stats.t.ppf(1 - ALPHA / 2, len(x) - 1) * stats.sem(x)) if len(x) > 1 else math.inf
    return Mean(float(x.mean()), len(x), float(x.mean()) - half, float(x.mean()) + half)


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^−x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - sigmoid(-x)


def qualities(judged: Sequence[Judged]) -> list[float]:
    """Return the true quality of each answer, in logits; same length and order."""
    return true_qualities([j.candidate for j in judged], [j.verdict for j in judged])


def raters(pairs: Sequence[PreferencePair]) -> list[Accuracy]:
    """Return how often raters chose the truly better answer: over all pairs, then by the strength they stated.

    Pairs of equal true quality are left out. Several pairs of one prompt are one unit.
    """
    out = []
    for name in ("any", *STRENGTHS):
        chosen = [p for p in pairs if name in ("any", p.strength) and abs(p.true_margin) > EQUAL]
        if chosen:
            right = _rate([(p.prompt.id, float(p.true_margin > 0)) for p in chosen])
            out.append(Accuracy("any", name, len(chosen), right))
    return out


def couples(judged: Sequence[Judged]) -> list[Couple]:
    """Return disjoint couples of each prompt's answers, first with second, third with fourth, and so on.

    Couples of equal true quality are left out: there the truth has no favourite.
    """
    out = []
    for group in by_prompt(judged):
        prompt, quality = group[0].candidate.prompt, qualities(group)
        for i in range(0, len(group) - 1, 2):
            gap, lead = quality[i] - quality[i + 1], group[i].reward - group[i + 1].reward
            if abs(gap) > EQUAL:
                out.append(Couple(prompt.id, prompt.skill, abs(gap), math.copysign(lead, lead * gap) if lead else 0.0))
    return out


def accuracy(of: Sequence[Couple], skill: str) -> list[Accuracy]:
    """Return one skill's accuracy over all couples, then by strength; a strength without couples is left out.

    Two equal rewards count one half: a coin would have to decide.
    """
    here = [c for c in of if c.skill == skill]
    out = []
    for name in ("any", *STRENGTHS):
        chosen = [c for c in here if name in ("any", strength(c.gap))]
        if chosen:
            out.append(Accuracy(skill, name, len(chosen), _rate([(c.prompt_id, _hit(c)) for c in chosen])))
    return out


def calibration(of: Sequence[Couple], edges: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)) -> list[CalibrationBin]:
    """Return the couples by the reward model's confidence; a bin without couples is left out.

    Bradley–Terry reads a difference of rewards as log-odds: the higher one is better with probability σ(|lead|).

    Raises:
        ValueError: unless the edges ascend from 0.5 to 1.
    """
    if list(edges) != sorted(set(edges)) or (edges[0], edges[-1]) != (0.5, 1.0):
        raise ValueError(f"edges are {tuple(edges)}; confidence runs from 0.5 to 1: write growing numbers between")
    out = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = [c for c in of if low <= sigmoid(abs(c.lead)) < high or (high == 1.0 and sigmoid(abs(c.lead)) == 1.0)]
        if inside:
            predicted = float(np.mean([sigmoid(abs(c.lead)) for c in inside]))
            true, chosen = (_rate([(c.prompt_id, f(c)) for c in inside]) for f in (_hit, _chosen))
            out.append(CalibrationBin(low, high, len(inside), predicted, true, chosen))
    return out


def contrasts(judged: Sequence[Judged]) -> list[tuple[Prompt, str, str]]:
    """Return (prompt, better, worse): each prompt's first answer and the first of another quality, both imperfect.

    A prompt without two such answers is passed over.
    """
    out = []
    for group in by_prompt(judged):
        worth: dict[float, str] = {}
        for j, quality in zip(group, qualities(group), strict=True):
            if quality < PASS_QUALITY - EQUAL:
                worth.setdefault(round(quality, 6), j.candidate.text)
        if len(worth) > 1:
            (_, better), (_, worse) = sorted(list(worth.items())[:2], reverse=True)
            out.append((group[0].candidate.prompt, better, worse))
    return out


def hits(of: Sequence[Couple]) -> dict[str, float]:
    """Return, by prompt id, the share of its couples on which the reward model is right; for paired differences."""
    return dict(_by_prompt([(c.prompt_id, _hit(c)) for c in of]))


def overconfidence(of: Sequence[Couple]) -> dict[str, float]:
    """Return, by prompt id, how sure the reward model is on average, less how often it is right."""
    return dict(_by_prompt([(c.prompt_id, sigmoid(abs(c.lead)) - _hit(c)) for c in of]))


def longer_wins(judged: Sequence[Judged]) -> Rate:
    """Return how often the longer of two different answers of equal true quality gets the higher reward.

    One half is what a judge without a taste for length shows. All such pairs of a prompt count together as one unit.
    """
    shares = []
    for group in by_prompt(judged):
        unique = list({j.candidate.text: j for j in group}.values())
        quality, wins = qualities(unique), []
        for (i, a), (k, b) in combinations(enumerate(unique), 2):
            if abs(quality[i] - quality[k]) <= EQUAL and a.candidate.n_tokens != b.candidate.n_tokens:
                lead = (a.reward - b.reward) * (a.candidate.n_tokens - b.candidate.n_tokens)
                wins.append(0.5 if not lead else float(lead > 0))
        if wins:
            shares.append(float(np.mean(wins)))
    return rate(shares)


def lengthened(prompt: Prompt, text: str) -> dict[str, str]:
    """Return an open answer made longer in three ways, by name; each costs LONGER_COSTS of true quality.

    "filler": an idle sentence; "repeated": its last wanted sentence once more; "unasked": a true one that nobody
    asked for. Ways that are not open to this answer (nothing to repeat, nothing left unsaid, no end mark) are left out.
    """
    if not text.endswith((".", "!")):
        return {}
    said, animal = conversation.sentences(text), prompt.text.split(":")[0].split()[-1]
    facts = [s.format(f) for s, f in zip(conversation.SENTENCES, conversation.FACTS[animal], strict=True)]
    more = {
        "filler": [s for s in conversation.FILLER if s not in said],
        "repeated": [s for s in reversed(said) if s in prompt.check.items],
        "unasked": [s for s in facts if s not in said and s not in prompt.check.items],
    }
    return {way: f"{text} {options[0]}" for way, options in more.items() if options}


def regreeted(text: str) -> str | None:
    """Return an open answer with the other polite opening, which costs nothing; None where it opens otherwise."""
    opening, _, rest = text.partition(" ")
    other = dict(zip(conversation.POLITE, reversed(conversation.POLITE), strict=True))
    return f"{other[opening]} {rest}".strip() if opening in other else None


def variants(judged: Sequence[Judged], most: int = 8) -> list[tuple[Prompt, str, str, str]]:
    """Return (prompt, kind of change, answer, changed answer) for up to `most` open answers a prompt, all different."""
    out = []
    for group in by_prompt(judged):
        prompt = group[0].candidate.prompt
        for text in list(dict.fromkeys(j.candidate.text for j in group))[:most]:
            ways = {f"one more: {way}": new for way, new in lengthened(prompt, text).items()}
            if (greeted := regreeted(text)) is not None:
                ways["control: other greeting"] = greeted
            out += [(prompt, way, text, new) for way, new in ways.items()]
    return out


def changes(of: Sequence[tuple[str, str, float]]) -> dict[str, tuple[Mean, Rate]]:
    """Return, for each kind of change, the mean change of the reward and the share of answers whose reward rose.

    of: (prompt id, kind of change, reward after less reward before). All answers of a prompt are one unit.
    """
    out = {}
    for kind in dict.fromkeys(k for _, k, _ in of):
        moved = [(prompt_id, by) for prompt_id, k, by in of if k == kind]
        rose = _rate([(prompt_id, 0.5 if not by else float(by > 0)) for prompt_id, by in moved])
        out[kind] = mean([by for _, by in _by_prompt(moved)]), rose
    return out


def picked(judged: Sequence[Judged], values: Sequence[float], k: int) -> list[PromptScore]:
    """Return one row a prompt: what the judge whose opinion of judged[i] is values[i] picks out of k answers.

    The expectation over all subsets of k of a prompt's answers, exactly; one draw of k would vary more. Answers of
    equal value share the pick, so a judge without an opinion picks at random. `reports.compare` takes these rows.

    Raises:
        ValueError: if a prompt has fewer than k answers.
    """
    rows = []
    for group, weights in _weighted(judged, values, k):
        prompt = group[0].candidate.prompt
        ends, lengths = ([getattr(j.candidate, name) for j in group] for name in ("finished", "n_tokens"))
        right, quality, ended, length = (
            float(weights @ np.array(column, dtype=float))
            for column in (_right(group), qualities(group), ends, lengths)
        )
        right = min(1.0, max(0.0, right))  # exact sums of floats may leave [0, 1] by 1e-16
        rows.append(PromptScore(prompt.id, prompt.skill, prompt.level, right, right, right, quality, ended, length))
    return rows


def shortfall(judged: Sequence[Judged], values: Sequence[float], k: int) -> list[float]:
    """Return, for each prompt, the true quality of the best of k less that of the judge's pick; all ≥ 0."""
    both = zip(picked(judged, qualities(judged), k), picked(judged, values, k), strict=True)
    return [b.quality - p.quality for b, p in both]


def climb(judge: str, judged: Sequence[Judged], values: Sequence[float], ks: Sequence[int]) -> Climb:
    """Return what a judge picks as k grows, on one skill's answers; as `picked`, of which it is the summary.

    Raises:
        ValueError: as `picked`; or if there are answers of several skills.
    """
    skills = {j.candidate.prompt.skill for j in judged}
    if len(skills) != 1:
        raise ValueError(f"answers of {', '.join(sorted(skills)) or 'no skill'}: give those of one skill")
    rows = [picked(judged, values, k) for k in ks]
    rewards = [
        mean([float((w - 1 / len(g)) @ np.array([j.reward for j in g])) for g, w in _weighted(judged, values, k)])
        for k in ks
    ]
    return Climb(
        judge, skills.pop(), tuple(ks), tuple(mean([r.quality for r in at]) for at in rows), tuple(rewards),
        tuple(rate([r.sampled for r in at], k) for at, k in zip(rows, ks, strict=True)),
        tuple(mean([r.n_tokens for r in at]) for at in rows),
    )  # fmt: skip


def _weighted(
    judged: Sequence[Judged], values: Sequence[float], k: int
) -> Iterator[tuple[list[Judged], np.ndarray]]:  # fmt: skip
    """Yield each prompt's answers and, for each answer, the chance that it is the pick out of k of them."""
    if len(values) != len(judged):
        raise ValueError(f"{len(judged)} answers and {len(values)} values; give one value for each answer")
    start = 0
    for group in by_prompt(judged):
        if not 1 <= k <= len(group):
            raise ValueError(f"{group[0].candidate.prompt.id}: {len(group)} answers, and k is {k}; draw more answers")
        here = np.array(values[start : start + len(group)], dtype=float)
        chances, below, start = np.zeros(len(group)), 0, start + len(group)
        for value in np.unique(here):
            tied = here == value
            upto = below + int(tied.sum())
            chances[tied] = (comb(upto, k) - comb(below, k)) / comb(len(group), k) / tied.sum()
            below = upto
        yield group, chances


def _right(group: Sequence[Judged]) -> list[bool]:
    return are_right([j.candidate for j in group], [j.verdict for j in group])


def _hit(c: Couple) -> float:
    return 0.5 if not c.lead else float(c.lead > 0)


def _chosen(c: Couple) -> float:
    """Return how often raters would choose the answer that the reward model prefers."""
    chance = sigmoid(c.gap / NOISE)
    return 0.5 if not c.lead else chance if c.lead > 0 else 1 - chance


def _by_prompt(values: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return (prompt id, mean of its values), one for each prompt, in order of appearance."""
    found: dict[str, list[float]] = {}
    for prompt_id, value in values:
        found.setdefault(prompt_id, []).append(value)
    return [(prompt_id, float(np.mean(v))) for prompt_id, v in found.items()]


def _rate(values: Sequence[tuple[str, float]]) -> Rate:
    return rate([mean_of_prompt for _, mean_of_prompt in _by_prompt(values)])
