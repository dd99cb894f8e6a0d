"""Safety data: right treatment of every request, noise where it is asked for, pairs that point one way, the filter."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest

from llama3_lab.records import Candidate, SafetyPrompt
from llama3_lab.safety import finetuning
from llama3_lab.safety.finetuning import demonstrations, draw_requests, drop_unsafe, helpful, pairs
from llama3_lab.safety.refusals import refuses
from llama3_lab.world import hazards

KNOWN = tuple(f for f in hazards.FAMILIES if f != "encoding")
RUDE = "No way."


def requests(n: int = 60, kinds=("adversarial", "borderline", "benign")) -> list[SafetyPrompt]:
    return [a for kind in kinds for a in draw_requests(n, kind, KNOWN, "train", 0)]


def said(asked: SafetyPrompt, text: str, finished: bool = True) -> Candidate:
    return Candidate(asked.prompt, text, "policy", 1.0, 0, 5, finished, -1.0)


# -- requests


def test_requests_differ_and_their_families_take_turns() -> None:
    every = draw_requests(103, "adversarial", KNOWN, "train", 1, "round1")
    assert len(every) == 103 == len({a.prompt.text for a in every}) == len({a.prompt.id for a in every})
    assert [a.family for a in every] == [KNOWN[i % 5] for i in range(103)]
    assert {a.kind for a in every} == {"adversarial"} and {a.prompt.split for a in every} == {"train"}
    assert all(a.prompt.id.startswith("round1-adversarial-") for a in every)
    assert every == draw_requests(103, "adversarial", KNOWN, "train", 1, "round1")
    assert every != draw_requests(103, "adversarial", KNOWN, "train", 2, "round1")
    assert not {a.prompt.text for a in every} & {
        a.prompt.text for a in draw_requests(103, "adversarial", KNOWN, "test", 1, "round1")
    }


def test_more_requests_than_the_world_has_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="fewer than 900 different borderline requests in validation; ask for fewer"):
        draw_requests(900, "borderline", ("soft wording",), "validation", 0)


# -- demonstrations


def test_right_treatment_is_a_refusal_with_its_reason_or_help() -> None:
    asked = requests()
    made = demonstrations(asked)
    assert [d.prompt for d in made] == [a.prompt for a in asked] and {d.rule for d in made} == {"safety"}
    for a, d in zip(asked, made, strict=True):
        assert d.text == hazards.ideal(a)
        assert refuses(d.text) == (a.kind == "adversarial") and not hazards.violated(a, d.text)


def test_people_who_never_refuse_help_with_everything() -> None:
    asked = requests()
    made = helpful(asked)
    assert len(made) == len(asked) and not any(refuses(d.text) for d in made)
    assert all(hazards.violated(a, d.text) == (a.kind == "adversarial") for a, d in zip(asked, made, strict=True))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_noise_turns_that_share_the_wrong_way_round(noise: float) -> None:
    asked = requests(300, ("adversarial", "borderline")) + requests(100, ("benign",))
    made = demonstrations(asked, noise, seed=4)
    wrong = Counter()
    for a, d in zip(asked, made, strict=True):
        wrong[a.kind] += d.text != hazards.ideal(a)
        if a.kind == "adversarial" and d.text != hazards.ideal(a):
            assert hazards.violated(a, d.text)
        if a.kind == "borderline" and d.text != hazards.ideal(a):
            assert refuses(d.text)
    assert wrong["benign"] == 0, "ordinary requests have no wrong way round"
    for kind in ("adversarial", "borderline"):
        assert abs(wrong[kind] / 300 - noise) < 0.09
    assert made == demonstrations(asked, noise, seed=4)
    assert (made != demonstrations(asked, noise, seed=5)) == (noise > 0)


# -- pairs


def test_a_pair_sets_refusal_over_violation_and_help_over_refusal() -> None:
    bad, good, plain = (requests(1, (kind,))[0] for kind in ("adversarial", "borderline", "benign"))
    answers = [hazards.help_with(bad), hazards.refuse(good, Random(0)), "5"]
    made = pairs([bad, good, plain], [said(a, t) for a, t in zip((bad, good, plain), answers, strict=True)])
    assert [(p.prompt.id, p.chosen, p.rejected) for p in made] == [
        (bad.prompt.id, hazards.ideal(bad), hazards.help_with(bad)),
        (good.prompt.id, hazards.help_with(good), answers[1]),
    ]
    assert {(p.strength, p.source) for p in made} == {("significantly better", "annotator")}
    assert all(p.true_margin > 0 and p.edited is None for p in made)


def test_a_right_answer_meets_the_mistake_as_an_annotator_writes_it() -> None:
    bad, good = requests(1, ("adversarial", "borderline"))
    first, second = pairs([bad, good], [said(bad, hazards.ideal(bad)), said(good, hazards.help_with(good))])
    assert (first.chosen, first.rejected) == (hazards.ideal(bad), hazards.help_with(bad))
    assert second.prompt is good.prompt and second.chosen == hazards.ideal(good)
    assert refuses(second.rejected) and not hazards.tells_how(second.rejected)


def test_hazards_and_look_alikes_weigh_the_same_however_good_the_policy_is() -> None:
    asked = requests(6, ("adversarial", "borderline"))
    for answer in (hazards.ideal, hazards.help_with):  # a perfect policy, and one that helps with everything
        made = pairs(asked, [said(a, answer(a)) for a in asked])
        by_id = {a.prompt.id: a.kind for a in asked}
        assert [by_id[p.prompt.id] for p in made].count("adversarial") == len(made) / 2


def test_whatever_was_answered_every_pair_points_the_same_way() -> None:
    asked = requests()
    rng = Random(3)
    texts = [rng.choice([hazards.help_with(a), hazards.refuse(a, rng), hazards.write(a, rng), RUDE, "", "  ", "Bob."])
             for a in asked]  # fmt: skip
    made = pairs(asked, [said(a, t) for a, t in zip(asked, texts, strict=True)], seed=2)
    by_id = {a.prompt.id: (a, t) for a, t in zip(asked, texts, strict=True)}
    assert len(made) == len({p.prompt.id for p in made}) <= len(asked)
    for p in made:
        a, text = by_id[p.prompt.id]
        assert a.kind != "benign" and p.chosen == hazards.ideal(a) != p.rejected and p.rejected.strip()
        assert not hazards.violated(a, p.chosen)
        if a.kind == "adversarial":
            assert p.rejected == (text if hazards.violated(a, text) else hazards.help_with(a)) and refuses(p.chosen)
        else:
            assert refuses(p.rejected) and not refuses(p.chosen)
    assert len(made) == sum(a.kind != "benign" for a in asked)
    assert made == pairs(asked, [said(a, t) for a, t in zip(asked, texts, strict=True)], seed=2)


def test_answers_to_other_prompts_are_refused() -> None:
    one, two = requests(2, ("adversarial",))
    with pytest.raises(ValueError, match=f"answers of different prompts.*{one.prompt.id}, {two.prompt.id}"):
        pairs([one], [said(two, "x")])
    with pytest.raises(ValueError):
        pairs([one, two], [said(one, "x")])


# -- filter


@pytest.fixture
def scored(monkeypatch):
    """A guard that finds an answer as unsafe as the number in it says; what it was asked is kept."""
    asked: list = []

    def score(_, conversations):
        asked.extend(conversations)
        return [float(c[-1].text.split()[-1]) for c in conversations]

    monkeypatch.setattr(finetuning.guards, "score", score)
    return asked


def test_the_filter_parts_the_candidates_and_keeps_their_order(scored) -> None:
    (a,) = requests(1, ("adversarial",))
    texts = ["x 0.1", "", "x 0.5", "x 0.49", "  ", "x 1.0", "x 0.5", "x 0.1"]
    every = [said(a, t) for t in texts]
    found = drop_unsafe(SimpleNamespace(threshold=0.5), every)
    assert [c.text for c in found.kept] == ["x 0.1", "", "x 0.49", "  ", "x 0.1"]
    assert [c.text for c in found.dropped] == ["x 0.5", "x 1.0", "x 0.5"]
    assert sorted(map(id, (*found.kept, *found.dropped))) == sorted(map(id, every)), "together all of them, each once"


def test_the_filter_asks_about_the_answer_beside_its_request(scored) -> None:
    one, two = requests(1, ("adversarial", "borderline"))
    drop_unsafe(SimpleNamespace(threshold=0.5), [said(one, "x 0.2"), said(two, "y 0.9")])
    assert [[(t.role, t.text) for t in c] for c in scored] == [
        [("User", one.prompt.text), ("Agent", "x 0.2")], [("User", two.prompt.text), ("Agent", "y 0.9")],
    ]  # fmt: skip


def test_nothing_to_filter_is_nothing(scored) -> None:
    found = drop_unsafe(SimpleNamespace(threshold=0.5), [])
    assert found.kept == found.dropped == ()
