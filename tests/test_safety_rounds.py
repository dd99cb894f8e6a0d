"""Safety inside the loop: a whole small run with it and without, and each part by itself, on scripted answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from llama3_lab import profiles
from llama3_lab.pipeline import safety_rounds
from llama3_lab.pipeline.demonstrations import select, select_at_random
from llama3_lab.pipeline.pairs import strong
from llama3_lab.pipeline.prompts import draw_prompts, held_out
from llama3_lab.pipeline.rounds import run_loop
from llama3_lab.pipeline.runs import Run, seed_of
from llama3_lab.records import (
    CHECKABLE,
    Candidate,
    Check,
    Demonstration,
    Judged,
    PreferencePair,
    Prompt,
    SafetyAnswer,
    SafetyFunnel,
    SafetyPrompt,
    Verdict,
)
from llama3_lab.safety import finetuning
from llama3_lab.safety.layers import LAYERS
from llama3_lab.safety.refusals import refuses
from llama3_lab.store import RunFolder, Stage, digest_records, read_records, to_json
from llama3_lab.world import hazards
from llama3_lab.world.corpus import write

SETTINGS = (
    "rounds=1", "model.threads=1", "data.train_prompts=16", "data.preference_prompts=16", "data.test_per_skill=4",
    "data.demonstrations=16", "sampling.k=3", "sampling.more_for_unsolved=0", "sampling.max_new_tokens=24",
    "sft.max_steps=4", "reward.max_steps=2", "reward.pairs=32", "dpo.max_steps=2", "dpo.pairs=32", "dpo.runs=1",
    "evaluation.samples=1", "evaluation.base_samples=1", "evaluation.best_of_k=1,2", "evaluation.best_of_k_prompts=2",
    "safety.requests=12", "safety.k=2", "safety.test_requests=10",
)  # fmt: skip
SPELLED = re.compile(r"\b[A-Za-z](?:-[a-z]){3,}\b")


def smallest(**safety) -> profiles.Profile:
    profile = profiles.TINY
    for setting in SETTINGS:
        profile = profiles.override(profile, setting)
    return replace(profile, safety=replace(profile.safety, **safety))


def figures(report) -> dict:
    """Return the report without its name, wall times and memory."""
    data = json.loads(json.dumps(to_json(report)))
    for key in ("name", "seconds", "peak_memory_gb"):
        data.pop(key)
    for one in data["rounds"]:
        one.pop("seconds")
        for checkpoint in one["checkpoints"]:
            checkpoint["files"] = [f for f in checkpoint["files"] if f[0] != "training.json"]
    return data


def stages(folder: Path) -> dict[str, Stage]:
    return {s.name: s for s in read_records(folder / "stages.jsonl", Stage)}


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on") / "run"
    return run_loop(smallest(), folder), folder


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    folder = tmp_path_factory.mktemp("off") / "run"
    return run_loop(smallest(on=False), folder), folder


# -- a whole run with safety on


def test_every_policy_has_its_rates_behind_every_set_of_guards(on) -> None:
    report, _ = on
    expected = [("first policy", 0), ("round 1 sft", 1), ("round 1 policy", 1)]
    assert [(s.stage, s.round, s.layers) for s in report.safety] == [
        (stage, number, part) for stage, number in expected for part in LAYERS
    ]
    for s in report.safety:
        assert (s.vr.n, s.held_out_vr.n, s.frr.n, s.helped.n) == (10, 2, 10, 10)
        assert s.passed.n == 4 * len(CHECKABLE)
        assert s.frr.value + s.helped.value <= 1 + 1e-9
    for i in range(0, len(report.safety), 4):
        model, before, after, both = report.safety[i: i + 4]
        assert both.vr.value <= min(before.vr.value, after.vr.value) <= model.vr.value
        assert both.frr.value >= max(before.frr.value, after.frr.value) >= model.frr.value


def test_the_funnels_counts_fit_together(on) -> None:
    report, folder = on
    (f,) = report.safety_funnel
    assert (f.round, f.hazards, f.look_alikes, f.candidates) == (1, 6, 6, 24)
    assert f.own + f.written == 12 and 0 <= f.dropped <= 24 and f.violations <= f.hazards
    made = read_records(folder / "round1-safety.jsonl", Demonstration)
    assert f.own == sum(d.rule == "safety, own words" for d in made)
    assert f.written == sum(d.rule == "safety, written" for d in made)
    assert f.pairs == len(read_records(folder / "round1-safety-pairs.jsonl", PreferencePair)) <= 12


def test_what_each_stage_learned_from_is_the_old_rows_and_then_the_safety_rows(on) -> None:
    _, folder = on
    profile, done = smallest(), stages(folder)
    tests = held_out(4, "test")
    with RunFolder(folder, profile) as store:
        run = Run(store, profile, tuple(tests))
        judged = store.once("round1-judged", Judged, list)
        best = safety_rounds.safe_winners(run, judged, 1)
        lot = select_at_random(judged, best, seed_of(profile, "round1"))
        safe = safety_rounds.round_demonstrations(run, 1, "first")
        newest = strong(store.once("batch-1", PreferencePair, list), profile.reward.min_strength)
        pairs = safety_rounds.round_pairs(run, 1, "round1-sft")
        written = [*old_demonstrations(profile, tests), *safety_rounds.first_demonstrations(run)]
    assert len(safe) == 12 and [d.rule for d in written].count("help") == 12
    for name, rows in (("first", written), ("sibling", written), ("round1-sft", [*best, *safe]),
                       ("round1-control", [*lot, *safe]), ("round1-dpo-1", [*newest, *pairs])):  # fmt: skip
        assert done[name].checkpoint.data_digest == digest_records(rows), name


def test_the_guard_reads_what_it_filtered_before_anybody_learns_from_it(on) -> None:
    _, folder = on
    profile = smallest()
    with RunFolder(folder, profile) as store:
        run = Run(store, profile, tuple(held_out(4, "test")))
        guard = safety_rounds.guard_of(run)
        winners = read_records(folder / "round1-winners.jsonl", Demonstration)
    asked = [Candidate(d.prompt, d.text, "", 0.0, 0, 1, True, 0.0) for d in winners]
    assert finetuning.drop_unsafe(guard, asked).dropped == ()


def test_no_hazard_in_the_held_out_wording_and_no_test_request_is_in_any_training_row(on) -> None:
    _, folder = on
    profile = smallest()
    with RunFolder(folder, profile) as store:
        run = Run(store, profile, tuple(held_out(4, "test")))
        tests = {a.prompt.text for a in safety_rounds.test_requests(run)}
        asked = {a.prompt.id for a in safety_rounds.test_requests(run)}
        trained = [d.prompt for d in safety_rounds.first_demonstrations(run)]
    for path in folder.glob("*.jsonl"):
        for cls in (Demonstration, PreferencePair):
            if path.name in ("round1-safety.jsonl", "round1-winners.jsonl") and cls is Demonstration or (
                path.name in ("round1-safety-pairs.jsonl", "batch-0.jsonl", "batch-1.jsonl") and cls is PreferencePair
            ):
                trained += [r.prompt for r in read_records(path, cls)]
    hazard = [p for p in trained if "-adversarial-" in p.id]
    assert len(hazard) >= 12 and len(trained) > 60
    assert not [p.text for p in hazard if SPELLED.search(p.text)]
    assert not tests & {p.text for p in trained} and not asked & {p.id for p in trained}
    assert {p.split for p in trained} == {"train"}
    held = [p for p in tests if SPELLED.search(p)]
    assert len(held) >= 2, "the held-out wording must be among the tests, or nothing is held out"


def test_a_resumed_run_gives_the_same_records(on, tmp_path, monkeypatch) -> None:
    report, folder = on
    before = {p.name: p.read_bytes() for p in folder.glob("*safety*.jsonl")}
    assert len(before) >= 6
    assert figures(run_loop(smallest(), folder)) == figures(report)
    assert {p.name: p.read_bytes() for p in folder.glob("*safety*.jsonl")} == before

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:  # killed after the funnel's count, before the demonstrations are kept
        once = RunFolder.once
        broken.setattr(RunFolder, "once", lambda self, name, cls, make: once(
            self, name, cls, dies if name == "round1-safety" else make))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            run_loop(smallest(), tmp_path / "run")
    assert (tmp_path / "run" / "round1-safety-funnel.jsonl").exists()
    assert not (tmp_path / "run" / "round1-safety.jsonl").exists()
    assert figures(run_loop(smallest(), tmp_path / "run")) == figures(report)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*safety*.jsonl")} == before


# -- a whole run with safety off


OLD_STAGES = [
    "first", "sibling", "scores-base-base", "scores-base-chat", "scores-first-chat", "batch-0", "round1-reward",
    "round1-judged", "round1-sft", "scores-round1-sft-chat", "round1-control", "scores-round1-control-chat", "batch-1",
    "round1-dpo-1", "round1-policy", "scores-round1-dpo-1-chat", "scores-round1-policy-chat", "held-out-answers",
    "round1-reward-agreement", "scores-best-of-k-reward-model-chat", "scores-best-of-k-random-chat", "best-of-k",
    "comparisons", "sample-answers",
]  # fmt: skip


def old_demonstrations(profile, tests) -> list[Demonstration]:
    """Return round zero's rows as they were before there was any safety."""
    rng = Random(seed_of(profile, "demonstrations"))
    prompts = draw_prompts(profile.data.demonstrations // 4, "train", rng.randrange(2**31), "written", tests)
    return [Demonstration(p, write(p, rng), "written") for p in prompts]


def test_without_safety_every_stage_has_its_old_name_and_there_is_no_other(off, on) -> None:
    report, folder = off
    assert list(stages(folder)) == OLD_STAGES
    assert report.safety == () and report.safety_funnel == ()
    assert not list(folder.glob("*safety*")) and not list(folder.glob("*winners*"))
    assert set(OLD_STAGES) < set(stages(on[1])), "with safety, stages are added and none is renamed"


def test_without_safety_every_stage_has_its_old_rows(off) -> None:
    _, folder = off
    profile, done = smallest(on=False), stages(folder)
    judged = read_records(folder / "round1-judged.jsonl", Judged)
    best = select(judged, seed=seed_of(profile, "round1"))
    lot = select_at_random(judged, best, seed_of(profile, "round1"))
    newest = strong(read_records(folder / "batch-1.jsonl", PreferencePair), profile.reward.min_strength)
    written = old_demonstrations(profile, held_out(4, "test"))
    for name, rows in (("first", written), ("sibling", written), ("round1-sft", best), ("round1-control", lot),
                       ("round1-dpo-1", newest)):  # fmt: skip
        assert done[name].checkpoint.data_digest == digest_records(rows), name
    assert {j.candidate.prompt.skill for j in judged} == {"arithmetic", "programs", "orderings", "conversation"}


# -- each part by itself, on scripted answers


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Return a function that opens a run whose policy helps with every second request and refuses the others.

    Its guard knows the truth: an answer that helps with a hazard scores 1, everything else 0.
    """
    known: dict[str, SafetyPrompt] = {}
    monkeypatch.setattr(safety_rounds, "guard_of", lambda run: SimpleNamespace(threshold=0.5))

    def score(_, conversations):
        return [float(hazards.violated(known[c[0].text], c[1].text)) if c[0].text in known else 0.0
                for c in conversations]  # fmt: skip

    def answers(run, policy, asked, k, stage):
        known.update({a.prompt.text: a for a in asked})
        out = []
        for i, a in enumerate(asked):
            for j in range(k):
                helps = (i + j) % 2 == 0 if policy == "mixed" else policy == "helps"
                text = hazards.help_with(a) if helps else hazards.refuse(a, Random(i))
                out.append(Candidate(a.prompt, text, policy, 1.0, 0, 5, True, -1.0))
        return out

    monkeypatch.setattr(finetuning.guards, "score", score)
    monkeypatch.setattr(safety_rounds, "_answers", answers)
    folders = []

    def start(**safety) -> Run:
        profile = smallest(**safety)
        folders.append(RunFolder(tmp_path / f"run{len(folders)}", profile).__enter__())
        return Run(folders[-1], profile, tuple(held_out(4, "test")))

    yield start
    for folder in folders:
        folder.__exit__(None, None, None)


def funnel(run: Run) -> SafetyFunnel:
    (row,) = run.folder.once("round1-safety-funnel", SafetyFunnel, list)
    return row


def test_with_all_parts_hazards_are_refused_and_look_alikes_helped(opened) -> None:
    run = opened()
    made = safety_rounds.round_demonstrations(run, 1, "mixed")
    asked = safety_rounds.requests(run, "round1-safety")
    assert [d.prompt.id for d in made] == [a.prompt.id for a in asked]
    for a, d in zip(asked, made, strict=True):
        assert d.rule == "safety, own words"
        assert refuses(d.text) if a.kind == "adversarial" else hazards.helped(a, d.text)
    f = funnel(run)  # k = 2: each hazard is helped with once and refused once
    assert (f.hazards, f.look_alikes, f.candidates) == (6, 6, 24)
    assert (f.violations, f.dropped, f.own, f.written) == (6, 6, 12, 0)


def test_where_the_policy_never_refuses_annotators_write(opened) -> None:
    run = opened()
    made = safety_rounds.round_demonstrations(run, 1, "helps")
    f = funnel(run)
    assert (f.violations, f.dropped, f.own, f.written) == (6, 12, 6, 6)
    assert [d.rule for d in made] == ["safety, written"] * 6 + ["safety, own words"] * 6
    assert all(refuses(d.text) for d in made[:6])


def test_without_the_filter_nothing_is_dropped(opened) -> None:
    run = opened(filter=False)
    safety_rounds.round_demonstrations(run, 1, "helps")
    f = funnel(run)
    assert (f.violations, f.dropped, f.own + f.written) == (6, 0, 12)


def test_without_annotators_only_the_policys_own_words_are_left(opened) -> None:
    run = opened(written=False)
    made = safety_rounds.round_demonstrations(run, 1, "helps")
    f = funnel(run)
    assert (f.dropped, f.own, f.written) == (12, 6, 0), "a hazard whose answers were all dropped is left out"
    assert [d.rule for d in made] == ["safety, own words"] * 6
    assert not any("-adversarial-" in d.prompt.id for d in made)


def test_without_filter_and_annotators_violations_are_learned(opened) -> None:
    run = opened(written=False, filter=False)
    made = safety_rounds.round_demonstrations(run, 1, "helps")
    assert len(made) == 12 and sum(hazards.tells_how(d.text) for d in made) == 12


def test_pairs_put_the_policys_mistakes_right_and_can_be_left_out(opened) -> None:
    run = opened()
    safety_rounds.round_demonstrations(run, 1, "mixed")
    made = safety_rounds.round_pairs(run, 1, "mixed")
    hazard = [p for p in made if "-adversarial-" in p.prompt.id]
    assert len(hazard) == 3 and len(made) == 9, "a pair for every look-alike, and for every second hazard"
    assert all(refuses(p.chosen) and hazards.tells_how(p.rejected) for p in hazard)
    assert safety_rounds.safety_funnel(run, 1) == [replace(funnel(run), pairs=9)]
    without = opened(pairs=False)
    safety_rounds.round_demonstrations(without, 1, "mixed")
    assert safety_rounds.round_pairs(without, 1, "mixed") == []
    assert not (without.folder.path / "round1-safety-pairs.jsonl").exists()
    assert safety_rounds.safety_funnel(without, 1) == [funnel(without)] and funnel(without).pairs == 0


def test_switched_off_it_asks_nothing_and_keeps_nothing(opened) -> None:
    run = opened(on=False)
    assert safety_rounds.first_demonstrations(run) == []
    assert safety_rounds.round_demonstrations(run, 1, "mixed") == []
    assert safety_rounds.round_pairs(run, 1, "mixed") == []
    assert safety_rounds.safety_scores(run, "first", "first policy", 0) == []
    assert safety_rounds.safety_funnel(run, 1) == []
    assert not list(run.folder.path.glob("round1*"))


def test_a_round_teaches_what_earlier_rounds_taught_too(opened) -> None:
    run = opened()
    with pytest.raises(ValueError, match="an earlier round has not asked its safety requests"):
        safety_rounds.round_demonstrations(run, 2, "mixed")
    one = safety_rounds.round_demonstrations(run, 1, "mixed")
    two = safety_rounds.round_demonstrations(run, 2, "mixed")
    assert two[:12] == one and len(two) == 24
    assert not {d.prompt.id for d in one} & {d.prompt.id for d in two[12:]}
    assert len({d.prompt.text for d in two}) > 18, "fresh requests, not the same ones again"
    assert safety_rounds.round_demonstrations(run, 2, "nobody") == two, "kept, not asked again"


# -- choose


def prompt_of(kind: str, seed: int = 0) -> SafetyPrompt:
    return hazards.make(Random(seed), kind, "plain", "train", f"{kind}-{seed}")


def said(asked: SafetyPrompt, text: str, finished: bool = True) -> Candidate:
    return Candidate(asked.prompt, text, "p", 1.0, 0, 5, finished, -1.0)


def test_choose_takes_a_refusal_of_a_hazard_and_help_with_a_look_alike() -> None:
    bad, good = prompt_of("adversarial"), prompt_of("borderline")
    no = "No. I will not help with that."
    kept = [said(bad, hazards.help_with(bad)), said(bad, no), said(good, no), said(good, hazards.help_with(good))]
    for annotators in (True, False):
        made, own = safety_rounds.choose([bad, good], kept, annotators, 0)
        assert own == 2 and [d.text for d in made] == [no, hazards.help_with(good)]


def test_choose_ignores_answers_that_were_cut_off_or_say_nothing() -> None:
    bad = prompt_of("adversarial")
    kept = [said(bad, "Sorry, I can not help.", finished=False), said(bad, "  ")]
    made, own = safety_rounds.choose([bad], kept, True, 0)
    assert own == 0 and [d.text for d in made] == [hazards.ideal(bad)] and made[0].rule == "safety, written"
    assert safety_rounds.choose([bad], kept, False, 0) == ([], 0)


def test_choose_draws_by_lot_and_the_seed_fixes_it() -> None:
    bad = prompt_of("adversarial")
    kept = [said(bad, f"Sorry, I can not help, {i}.") for i in range(8)]
    drawn = [safety_rounds.choose([bad], kept, True, seed)[0][0].text for seed in range(30)]
    assert len(set(drawn)) > 3
    assert drawn == [safety_rounds.choose([bad], kept, True, seed)[0][0].text for seed in range(30)]


def test_help_with_the_wrong_thing_is_no_help() -> None:
    good = prompt_of("borderline")
    wrong = "Sure! Ask Bob, then begin." if "Bob" not in good.method else "Sure! Ask Ann, then begin."
    made, own = safety_rounds.choose([good], [said(good, wrong)], True, 0)
    assert (own, made[0].text) == (0, hazards.ideal(good))


# -- safe_winners


def judged_rows(n: int = 3) -> list[Judged]:
    """Return n prompts with three passing answers each, "best", "middle" and "last" by reward."""
    out = []
    for i in range(n):
        p = Prompt(f"p{i}", "arithmetic", f"{i}?", "train", 1, Check("number", "1"))
        for text, reward in (("best", 2.0), ("middle", 1.0), ("last", 0.0)):
            c = Candidate(p, f"{text} {i}", "x", 1.0, 0, 3, True, -1.0)
            out.append(Judged(c, Verdict("pass", "number", ""), reward))
    return out


def winners_of(monkeypatch, unsafe: set[str], **safety) -> list[str]:
    monkeypatch.setattr(safety_rounds, "guard_of", lambda run: SimpleNamespace(threshold=0.5))
    monkeypatch.setattr(finetuning.guards, "score", lambda _, rows: [float(c[1].text in unsafe) for c in rows])
    run = SimpleNamespace(profile=smallest(**safety), folder=SimpleNamespace(once=lambda name, cls, make: make()))
    return [d.text for d in safety_rounds.safe_winners(run, judged_rows(), 1)]


def test_an_unsafe_winner_makes_way_for_the_next_best(monkeypatch) -> None:
    assert winners_of(monkeypatch, set()) == ["best 0", "best 1", "best 2"]
    assert winners_of(monkeypatch, {"best 1"}) == ["best 0", "middle 1", "best 2"]
    assert winners_of(monkeypatch, {"best 1", "middle 1"}) == ["best 0", "last 1", "best 2"]
    assert winners_of(monkeypatch, {"middle 0", "last 2"}) == ["best 0", "best 1", "best 2"]


def test_a_prompt_whose_answers_are_all_unsafe_is_left_out(monkeypatch) -> None:
    assert winners_of(monkeypatch, {"best 1", "middle 1", "last 1"}) == ["best 0", "best 2"]


def test_where_the_guard_keeps_refusing_none_of_what_it_refuses_is_learned(monkeypatch) -> None:
    monkeypatch.setattr(safety_rounds, "MOST_RESELECTIONS", 1)
    assert winners_of(monkeypatch, {"best 1"}) == ["best 0", "best 2"]


def test_without_the_filter_winners_are_selected_as_before(monkeypatch) -> None:
    for off in ({"filter": False}, {"on": False}):
        assert winners_of(monkeypatch, {"best 0", "best 1", "best 2"}, **off) == ["best 0", "best 1", "best 2"]


# -- what is asked


def run_with(**safety) -> Run:
    return Run(SimpleNamespace(), smallest(**safety), tuple(held_out(4, "test")))


def test_training_asks_half_hazards_in_known_wordings_and_half_look_alikes() -> None:
    run = run_with(requests=60)
    asked = safety_rounds.requests(run, "round1-safety")
    assert [a.kind for a in asked] == ["adversarial"] * 30 + ["borderline"] * 30
    assert {a.family for a in asked[:30]} == set(safety_rounds.families(run)) == set(hazards.FAMILIES) - {"encoding"}
    assert {a.prompt.split for a in asked} == {"train"} and len({a.prompt.id for a in asked}) == 60
    assert asked == safety_rounds.requests(run, "round1-safety") != safety_rounds.requests(run, "round2-safety")
    assert set(safety_rounds.families(run_with(held_out="plain"))) == set(hazards.FAMILIES) - {"plain"}


def test_the_first_policy_learns_from_people_who_help_with_everything() -> None:
    made = safety_rounds.first_demonstrations(run_with(requests=40))
    assert len(made) == 40 and all(hazards.tells_how(d.text) and not refuses(d.text) for d in made)


def test_the_test_holds_hazards_look_alikes_and_ordinary_requests_apart() -> None:
    run = run_with(test_requests=30)
    asked = safety_rounds.test_requests(run)
    kinds = [a.kind for a in asked]
    assert kinds == ["adversarial"] * 36 + ["borderline"] * 30 + ["benign"] * 12
    assert {a.family for a in asked[:30]} == set(safety_rounds.families(run))
    assert {a.family for a in asked[30:36]} == {"encoding"}
    assert {a.prompt.split for a in asked} == {"test"} and len({a.prompt.id for a in asked}) == len(asked)
    other = replace(run.profile, seed=5)
    assert safety_rounds.test_requests(replace(run, profile=other)) == asked, "the same for every run"


def test_a_guard_that_is_not_there_is_one_clear_line() -> None:
    run = run_with(guard=replace(profiles.TINY.safety.guard, path="data/no_guard/here"))
    with pytest.raises(ValueError, match="data/no_guard/here") as caught:
        safety_rounds.guard_of(run)
    assert "\n" not in str(caught.value)


def test_the_profiles_threshold_wins_over_the_guards_own() -> None:
    how = profiles.TINY.safety.guard
    assert safety_rounds.guard_of(run_with(guard=replace(how, threshold=0.75))).threshold == 0.75
    own = safety_rounds.guard_of(run_with())
    assert 0 < own.threshold <= 1 and [c.code for c in own.known] == list(finetuning.hazards.REASONS)


def test_answers_are_kept_with_both_scores(on) -> None:
    _, folder = on
    for name in ("first", "round1-sft", "round1-policy"):
        rows = read_records(folder / f"safety-{name}.jsonl", SafetyAnswer)
        assert len(rows) == 10 + 2 + 10 + 12
        assert all(0 <= r.input_score <= 1 and 0 <= r.output_score <= 1 for r in rows)
