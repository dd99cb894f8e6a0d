"""measure(): what a policy or a reward model is worth, on prompts that no stage has seen.

Greedy answers, a few sampled ones, the held-out pairs and best-of-K. The statistics are in reports.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llama3_lab.benchmarks.checkers import verify
from llama3_lab.models import Policy, RewardModel, Style, answer_logprobs
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.demonstrations import by_prompt
from llama3_lab.pipeline.reports import best_of_k_curve, majority_vote, rate, score_prompts
from llama3_lab.pipeline.scores import score
from llama3_lab.pipeline.truth import are_right, true_qualities
from llama3_lab.profiles import Sampling
from llama3_lab.records import (
    DECIDED,
    STRENGTHS,
    Agreement,
    BestOfK,
    Candidate,
    Demonstration,
    FunnelRow,
    Judged,
    Prompt,
    PromptScore,
    SampleAnswer,
    in_order,
)  # fmt: skip
from llama3_lab.world.annotators import strength

VOTED = ("arithmetic", "orderings", "gsm8k")  # their answers end with "Answer: …"
EVALUATION_SEED = 7  # the same random numbers for every stage: differences are paired in them too


Draw = Callable[[Sequence[Prompt], Sampling], list[Candidate]]  # one policy, answering


def measure(policy: Policy, prompts: Sequence[Prompt], how: Sampling, style: Style = "chat") -> list[PromptScore]:
    """Return one score a prompt: a greedy answer and `how.k` sampled ones at temperature 1."""
    return measured(lambda asked, k: sample(policy, asked, k, style), prompts, how)


def measured(draw: Draw, prompts: Sequence[Prompt], how: Sampling) -> list[PromptScore]:
    """Return what `measure` does, of a policy that answers in any way (samplers.py)."""
    greedy = draw(prompts, replace(how, k=1, temperature=0.0, seed=EVALUATION_SEED))
    drawn = draw(prompts, replace(how, temperature=1.0, seed=EVALUATION_SEED))
    return scores_of(prompts, greedy, drawn)


def scores_of(prompts: Sequence[Prompt], greedy: Sequence[Candidate], drawn: Sequence[Candidate]) -> list[PromptScore]:
    """Return one score a prompt from its greedy answer and its K drawn ones (prompt by prompt)."""
    everything = [*greedy, *drawn]
    verdicts = verify(everything)
    right = dict(zip(map(id, everything), are_right(everything, verdicts), strict=True))
    quality = dict(zip(map(id, everything), true_qualities(everything, verdicts), strict=True))
    k = len(drawn) // len(prompts)
    groups = [drawn[i * k : (i + 1) * k] for i in range(len(prompts))]
    return score_prompts(prompts, greedy, groups, lambda c: right[id(c)], lambda c: quality[id(c)])


def judge(candidates: Sequence[Candidate], reward_model: RewardModel) -> list[Judged]:
    """Return every candidate with its verdict and its reward; equal answers are scored once."""
    unique = {(c.prompt.id, c.text): c for c in candidates}
    rewards = dict(zip(unique, score(reward_model, [(c.prompt, c.text) for c in unique.values()]), strict=True))
    return [Judged(c, v, rewards[c.prompt.id, c.text]) for c, v in zip(candidates, verify(candidates), strict=True)]


def funnel(judged: Sequence[Judged], selected: Sequence[Demonstration]) -> tuple[FunnelRow, ...]:
    """Return the counts on the way from prompts to demonstrations, by skill and level."""
    chosen = {d.prompt.id for d in selected}
    rows = []
    groups = by_prompt(judged)
    for skill in in_order(g[0].candidate.prompt.skill for g in groups):
        for level in sorted({g[0].candidate.prompt.level for g in groups}):
            here = [g for g in groups if (g[0].candidate.prompt.skill, g[0].candidate.prompt.level) == (skill, level)]
            if not here:
                continue
            flat = [j for g in here for j in g if j.candidate.finished]
            rows.append(FunnelRow(
                skill, level, len(here), sum(map(len, here)), len(flat),
                sum(j.verdict.outcome != "abstain" for j in flat), sum(j.verdict.outcome == "pass" for j in flat),
                sum(any(j.verdict.outcome == "pass" for j in g) for g in here),
                sum(g[0].candidate.prompt.id in chosen for g in here),
            ))  # fmt: skip
    return tuple(rows)


def agreement(reward_model: RewardModel, candidates: Sequence[Candidate], round: int) -> list[Agreement]:
    """Return the share of held-out pairs, one a prompt, whose better answer gets the higher reward.

    A pair is the prompt's first answer and the first that differs from it in true quality; the truth
    decides, without noise. By skill, and by the strength that a noiseless rater would state.
    """
    qualities, pairs = true_qualities(candidates), []
    k = _answers_each(candidates)
    for start in range(0, len(candidates), k):
        for j in range(start + 1, start + k):
            if abs(qualities[j] - qualities[start]) > 1e-6:
                good, bad = (j, start) if qualities[j] > qualities[start] else (start, j)
                pairs.append((good, bad, strength(qualities[good] - qualities[bad])))
                break
    rewards = score(reward_model, [(candidates[i].prompt, candidates[i].text) for g, b, _ in pairs for i in (g, b)])
    hits = [(candidates[g].prompt.skill, s, rewards[2 * i] > rewards[2 * i + 1]) for i, (g, b, s) in enumerate(pairs)]
    out = []
    for skill in (*in_order(s for s, _, _ in hits), "all"):
        for name in ("any", *STRENGTHS):
            shares = [float(h) for sk, s, h in hits if (sk == skill or (skill == "all" and sk in DECIDED))
                      and name in ("any", s)]  # fmt: skip
            if shares:
                out.append(Agreement(round, skill, name, rate(shares)))
    return out


def judge_scores(
    drawn: Sequence[Candidate], reward_model: Callable[[], RewardModel], before: Callable[[], Policy],
    after: Callable[[], Policy],
) -> dict[str, list[float]]:  # fmt: skip
    """Return what each judge thinks of each candidate (any scale; comparable within a prompt).

    The models are asked for one after the other, and let go: a card may hold one only.
    """
    unique = {(c.prompt.id, c.text): c for c in drawn}
    rows = [(c.prompt.text, c.text) for c in unique.values()]
    keys = list(unique)
    reward = dict(zip(keys, score(reward_model(), [(c.prompt, c.text) for c in unique.values()]), strict=True))
    lp_before = dict(zip(keys, answer_logprobs(before(), rows), strict=True))
    lp_after = dict(zip(keys, answer_logprobs(after(), rows), strict=True))
    at = [(c.prompt.id, c.text) for c in drawn]
    out = {
        "checker": [float(r) for r in are_right(drawn)],
        "reward model": [reward[a] for a in at],
        "log-probability": [c.logprob for c in drawn],
        "implicit reward": [lp_after[a] - lp_before[a] for a in at],
        "random": [0.0 for _ in drawn],
    }
    both = zip(_standard(out["reward model"], drawn), _standard(out["log-probability"], drawn), strict=True)
    out["reward model + log-probability"] = [a + b for a, b in both]
    return out


def _answers_each(candidates: Sequence[Candidate]) -> int:
    """Return how many answers a prompt has: as many for each prompt, prompt by prompt."""
    return sum(c.prompt.id == candidates[0].prompt.id for c in candidates)


def _standard(values: Sequence[float], drawn: Sequence[Candidate]) -> list[float]:
    """Return values standardised within each prompt: mean 0, spread 1 (all equal: 0)."""
    k = _answers_each(drawn)
    table = np.array(values).reshape(-1, k)
    spread = table.std(1, keepdims=True)
    table = (table - table.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return [float(v) for v in table.ravel()]


def best_of_k(drawn: Sequence[Candidate], judged_by: dict[str, list[float]], ks: Sequence[int]) -> list[BestOfK]:
    """Return, by skill and judge, the true pass rate of the best of k as k grows."""
    right = are_right(drawn)
    k = _answers_each(drawn)
    out = []
    for skill in in_order(c.prompt.skill for c in drawn):
        starts = [i for i in range(0, len(drawn), k) if drawn[i].prompt.skill == skill]
        for name, values in judged_by.items():
            picks = [[(values[j], right[j]) for j in range(i, i + k)] for i in starts]
            out.append(best_of_k_curve(name, skill, ks, picks))
        if skill in VOTED:  # programs and open answers have no final answer to vote on
            votes = [
                [(drawn[j].text.rsplit("Answer:", 1)[-1].strip(), right[j]) for j in range(i, i + k)] for i in starts
            ]
            out.append(majority_vote(skill, ks, votes))
    return out


def picks(drawn: Sequence[Candidate], values: Sequence[float]) -> list[PromptScore]:
    """Return one row a prompt: how right and how good the answer is that a judge picks out of all K.

    Answers of equal value share the pick evenly, so that equal values all round are a random pick.
    """
    right, quality = are_right(drawn), true_qualities(drawn)
    k = _answers_each(drawn)
    out = []
    for i in range(0, len(drawn), k):
        top = [j for j in range(i, i + k) if values[j] == max(values[i : i + k])]
        hit, worth = (float(np.mean([v[j] for j in top])) for v in (right, quality))
        ended, length = (
            float(np.mean(v)) for v in ([drawn[j].finished for j in top], [drawn[j].n_tokens for j in top])
        )
        p = drawn[i].prompt
        out.append(PromptScore(p.id, p.skill, p.level, hit, hit, hit, worth, ended, length))
    return out


def sample_answers(before: Sequence[Candidate], after: Sequence[Candidate]) -> tuple[SampleAnswer, ...]:
    """Return the same prompts' greedy answers, before and after."""

    def word(right: bool) -> str:
        return "right" if right else "wrong"

    return tuple(
        SampleAnswer(a.prompt.id, a.prompt.skill, a.prompt.level, a.prompt.text, a.text, word(ra), b.text, word(rb))
        for a, b, ra, rb in zip(before, after, are_right(before), are_right(after), strict=True)
    )
