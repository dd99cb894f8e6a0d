"""The whole loop at its smallest: every stage runs, the counts add up, a killed run comes back the same."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab import profiles
from llama3_lab.pipeline.rounds import run_loop
from llama3_lab.records import SKILLS
from llama3_lab.store import to_json

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "rounds=2", "model.threads=1", "data.train_prompts=16", "data.test_per_skill=4", "data.demonstrations=32",
    "sampling.k=3", "sampling.max_new_tokens=40", "sft.max_steps=6", "reward.max_steps=3", "reward.pairs=48",
    "dpo.max_steps=3", "dpo.pairs=48", "evaluation.samples=2", "evaluation.base_samples=2",
    "evaluation.best_of_k=1,2", "evaluation.best_of_k_prompts=3",
)  # fmt: skip


def smallest(**changes) -> profiles.Profile:
    profile = profiles.TINY
    for setting in SETTINGS:
        profile = profiles.override(profile, setting)
    return replace(profile, **changes)


def figures(report) -> dict:
    """Return the report without what may differ: its name, wall times and memory."""
    data = json.loads(json.dumps(to_json(report) if not isinstance(report, dict) else report))
    for key in ("name", "seconds", "peak_memory_gb"):
        data.pop(key)
    for one in data["rounds"]:
        one.pop("seconds")
        for checkpoint in one["checkpoints"]:  # training.json holds wall times; the weights are compared
            checkpoint["files"] = [f for f in checkpoint["files"] if f[0] != "training.json"]
    return data


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return run_loop(smallest(), tmp_path_factory.mktemp("paper") / "run")


def test_every_stage_reports(paper):
    assert [e.stage for e in paper.start] == ["base, own format", "base, chat format", "first policy"]
    for r in paper.rounds:
        assert [e.stage.split(f"round {r.round} ")[1] for e in r.evaluations] == [
            "sft",
            "sft on random",
            "dpo",
            "policy",
        ]
        names = [c.name.split("-", 1)[1] for c in r.checkpoints]
        assert names == ["reward", "sft", "control", "dpo-1", "dpo-2", "policy"]
        assert {c.stage.split("-", 1)[-1] for c in r.curves} and r.health and r.tokens > 0
    assert {b.skill for b in paper.best_of_k} == set(SKILLS)
    assert len(paper.samples) == 10


def test_counts_go_down_and_never_up(paper):
    for r in paper.rounds:
        assert sum(f.prompts for f in r.funnel) == 16
        assert all(f.candidates == 3 * f.prompts for f in r.funnel)
        assert r.pairs.dpo <= r.pairs.strong <= r.pairs.annotated <= 48
    assert paper.rounds[1].pairs.reward_training >= paper.rounds[0].pairs.reward_training


def test_reopening_a_finished_run_trains_nothing(paper, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("paper*")) / "run"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert figures(run_loop(smallest(), folder)) == figures(paper)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


def test_an_altered_checkpoint_is_named(paper, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    run_loop(smallest(rounds=1), folder)
    target = folder / "checkpoints" / "round1-sft" / "model.safetensors"
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    with pytest.raises(ValueError, match=r"round1-sft.*model.safetensors"):
        run_loop(smallest(rounds=1), folder)
    shutil.rmtree(target.parent)


def test_the_field_reports_order_runs_too(tmp_path):
    report = run_loop(smallest(order="field_report", rounds=1), tmp_path / "run")
    (r,) = report.rounds
    assert [c.name for c in r.checkpoints] == ["round1-reward", "round1-dpo-1", "round1-dpo-2", "round1-policy"]
    assert [e.stage for e in r.evaluations] == ["round 1 policy"]


@pytest.mark.parametrize("stages", [3, 9])
def test_a_killed_run_resumes_to_the_same_figures(paper, tmp_path, stages):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "llama3_lab.cli", "run", "--out", str(folder)]
    for setting in SETTINGS:
        command += ["--set", setting]
    env = dict(os.environ, LLAMA3_LAB_PROGRESS="0", OMP_NUM_THREADS="1")
    first = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger, deadline = folder / "stages.jsonl", time.time() + 120
    while time.time() < deadline and first.poll() is None:
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= stages:
            break
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (folder / "report.json").exists()
    subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert figures(json.loads((folder / "report.json").read_text())) == figures(paper)
