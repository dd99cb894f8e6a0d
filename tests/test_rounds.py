"""The whole loop at its smallest: every stage runs, the counts add up, a killed run comes back the same."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama3_lab import profiles
from llama3_lab.disk import digest_file
from llama3_lab.pipeline.rounds import round_winners, run_loop, winners
from llama3_lab.records import SKILLS, Candidate, Check, Judged, Prompt, Verdict
from llama3_lab.store import Stage, read_records, to_json

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "rounds=2", "model.threads=1", "data.train_prompts=16", "data.preference_prompts=16", "data.test_per_skill=4",
    "data.demonstrations=32", "sampling.k=3", "sampling.max_new_tokens=40", "sft.max_steps=6", "reward.max_steps=3",
    "reward.pairs=48", "dpo.max_steps=3", "dpo.pairs=48", "evaluation.samples=2", "evaluation.base_samples=2",
    "evaluation.best_of_k=1,2", "evaluation.best_of_k_prompts=3", "safety.requests=12", "safety.test_requests=12",
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
        assert all(3 * f.prompts <= f.candidates <= 9 * f.prompts for f in r.funnel)  # up to two more helpings
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


# -- killed, and run again

# Starts the run, and dies by SIGKILL in the first stage that begins when `done` stages stand in the ledger:
# half-way along its progress bar, or, where it shows none, at its end, before a word of it is entered.
DYING = """
import os, signal, sys
from llama3_lab import cli, progress
from llama3_lab.store import RunFolder

done, argv, stage = int(sys.argv[1]), sys.argv[2:], []

def die():
    print(*stage, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def dying(self, name, make):
    def due():
        ledger = self.path / "stages.jsonl"
        if (ledger.read_bytes().count(b"\\n") if ledger.exists() else 0) >= done:
            stage[:] = [name]
        return stage == [name]
    def made(*args):
        due()
        result = make(*args)
        if due():  # now at the latest: others may have been made inside this one
            die()
        return result
    return made

def bar(total, *words, plain=progress.bar):
    shown, steps = plain(total, *words), []
    update = shown.update
    def count(n):
        update(n)
        steps.append(n)
        if stage and 2 * sum(steps) >= total:
            stage.append(f"{sum(steps)}/{total}")
            die()
    shown.update = count
    return shown

progress.bar = bar
once, checkpoint = RunFolder.once, RunFolder.checkpoint
RunFolder.once = lambda self, name, cls, make: once(self, name, cls, dying(self, name, make))
RunFolder.checkpoint = lambda self, name, *a: checkpoint(self, name, *a[:-1], dying(self, name, a[-1]))
sys.exit(cli.main(argv))
"""
EVERY_STAGE = os.environ.get("LLAMA3_LAB_EVERY_STAGE", "0") != "0"
SOME = (0, 7, 18, 35)  # an SFT, the candidates, the held-out answers, the comparison of judges


def weights(folder: Path) -> dict[str, str]:
    """Return the digest of every file of weights in a run folder."""
    found = (folder / "checkpoints").rglob("*.safetensors")
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in found}


def finished(folder: Path) -> list[Stage]:
    path = folder / "stages.jsonl"
    return read_records(path, Stage) if path.exists() else []


def killed_everywhere(folder: Path, order: str, points: range | tuple[int, ...]) -> dict[str, str]:
    """Run in a folder and be killed again and again, last of all not; return {stage: where it was killed}."""
    command = ["run", "--order", order, "--out", str(folder)]
    for setting in SETTINGS:
        command += ["--set", setting]
    env = dict(os.environ, LLAMA3_LAB_PROGRESS="0", OMP_NUM_THREADS="1")
    died_in = {}
    for done in points:
        dying = [sys.executable, "-c", DYING, str(done), *command]
        ended = subprocess.run(dying, env=env, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert not (folder / "report.json").exists()
        assert len(finished(folder)) >= done
        stage, _, at = ended.stdout.strip().partition(" ")
        died_in[stage] = at
    subprocess.run([sys.executable, "-m", "llama3_lab.cli", *command], env=env, cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return died_in


def assert_the_same(folder: Path, whole: Path, expected) -> None:
    assert figures(json.loads((folder / "report.json").read_text())) == figures(expected)
    assert weights(folder) == weights(whole) != {}
    records = {s.name: s.digest for s in finished(whole) if s.checkpoint is None}
    assert {s.name: s.digest for s in finished(folder) if s.checkpoint is None} == records


def test_a_run_killed_again_and_again_ends_with_the_same_figures_and_weights(paper, tmp_path, tmp_path_factory):
    whole = next(tmp_path_factory.getbasetemp().glob("paper*")) / "run"
    died_in = killed_everywhere(tmp_path / "run", "paper", SOME)
    assert list(died_in) == [finished(whole)[i].name for i in SOME]
    assert died_in["first"] == "3/6"  # in the middle of its training
    assert_the_same(tmp_path / "run", whole, paper)


@pytest.mark.skipif(not EVERY_STAGE, reason="set LLAMA3_LAB_EVERY_STAGE=1: ten minutes for each order")
@pytest.mark.parametrize("order", ["paper", "field_report"])
def test_a_run_killed_in_every_stage_ends_with_the_same_figures_and_weights(tmp_path, order):
    expected = run_loop(smallest(order=order), tmp_path / "whole")
    names = [s.name for s in finished(tmp_path / "whole")]
    died_in = killed_everywhere(tmp_path / "run", order, range(len(names)))
    print(*(f"{name}: killed {died_in.get(name) or 'at its end'}" for name in names), sep="\n")
    assert set(died_in) == set(names)
    assert_the_same(tmp_path / "run", tmp_path / "whole", expected)


def test_winners_of_all_rounds_are_kept_and_a_rounds_own_are_told_apart():
    asked = [Prompt(f"p{i}", "arithmetic", f"{i}?", "train", 1, Check("number", "1")) for i in range(2)]

    def judged(prompt: Prompt, outcome: str) -> Judged:
        return Judged(Candidate(prompt, outcome, "x", 1.0, 0, 3, True, -1.0), Verdict(outcome, "number", ""), 0.0)

    # The same two prompts in both rounds, as with a prompts file: round two solves the second only.
    kept = {"round1-judged": [judged(p, "pass") for p in asked],
            "round2-judged": [judged(asked[0], "fail"), judged(asked[1], "pass")]}  # fmt: skip
    off = profiles.override(smallest(), "safety.on=false")  # with it on, the guard reads the winners first
    run = SimpleNamespace(folder=SimpleNamespace(once=lambda name, *_: kept[name]), profile=off)
    best, lot = winners(run, 2)
    assert [d.prompt.id for d in best] == [d.prompt.id for d in lot] == ["p0", "p1", "p1"]
    assert [d.prompt.id for d in round_winners(run, 2)[0]] == ["p1"]
