"""held_out_pairs(), pair_logps(), answer_shapes(), change(): what a preference training did to a policy's answers.

A rate of right answers does not say why it moved. Two kinds of rows do: the log-probabilities that a policy gives to
pairs that nobody trained on, and how its own answers end. Both have one prompt as their unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import TypeVar

from llama3_lab.models import Policy, encode_answers, encode_prompt, token_logprobs
from llama3_lab.pipeline.pairs import distinct
from llama3_lab.pipeline.probes import Mean, mean
from llama3_lab.pipeline.truth import true_qualities
from llama3_lab.records import Candidate, PreferencePair
from llama3_lab.world.annotators import strength
from llama3_lab.world.conversation import sentences

CLEAR = 0.5  # logits of true quality; pairs nearer than this are left out


@dataclass(frozen=True)
class PairLogps:
    """What a policy thinks of one pair: log-probabilities in nats, ≤ 0, summed over the answer's tokens.

    chosen, rejected: the whole answer, its closing <|eot_id|> included. chosen_end, rejected_end: that token alone.
    """

    prompt_id: str
    skill: str
    chosen: float
    rejected: float
    chosen_end: float
    rejected_end: float

    @property
    def margin(self) -> float:
        """By how many nats the chosen answer is the likelier one."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class AnswerShape:
    """How one prompt's answers end: shares in [0, 1], and the mean length in tokens.

    repeats: the last line or sentence was said before. early: ended by <|eot_id|> before it was done. cut: never
    ended, stopped at the cap.
    """

    prompt_id: str
    skill: str
    repeats: float
    early: float
    cut: float
    n_tokens: float


Row = TypeVar("Row", PairLogps, AnswerShape)


def held_out_pairs(candidates: Sequence[Candidate], most: int) -> list[PreferencePair]:
    """Return up to `most` disjoint pairs of different answers a prompt, the better one by the truth as chosen.

    No rater, no noise: these pairs measure. Answers whose true qualities differ by less than CLEAR are no pair.
    """
    out = []
    for a, b in zip(*distinct(candidates, most), strict=True):
        quality_a, quality_b = true_qualities([a, b])
        gap = quality_a - quality_b
        if abs(gap) >= CLEAR:
            better, worse = (a, b) if gap > 0 else (b, a)
            out.append(PreferencePair(a.prompt, better.text, worse.text, strength(gap), "verifier", abs(gap)))
    return out


def pair_logps(policy: Policy, pairs: Sequence[PreferencePair]) -> list[PairLogps]:
    """Return one row a pair, in order; an edited answer stands for the chosen one, as in training."""
    tokenizer, n = policy.tokenizer, len(pairs)
    texts = [p.chosen if p.edited is None else p.edited for p in pairs] + [p.rejected for p in pairs]
    prompts = [encode_prompt(tokenizer, p.prompt.text) for p in pairs] * 2
    rows = list(zip(prompts, encode_answers(tokenizer, texts), strict=True))
    whole = token_logprobs(policy, rows)
    ends = token_logprobs(policy, [(prompt + answer[:-1], answer[-1:]) for prompt, answer in rows])
    return [
        PairLogps(p.prompt.id, p.prompt.skill, whole[i], whole[n + i], ends[i], ends[n + i])
        for i, p in enumerate(pairs)
    ]


def answer_shapes(drawn: Sequence[Candidate]) -> list[AnswerShape]:
    """Return one row a prompt; a prompt's answers stand together."""
    out = []
    for _, group in groupby(drawn, key=lambda c: c.prompt.id):
        answers = list(group)
        repeats, early = (fmean(f(c) for c in answers) for f in (repeats_itself, stops_early))
        cut, length = fmean(not c.finished for c in answers), fmean(c.n_tokens for c in answers)
        out.append(AnswerShape(answers[0].prompt.id, answers[0].prompt.skill, repeats, early, cut, length))
    return out


def repeats_itself(c: Candidate) -> bool:
    """Return whether the answer's last line or sentence was said before in it.

    An answer that was cut off may end in the middle of one: there the last but one counts as well.
    """
    said = [s for line in c.text.split("\n") for s in sentences(line)]
    lasts = range(len(said) - (1 if c.finished else 2), len(said))
    return any(i > 0 and said[i] in said[:i] for i in lasts)


def stops_early(c: Candidate) -> bool:
    """Return whether the answer was ended before it was done, whatever it says.

    Done: a last line "Answer: …" (arithmetic, orderings), a last line with `return` (programs), as many statements
    as things asked for (conversation). An answer that was cut off did not stop.
    """
    if not c.finished:
        return False
    lines = [line.strip() for line in c.text.split("\n") if line.strip()] or [""]
    if c.prompt.check.kind == "rubric":
        return sum(s.startswith("It ") for s in sentences(c.text)) < len(c.prompt.check.items)
    return not lines[-1].startswith("return" if c.prompt.check.kind == "tests" else "Answer:")


def change(after: Sequence[Row], before: Sequence[Row], name: str) -> Mean:
    """Return the mean change of one column, after − before, over prompts, with its 95 % interval.

    Rows are paired by their place; several rows of a prompt are averaged first.

    Raises:
        ValueError: if the two are not rows of the same prompts in the same order, or there are none.
    """
    if [r.prompt_id for r in after] != [r.prompt_id for r in before]:
        raise ValueError(f"{name}: rows of different prompts cannot be paired; measure both on the same ones")
    found: dict[str, list[float]] = {}
    for a, b in zip(after, before, strict=True):
        found.setdefault(a.prompt_id, []).append(getattr(a, name) - getattr(b, name))
    return mean([fmean(v) for v in found.values()])
