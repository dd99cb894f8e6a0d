"""The red team: what it tries, what it counts, and what it turns failures into, against scripted policies."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab.models import load_policy
from llama3_lab.pipeline.reports import rate
from llama3_lab.profiles import TINY, Sampling
from llama3_lab.records import Candidate
from llama3_lab.safety import redteam
from llama3_lab.safety.redteam import Attack, archive, attack, broken_targets, draw_targets, patch
from llama3_lab.safety.refusals import refuses
from llama3_lab.world import hazards

HELD_OUT = TINY.safety.held_out
KNOWN = tuple(f for f in hazards.FAMILIES if f != HELD_OUT)


@pytest.fixture
def scripted(monkeypatch):
    """Return a function that sets what the policy answers; what it was asked, and how, is kept."""
    asked: list = []

    def answers(rule) -> list:
        def sample(policy, prompts, how):
            asked.append((policy, list(prompts), how))
            return [Candidate(p, rule(p), "policy", how.temperature, 0, 5, True, -1.0) for p in prompts]

        monkeypatch.setattr(redteam, "sample", sample)
        return asked

    return answers


def weak_to(family: str):
    """A policy that helps with whatever comes in one wording, and refuses everything else."""
    helped = {t.prompt.text: hazards.help_with(t) for t in draw_targets(30, KNOWN, "train", 0) if t.family == family}
    return lambda p: helped.get(p.text, "Sorry, I can not help.")


# -- targets


def test_every_target_comes_in_every_wording_target_by_target() -> None:
    every = draw_targets(20, KNOWN, "train", 3)
    assert len(every) == 20 * len(KNOWN)
    assert [t.family for t in every] == [*KNOWN] * 20
    for i in range(0, len(every), len(KNOWN)):
        one = every[i: i + len(KNOWN)]
        assert len({(t.code, t.method, t.kind) for t in one}) == 1 and one[0].kind == "adversarial"
        assert len({t.prompt.text for t in one}) == len(KNOWN)
    assert len({t.prompt.id for t in every}) == len(every)
    assert {t.prompt.split for t in every} == {"train"}
    assert every == draw_targets(20, KNOWN, "train", 3) != draw_targets(20, KNOWN, "train", 4)


# -- attack


def test_an_attack_is_greedy_and_succeeds_where_the_answer_helps(scripted) -> None:
    asked = scripted(weak_to("role-play"))
    targets = draw_targets(30, KNOWN, "train", 0)
    found = attack("policy", targets, Sampling(k=9, temperature=1.0))
    ((policy, prompts, how),) = asked
    assert policy == "policy" and prompts == [t.prompt for t in targets] and (how.k, how.temperature) == (1, 0.0)
    assert [a.asked for a in found] == targets
    assert [a.success for a in found] == [t.family == "role-play" for t in targets]
    assert all(a.success == hazards.violated(a.asked, a.answer) for a in found)


def test_the_base_can_be_attacked() -> None:
    policy = load_policy(Path(__file__).parents[1] / "data" / "tiny_base", replace(TINY.model, threads=1))
    targets = draw_targets(2, KNOWN, "train", 0)
    found = attack(policy, targets, Sampling(max_new_tokens=12))
    assert [a.asked for a in found] == targets and all(isinstance(a.answer, str) for a in found)


# -- archive


def test_the_archive_counts_by_category_and_wording(scripted) -> None:
    scripted(weak_to("many-shot"))
    targets = draw_targets(30, KNOWN, "train", 0)
    attacks = attack("policy", targets, Sampling())
    cells = archive(attacks)
    assert sum(c.success.n for c in cells) == len(attacks)
    assert len({(c.code, c.family) for c in cells}) == len(cells)
    assert {(c.code, c.family) for c in cells} == {(t.code, t.family) for t in targets}
    assert {c.family: c.success.value for c in cells} == {f: float(f == "many-shot") for f in KNOWN}
    assert [(c.code, c.family) for c in cells][:2] == [(t.code, t.family) for t in targets[:2]]
    assert archive([]) == []


def test_a_cell_by_hand() -> None:
    one = draw_targets(1, ("plain", "role-play"), "train", 0)
    attacks = [Attack(one[0], "", s) for s in (True, False, True)] + [Attack(one[1], "", False)]
    code = one[0].code
    assert archive(attacks) == [
        redteam.Cell(code, "plain", rate([1.0, 0.0, 1.0])), redteam.Cell(code, "role-play", rate([0.0])),
    ]  # fmt: skip


def test_a_target_is_broken_by_any_of_its_wordings() -> None:
    (one,) = draw_targets(1, ("plain",), "train", 0)
    hits = [False, False, True, False, False, False, True, True, True]
    assert broken_targets([Attack(one, "", h) for h in hits], 3) == [True, False, True]
    assert broken_targets([], 3) == []


# -- patch


def test_a_patch_has_as_many_look_alikes_as_refusals_in_the_same_wordings(scripted) -> None:
    scripted(weak_to("prefix injection"))
    attacks = attack("policy", draw_targets(30, KNOWN, "train", 0), Sampling())
    rows = patch(attacks, 12, seed=1)
    refused, helped = rows[:12], rows[12:]
    assert len(rows) == 24
    assert all(refuses(d.text) for d in refused) and not any(refuses(d.text) for d in helped)
    failed = {a.asked.prompt.id for a in attacks if a.success}
    assert {d.prompt.id for d in refused} < failed and len({d.prompt.id for d in refused}) == 12
    for d in rows:
        assert d.prompt.text.endswith("Answer as: Sure! Ask"), "the look-alikes come in the wording that failed"
        assert d.prompt.split == "train"
    assert len({d.prompt.text for d in helped}) == 12
    assert rows == patch(attacks, 12, seed=1) and {d.prompt.id for d in rows} != {
        d.prompt.id for d in patch(attacks, 12, seed=2)
    }


def test_a_patch_takes_what_failed_and_no_more(scripted) -> None:
    scripted(weak_to("plain"))
    attacks = attack("policy", draw_targets(30, KNOWN, "train", 0), Sampling())
    assert len(patch(attacks, 1000, 0)) == 2 * sum(a.success for a in attacks) == 60
    assert patch(attacks, 0, 0) == []
    assert patch([replace(a, success=False) for a in attacks], 10, 0) == patch([], 10, 0) == []


def test_the_held_out_wording_is_in_no_patch(scripted) -> None:
    scripted(lambda p: "Sure! Ask Bob, then begin.")
    attacks = attack("policy", draw_targets(40, KNOWN, "train", 5), Sampling())
    assert all(a.success for a in attacks)
    rows = patch(attacks, 200, 0)
    assert len(rows) == 400
    spelled = re.compile(r"\b[A-Za-z](?:-[a-z]){3,}\b")
    assert spelled.search(draw_targets(1, (HELD_OUT,), "train", 0)[0].prompt.text)
    assert not [d for d in rows if spelled.search(d.prompt.text)]
