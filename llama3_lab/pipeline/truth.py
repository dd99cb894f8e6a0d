"""true_quality(): how good an answer really is, which the world knows and no model is told."""

from __future__ import annotations

from collections.abc import Sequence

from llama3_lab.benchmarks.checkers import verify
from llama3_lab.records import Candidate, Prompt, Verdict
from llama3_lab.world import conversation

PASS_QUALITY = 4.0


def true_qualities(candidates: Sequence[Candidate], verdicts: Sequence[Verdict] | None = None) -> list[float]:
    """Return each candidate's true quality, in logits (§ world.annotators says what that means).

    Checkable skills: 4 for a pass, else 0 to 1 by the share of right lines. Open skill: the rubric,
    4 at best. An answer cut off at the cap has −1 added.
    """
    verdicts = verify(candidates) if verdicts is None else verdicts
    out = []
    for c, v in zip(candidates, verdicts, strict=True):
        if c.prompt.check.kind == "rubric":
            value = conversation.quality(c.prompt, c.text)
        else:
            value = PASS_QUALITY if v.outcome == "pass" else share_of_right_lines(c.prompt, c.text)
        out.append(value if c.finished else value - 1.0)
    return out


def are_right(candidates: Sequence[Candidate], verdicts: Sequence[Verdict] | None = None) -> list[bool]:
    """Return whether each answer is right: passed by its checker, or perfect by the rubric."""
    verdicts = verify(candidates) if verdicts is None else verdicts
    return [
        c.finished
        and (
            conversation.quality(c.prompt, c.text) >= conversation.PERFECT
            if c.prompt.check.kind == "rubric"
            else v.outcome == "pass"
        )
        for c, v in zip(candidates, verdicts, strict=True)
    ]


def share_of_right_lines(prompt: Prompt, text: str) -> float:
    """Return the share (0..1) of the right answer's steps, links or lines that stand in the text."""
    check = prompt.check
    wanted = check.answer.split("\n") if check.kind == "tests" else list(check.items)
    if check.kind == "chain":
        names = text.split("\nAnswer")[0].replace(" > ", "\n").split("\n")
        lines = {f"{a} > {b}" for a, b in zip(names, names[1:], strict=False)}
    else:
        lines = set(text.split("\n"))
    return sum(w in lines for w in wanted) / max(1, len(wanted))
