"""The loop of profile 8b, whole, at small size: published columns, LoRA alone, adapters kept, checkpointing, parts.

The model is the small world's base and the problems are the small world's, in the published files' columns.
"""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from published import published, write_published

from llama3_lab import models
from llama3_lab.cli import check_profile
from llama3_lab.course.page import render_page
from llama3_lab.course.safety_views import table_false_refusals
from llama3_lab.course.views import table_stages
from llama3_lab.pipeline import rounds
from llama3_lab.pipeline.rounds import run_loop
from llama3_lab.profiles import EIGHT_B, override
from llama3_lab.store import Stage, read_records

SMALL = (
    "model.path=data/tiny_base", "model.device=cpu", "model.dtype=float32", "model.threads=1", "model.memory_gb=1",
    "model.method=lora", "rounds=1", "data.train_prompts=24", "data.preference_prompts=24", "data.test_per_skill=6",
    "data.demonstrations=96", "sampling.k=4", "sampling.by=loop", "sampling.max_new_tokens=64",
    "sft.learning_rate=0.004", "sft.max_steps=24", "sft.per_device_train_batch_size=16", "sft.micro_batch=8",
    "reward.learning_rate=0.004", "reward.max_steps=6", "reward.per_device_train_batch_size=8", "reward.pairs=48",
    "dpo.learning_rate=0.001", "dpo.max_steps=4", "dpo.per_device_train_batch_size=4", "dpo.micro_batch=2",
    "evaluation.samples=2", "evaluation.base_samples=2", "evaluation.best_of_k=1,2", "evaluation.best_of_k_prompts=3",
    "evaluation.control=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_published(folder, train=80, test=10, pairs=48)
    made = published(replace(EIGHT_B, name="8b-small"), folder)
    for setting in SMALL:
        made = override(made, setting)
    return check_profile(made)


ALIVE: list[tuple[str, list[str]]] = []  # (what is being loaded, which models were alive then)


@pytest.fixture(scope="module")
def run(profile, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "8b-small"
    loaded: list[tuple[str, weakref.ref]] = []
    load = models._load

    def watched(kind, path, settings, **more):
        gc.collect()
        if not models.parent_of(Path(path)):  # the end of a chain of adapters: here weights are read
            ALIVE.append((str(path), [name for name, model in loaded if model() is not None]))
        made = load(kind, path, settings, **more)
        loaded.append((Path(path).name, weakref.ref(made[0])))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_load", watched)
        return run_loop(profile, out), out


def test_never_are_two_models_in_memory_at_once(run):
    """A card of 24 GB holds one 8B; a policy and a reward model side by side would be 32."""
    assert len(ALIVE) > 12
    assert [(path, names) for path, names in ALIVE if names] == []


def test_every_stage_of_the_loop_is_made(run):
    _, out = run
    made = [s.checkpoint.name for s in read_records(out / "stages.jsonl", Stage) if s.checkpoint]
    assert made == ["first", "sibling", "round1-reward", "round1-sft", "round1-dpo-1", "round1-policy"]


def test_the_report_speaks_of_the_published_skills(run):
    report, _ = run
    last = report.rounds[0].evaluations[-1]
    assert {s.skill for s in last.scores} == {"gsm8k", "mbpp", "all"}
    assert {f.skill for f in report.rounds[0].funnel} == {"gsm8k", "mbpp"}
    assert {b.skill for b in report.best_of_k} == {"gsm8k", "mbpp"}
    everything = next(s for s in last.scores if s.skill == "all" and s.level == 0)
    assert everything.greedy.n == 12, "both skills have a checker, so both count"


def test_something_is_learned_although_lora_alone_trains(run):
    report, _ = run
    loss = next(c for c in report.curves if (c.stage, c.metric) == ("first", "loss")).values
    assert sum(loss[-5:]) / 5 < 0.5 * sum(loss[:3]) / 3
    ended = {e.stage: next(s for s in e.scores if s.skill == "all" and not s.level).ended for e in report.start}
    assert ended["first policy"].value > ended["base, chat format"].value, "the end of a turn is learned"


def test_page_and_table_show_the_skills(run):
    report, _ = run
    page = render_page(report)
    assert "gsm8k" in table_stages(report) and "mbpp" in page and "conversation" not in table_stages(report)


def test_false_refusals_are_counted_on_the_named_harmless_requests(run):
    report, _ = run
    assert [f.stage for f in report.false_refusals] == ["first policy", "round 1 sft", "round 1 policy"]
    assert {f.rate.n for f in report.false_refusals} == {4}, "the row that is not labelled safe does not count"
    assert "Refusals of harmless requests" in render_page(report) and "round 1 sft" in table_false_refusals(report)


def test_no_test_problem_trains(run, profile):
    _, out = run
    tests = {json.loads(line)["question"] for line in Path(profile.data.benchmarks.gsm8k_test).read_text().splitlines()}
    drawn = [json.loads(line)["candidate"]["prompt"] for line in (out / "round1-judged.jsonl").read_text().splitlines()]
    assert drawn and {p["split"] for p in drawn} == {"train"} and not {p["text"] for p in drawn} & tests


def test_only_adapters_are_kept(run):
    _, out = run
    assert not list(out.glob("checkpoints/*/model*.safetensors"))
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert size < 12e6


def test_pairs_are_right_answers_over_wrong_ones(run):
    from llama3_lab.benchmarks.checkers import check_text
    from llama3_lab.records import PreferencePair

    _, out = run
    pairs = read_records(out / "batch-1.jsonl", PreferencePair)
    assert pairs and {p.source for p in pairs} == {"verifier"}
    for p in pairs:
        assert check_text(p.prompt, p.chosen).outcome == "pass" and check_text(p.prompt, p.rejected).outcome == "fail"


def test_the_same_command_goes_on_with_what_is_there_on_another_card_too(run, profile, monkeypatch):
    """The planner's choice on another GPU is no other run: the folder keeps what was asked."""
    report, out = run

    def refuse(*_, **__):
        raise AssertionError("a stage was made again")

    monkeypatch.setattr("llama3_lab.pipeline.runs.train_sft", refuse)
    monkeypatch.setattr(rounds.measurements, "measured", refuse)
    again = run_loop(profile, out, override(profile, "sft.micro_batch=4"))
    assert again.rounds[0].evaluations == report.rounds[0].evaluations


def test_other_settings_are_another_run(run, profile):
    _, out = run
    with pytest.raises(ValueError, match=r"sft\.fit\.micro_batch \(there 8, now 4\)"):
        run_loop(override(profile, "sft.micro_batch=4"), out)
