"""Which sampler answers is the profile's choice; the records are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from served import free_port, needs_server, small_policy, start

from llama3_lab.models import Policy
from llama3_lab.pipeline import runs, samplers
from llama3_lab.pipeline.runs import Run
from llama3_lab.pipeline.server import ServerError
from llama3_lab.profiles import TINY, Sampling, Serving, override
from llama3_lab.records import Candidate, Check, Prompt
from llama3_lab.store import RunFolder

PROMPT = Prompt("p", "arithmetic", "1 + 1?", "train", 1, Check("number", "2"))
POLICY = Policy(None, None, "first")
SERVED = Sampling(k=1, by="server", serving=Serving("http://127.0.0.1:1, http://127.0.0.1:2", "transformers", 3))


def answered(who: str, prompts, how) -> list[Candidate]:
    return [Candidate(p, who, "first", how.temperature, how.seed, 1, True, -1.0) for p in prompts for _ in range(how.k)]


@pytest.fixture
def asked(monkeypatch):
    """Samplers that say who they are."""
    seen = {}

    def served(server, prompts, how, tokenizer, journal, policy):
        seen["server"], seen["journal"] = server, journal
        journal.write_text("half\n")
        return answered("server", prompts, how)

    def continuous(policy, prompts, how, style="chat"):
        return answered("continuous", prompts, how)

    monkeypatch.setattr(samplers, "sample", lambda policy, prompts, how, style: answered("loop", prompts, how))
    monkeypatch.setattr(samplers, "sample_served", served)
    monkeypatch.setattr("llama3_lab.pipeline.continuous.sample_continuous", continuous)
    return seen


@pytest.mark.parametrize(("by", "style", "who"), [
    ("loop", "chat", "loop"), ("continuous", "chat", "continuous"), ("server", "chat", "server"),
    ("server", "base", "loop"), ("continuous", "base", "loop"),
])  # fmt: skip
def test_the_profile_says_who_answers(asked, tmp_path, by, style, who):
    how = replace(SERVED, by=by)
    (found,) = samplers.draw(POLICY, tmp_path, [PROMPT], how, style, tmp_path / "journal")
    assert found.text == who


def test_a_server_is_asked_for_the_policy_s_folder_by_its_name_and_the_journal_goes_when_all_is_there(asked, tmp_path):
    samplers.draw(POLICY, tmp_path, [PROMPT], SERVED, "chat", tmp_path / "journal")
    server = asked["server"]
    assert server.urls == ("http://127.0.0.1:1", "http://127.0.0.1:2") and server.model == str(tmp_path.resolve())
    assert (server.kind, server.concurrency, server.name) == ("transformers", 3, "first")
    assert asked["journal"] == tmp_path / "journal" and not (tmp_path / "journal").exists()


def test_no_server_named_is_one_line():
    with pytest.raises(ValueError, match=r"sampling\.serving\.urls"):
        samplers.server_of(Sampling(by="server"), Path("folder"), "first")


def test_a_server_is_not_asked_for_an_adapter_alone(tmp_path):
    (tmp_path / "parent.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.keep=merged"):
        samplers.server_of(SERVED, tmp_path, "first")


def test_a_server_that_does_not_serve_this_policy_names_the_command(monkeypatch, tmp_path):
    def gone(*_, **__):
        raise ServerError("http://127.0.0.1:1: no answer after 6 tries")

    monkeypatch.setattr(samplers, "sample_served", gone)
    with pytest.raises(ServerError, match="transformers serve") as error:
        samplers.draw(POLICY, tmp_path, [PROMPT], SERVED, "chat", tmp_path / "journal")
    assert "first" in str(error.value) and str(tmp_path) in str(error.value)


def a_run(tmp_path, monkeypatch, *settings) -> Run:
    profile = TINY
    for setting in settings:
        profile = override(profile, setting)
    monkeypatch.setattr(Run, "policy", lambda self, name: Policy(None, None, name))
    return Run(RunFolder(tmp_path / "run", profile), profile, (PROMPT,))


def test_a_run_answers_and_is_measured_by_the_profile_s_sampler(asked, tmp_path, monkeypatch):
    run = a_run(tmp_path, monkeypatch, "sampling.by=server", "sampling.serving.urls=http://127.0.0.1:1",
                "evaluation.samples=2")  # fmt: skip
    assert {c.text for c in run.answers("first", [PROMPT], 3, "round1")} == {"server"}
    assert Path(asked["server"].model) == (run.folder.path / "checkpoints" / "first").resolve()
    run.scores("first", "first policy", 0)
    assert asked["journal"].parent == run.folder.path and asked["journal"].name.startswith(".scores-first")


def test_a_journal_outlives_the_run_that_was_killed(tmp_path, monkeypatch):
    run = a_run(tmp_path, monkeypatch, "sampling.by=server", "sampling.serving.urls=http://127.0.0.1:1")
    (run.folder.path / ".round1-16-1.journal").write_text("answers so far\n")
    run.folder.close()
    RunFolder(tmp_path / "run", run.profile).close()
    assert (run.folder.path / ".round1-16-1.journal").read_text() == "answers so far\n"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_launcher_s_processes_train_where_one_is_named(tmp_path, monkeypatch, stage):
    seen = []

    def launched(name, config):
        def train(*args, out, **more):
            seen.append((name, config.name))
            (out / "model.safetensors").write_bytes(b"x")

        return train

    monkeypatch.setattr(runs, "launched", launched)
    run = a_run(tmp_path, monkeypatch, "model.launcher=configs/accelerate/two_cpu_processes.yaml")
    {"sft": lambda: run.sft("first", []), "reward": lambda: run.reward("r", []),
     "dpo": lambda: run.dpo_run("round1-dpo-1", "first", [])}[stage]()  # fmt: skip
    assert seen == [(stage, "two_cpu_processes.yaml")]


@needs_server
def test_a_run_on_a_real_server_gives_the_answers_that_it_gives_here(tmp_path):
    from llama3_lab.pipeline.prompts import draw_prompts

    prompts = draw_prompts(2, "train", 1, "asked")
    here = override(override(TINY, "model.threads=1"), "sampling.max_new_tokens=40")
    with RunFolder(tmp_path / "run", here) as folder:
        folder.checkpoint("first", "policy", "base", "d" * 64, small_policy)
        run = Run(folder, here, tuple(prompts))
        wanted = run.greedy("first", prompts, "greedy")
        server = start(run.path("first"), free_port(), tmp_path / "log")
        try:
            served = override(override(here, "sampling.by=server"), f"sampling.serving.urls={server.url}")
            other = replace(run, profile=override(served, "sampling.serving.kind=transformers"))
            found = other.greedy("first", prompts, "greedy")
            assert [(c.prompt.id, c.text, c.policy, c.finished) for c in found] == [
                (c.prompt.id, c.text, c.policy, c.finished) for c in wanted]  # fmt: skip
            assert len(other.answers("first", prompts[:2], 3, "sampled")) == 6
        finally:
            server.kill()
        with pytest.raises(ServerError, match="transformers serve"):
            other.answers("first", prompts[:1], 1, "gone")
        assert not list(folder.path.glob(".greedy*")) and list(folder.path.glob(".gone*")), "kept, to go on with"
