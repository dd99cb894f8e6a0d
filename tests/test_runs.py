"""The notebooks' run has one folder for its settings; variants of a stage know what they were made from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab import places
from llama3_lab.pipeline import runs
from llama3_lab.pipeline.runs import Run, course_run, seed_of
from llama3_lab.profiles import COURSE, TINY, override
from llama3_lab.records import Check, Demonstration, PreferencePair, Prompt
from llama3_lab.store import RunFolder

ASKED = Prompt("p", "arithmetic", "1+1?", "train", 1, Check("number", "2"))
ROWS = [Demonstration(ASKED, "Answer: 2", "written")]
PAIRS = [PreferencePair(ASKED, "Answer: 2", "Answer: 3", "better", "annotator", 1.0)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA3_LAB_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """Every training of the run, as (settings, seed), instead of the training; SFT says what it does to embeddings."""
    found = []

    def train(parent, rows, how, out, settings, seed=None, embeddings=None):
        found.append((how, seed if embeddings is None else embeddings))
        (out / "model.safetensors").write_text(str(how))

    for name in ("train_sft", "train_reward", "train_dpo"):
        monkeypatch.setattr(runs, name, train)
    return found


def test_all_notebooks_share_one_folder_and_other_settings_have_another(place):
    one, two = course_run(None), course_run(None)
    assert one.folder.path == two.folder.path
    assert one.folder.path.parent == place
    assert one.folder.path.name.startswith("course-")
    other = course_run(None, override(COURSE, "sft.max_steps=3"))
    assert other.folder.path != one.folder.path
    kept = json.loads((one.folder.path / "settings.json").read_text())["profile"]
    assert kept["model"]["path"] == "data/tiny_base", "a path of this machine would give each checkout another folder"


def test_another_base_has_another_folder(place, monkeypatch):
    before = course_run(None).folder.path
    (place / "data" / "tiny_base").mkdir(parents=True)
    (place / "data" / "tiny_base" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(places, "project", lambda: place)
    assert course_run(None).folder.path != before


def test_the_base_is_found_from_any_working_folder(place, monkeypatch):
    monkeypatch.chdir(place)
    run = course_run(None)
    assert (run.path("base") / "model.safetensors").is_file()
    assert run.path("round1-sft") == run.folder.path / "checkpoints" / "round1-sft"


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("2", 2), ("64", 2), ("", 2)])
def test_the_environment_caps_the_threads_and_the_folder_stays_the_same(place, monkeypatch, said, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    folder = course_run(None).folder.path
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    run = course_run(None)
    assert run.profile.model.threads == threads
    assert run.folder.path == folder


def test_where_runs_lie_by_default(monkeypatch):
    monkeypatch.delenv("LLAMA3_LAB_RUNS", raising=False)
    monkeypatch.delenv("LLAMA3_LAB_PREDICTIONS", raising=False)
    assert places.runs() == places.project() / "runs"
    assert places.predictions() == places.project() / "runs" / "predictions.json"
    assert places.project() == Path(__file__).parents[1]


def test_the_course_is_tiny_with_less_of_everything():
    assert COURSE.evaluation.split == "validation", "test prompts are for final runs only"
    assert (COURSE.rounds, COURSE.dpo.runs) == (2, 1)
    assert COURSE.sampling.k == TINY.sampling.k == 16
    for smaller, larger in ((COURSE.sft.fit, TINY.sft.fit), (COURSE.dpo.fit, TINY.dpo.fit)):
        assert replace(smaller, max_steps=0) == replace(larger, max_steps=0)
        assert smaller.max_steps < larger.max_steps


def test_told_says_which_stages_were_kept(place, calls):
    first: list[str] = []
    second: list[str] = []
    course_run(first.append).sft("first", ROWS)
    course_run(second.append).sft("first", ROWS)
    assert first == ["first: made in 0 s"]
    assert second == ["first: kept from before"]


def test_a_stage_has_its_own_seed_and_a_variant_the_one_it_is_given(place, calls):
    run = course_run(None)
    run.sft("03-a", ROWS)
    run.sft("03-b", ROWS, replace(COURSE.sft, fit=replace(COURSE.sft.fit, seed=5)))
    run.reward("04-a", PAIRS)
    run.reward("04-b", PAIRS, COURSE.reward)
    run.dpo_run("06-a", "03-a", PAIRS)
    run.dpo_run("06-b", "03-a", PAIRS, replace(COURSE.dpo, beta=0.5))
    seeds = [how.fit.seed if seed in (None, True) else seed for how, seed in calls]
    own = [seed_of(COURSE, name) for name in ("03-a", "04-a", "06-a")]
    assert seeds == [own[0], 5, own[1], 0, own[2], 0]
    assert [calls[i][0].beta for i in (4, 5)] == [0.1, 0.5]


def test_a_variant_with_other_settings_is_made_again(place, calls):
    run = course_run(None)
    half = replace(COURSE.dpo, beta=0.05)
    for how in (None, None, half, half, COURSE.dpo):
        run.dpo_run("06-a", "first", PAIRS, how)
    assert len(calls) == 3


def test_the_bases_special_rows_are_prepared_once_only(place, calls):
    run = course_run(None)
    run.sft("first", ROWS)
    run.sft("06-more", ROWS, parent="first")
    run.sft("06-more-still", ROWS, COURSE.sft, parent="first")
    assert [(how.special_rows, embeddings) for how, embeddings in calls] == [(True, True), *[(False, False)] * 2]


def test_a_policy_not_measured_yet_is_named(tmp_path):
    run = Run(RunFolder(tmp_path / "run", COURSE), COURSE, ())
    with pytest.raises(ValueError, match=r"round1-sft has not been measured yet; run.scores\('round1-sft', stage"):
        run.rows("round1-sft")
