"""Exports: the same model after loading, a card that says what the report says, nothing overwritten, nothing leaked."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from llama3_lab.commands import export as command
from llama3_lab.export import export
from llama3_lab.model_card import Origin, model_card, notice, stage_of
from llama3_lab.models import load_policy, load_reward_model
from llama3_lab.paper.facts import fact
from llama3_lab.pipeline.averaging import average
from llama3_lab.pipeline.training import train_dpo, train_reward, train_sft
from llama3_lab.profiles import TINY, Dpo, Fit, Lora, Model, Reward, Sft
from llama3_lab.records import Check, Checkpoint, Demonstration, PreferencePair, Prompt, Rate, RunReport, SafetyScore
from llama3_lab.store import RunFolder, from_json

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "tiny_base"
RECORDED = ROOT / "data" / "runs" / "tiny-paper-seed0.json"
SETTINGS = Model(threads=1)
FIT = Fit(learning_rate=2e-3, max_steps=3, per_device_train_batch_size=4, warmup_steps=1)
IDS = torch.tensor([[5, 17, 101, 33, 250, 7]])
META = "meta-llama/Llama-3.1-8B"


def prompt(i: int) -> Prompt:
    text = f"Ann has {i} apples and gets 5 more."
    return Prompt(f"p{i}", "arithmetic", text, "train", 1, Check("number", str(i + 5)))


ROWS = [Demonstration(prompt(i), f"Answer: {i + 5}", "written") for i in range(8)]
PAIRS = [PreferencePair(prompt(i), f"Answer: {i + 5}", "Answer: 5!", "better", "annotator", 2.0) for i in range(8)]


def recorded_json() -> dict:
    """A recorded run's report, whether it was recorded before there were safety figures or after."""
    return {"safety": [], "safety_funnel": [], **json.loads(RECORDED.read_text())}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with an SFT, a DPO run, their average and a reward model, and a recorded run's report."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with RunFolder(path, TINY) as folder:
        sft = path / "checkpoints" / "round3-sft"
        folder.checkpoint("round3-sft", "policy", "base", "d" * 64,
                          lambda out: train_sft(BASE, ROWS, Sft(FIT, Lora(4, 8)), out, SETTINGS))  # fmt: skip
        folder.checkpoint("round3-dpo-1", "policy", "round3-sft", "e" * 64,
                          lambda out: train_dpo(sft, PAIRS, Dpo(FIT, Lora(4, 8)), out, SETTINGS, seed=1))  # fmt: skip
        adapters = [path / "checkpoints" / "round3-dpo-1" / "adapter"]
        folder.checkpoint("round3-policy", "policy", "round3-sft", "f" * 64,
                          lambda out: average(adapters * 2, sft, out, SETTINGS))  # fmt: skip
        folder.checkpoint("round3-reward", "reward", "base", "a" * 64,
                          lambda out: train_reward(BASE, PAIRS, Reward(FIT, Lora(4, 8)), out, SETTINGS))  # fmt: skip
    (path / "report.json").write_text(json.dumps(recorded_json()))
    return path


@pytest.fixture(scope="module")
def recorded() -> RunReport:
    return from_json(RunReport, recorded_json())


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_policy(folder, SETTINGS).model(IDS).logits


@pytest.mark.parametrize("name", ["round3-sft", "round3-dpo-1", "round3-policy"])
def test_an_exported_policy_loads_with_equal_logits(run, tmp_path, name):
    made = export(run, name, tmp_path / "out")
    assert torch.equal(logits(made.folder), logits(run / "checkpoints" / name))
    assert not torch.equal(logits(made.folder), logits(BASE))
    assert made.size == sum(p.stat().st_size for p in made.folder.iterdir())
    assert {p.name for p in made.folder.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


@pytest.mark.parametrize(("name", "parent"), [("round3-sft", None), ("round3-dpo-1", "round3-sft")])
def test_an_exported_adapter_on_its_exported_parent_is_the_checkpoint(run, tmp_path, name, parent):
    from peft import PeftModel

    made = export(run, name, tmp_path / "adapter", adapter=True)
    assert not (made.folder / "model.safetensors").exists()
    below = export(run, parent, tmp_path / "parent").folder if parent else BASE
    model = PeftModel.from_pretrained(load_policy(below, SETTINGS).model, made.folder).eval()
    with torch.no_grad():
        found = model(IDS).logits
    wanted = logits(run / "checkpoints" / name)
    assert (found - wanted).abs().max() < 1e-3 < (wanted - logits(below)).abs().max()
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == (parent or "tiny_base")


def test_a_reward_model_is_exported_too(run, tmp_path):
    made = export(run, "round3-reward", tmp_path / "out")
    with torch.no_grad():
        a, b = (load_reward_model(f, SETTINGS).model(IDS).logits
                for f in (made.folder, run / "checkpoints" / "round3-reward"))  # fmt: skip
    assert torch.equal(a, b)
    card = (made.folder / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "vllm" not in card


def test_the_chat_template_is_inside_in_both_places_and_gives_the_same_tokens(run, tmp_path):
    from transformers import AutoTokenizer

    out = export(run, "round3-policy", tmp_path / "out").folder
    template = (out / "chat_template.jinja").read_text()
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == template
    assert "generation %}" not in template, "a tag that only transformers knows"
    said = (("user", " 1+1? "), ("assistant", "2"), ("user", "?"))
    talk = [{"role": role, "content": text} for role, text in said]
    asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    here = load_policy(run / "checkpoints" / "round3-policy", SETTINGS).tokenizer
    wanted = here.apply_chat_template(talk, **asked)
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(talk, **asked) == wanted
    (out / "chat_template.jinja").unlink()  # as an older program, which reads the other place
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(talk, **asked) == wanted


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(run, "round3-policy", out)  # an empty folder is nothing
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ValueError, match="there is something already"):
        export(run, "round3-sft", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    weights = copy / "checkpoints" / "round3-sft" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="model.safetensors: altered"):
        export(copy, "round3-sft", tmp_path / "other")
    (copy / "report.json").write_text("{")
    with pytest.raises(ValueError, match="report.json"):
        export(copy, "round3-policy", tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "out"]


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint 'round9-policy'; there is: round3-sft, round3-dpo-1"):
        export(run, "round9-policy", tmp_path / "out")
    with pytest.raises(ValueError, match="no run folder"):
        export(tmp_path, "x", tmp_path / "out")
    with pytest.raises(ValueError, match="round3-policy: has no adapter, for it is an average"):
        export(run, "round3-policy", tmp_path / "out", adapter=True)


def test_no_path_of_this_machine_leaves_with_it(run, tmp_path):
    for name, adapter in (("round3-policy", False), ("round3-sft", True)):
        out = export(run, name, tmp_path / f"out-{name}", adapter).folder
        for path in out.iterdir():
            if path.suffix != ".safetensors":
                text = path.read_text()
                assert str(ROOT) not in text and str(tmp_path) not in text and str(run) not in text, path.name


# -- the card


def test_the_card_has_every_figure_of_the_checkpoint_with_its_interval(run, tmp_path, recorded):
    out = export(run, "round3-policy", tmp_path / "out").folder
    card = (out / "README.md").read_text()
    (own,) = [e for r in recorded.rounds for e in r.evaluations if e.stage == "round 3 policy"]
    for score in own.scores:
        if score.level == 0:
            assert f"| round 3 policy | {score.skill} | {score.greedy} | {score.sampled} |" in card
    held = [c for c in recorded.comparisons if "round3-policy" in (c.a, c.b)]
    assert held
    for c in held:
        assert f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] n={c.n}" in card
    for row in (r.funnel for r in recorded.rounds):
        assert f"| {sum(f.prompts for f in row)} | {sum(f.candidates for f in row)} |" in card
    assert "round 1 policy" not in card, "another checkpoint's figures"
    (weak,) = [c for c in held if c.verdict == "better" and c.p_holm >= 0.05]
    assert f"{weak.p_holm:.3f} | better* |" in card and card.count("better*") == 1


def test_the_card_has_the_digests_of_all_it_came_from_and_of_every_file(run, tmp_path):
    from llama3_lab.disk import digest_file

    out = export(run, "round3-policy", tmp_path / "out").folder
    card = (out / "README.md").read_text()
    assert "f" * 64 in card and "d" * 64 in card and "e" * 64 not in card  # its own rows and its parent's
    for path in out.iterdir():
        assert path.name == "README.md" or f"| {path.name} | `{digest_file(path)}` |" in card


def test_the_head_is_yaml_that_the_hub_reads(run, tmp_path):
    card = (export(run, "round3-policy", tmp_path / "out").folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "text-generation" and "base_model" not in head


def test_built_with_llama_stands_only_where_the_base_is_metas(run, tmp_path):
    card = (export(run, "round3-policy", tmp_path / "own").folder / "README.md").read_text()
    assert "Built with Llama" not in card and not (tmp_path / "own" / "NOTICE").exists()
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    settings = json.loads((copy / "settings.json").read_text())
    settings["profile"]["model"]["path"] = META
    (copy / "settings.json").write_text(json.dumps(settings))
    out = export(copy, "round3-policy", tmp_path / "metas").folder
    card = (out / "README.md").read_text()
    assert "**Built with Llama**" in card and "Llama 3.1 Community License" in card
    assert "Copyright © Meta" in (out / "NOTICE").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "llama3.1" and head["base_model"] == META


@pytest.mark.parametrize(
    ("base", "vocabulary", "metas", "licence"),
    [("data/tiny_base", 640, False, "apache-2.0"), ("../llama3-lab/data/tiny_base", 640, False, "apache-2.0"),
     (META, 640, True, "llama3.1"), ("meta-llama/Llama-3.2-1B", 640, True, "llama3.2"),
     ("someone/Meta-Llama-3-8B", 640, True, "llama3"),
     ("models/mine", fact("architecture.vocabulary").value, True, "other"),
     ("../llama3-lab/models/mine", 640, False, "other"), ("mistralai/Mistral-7B-v0.3", 32768, False, "other")],
)  # fmt: skip
def test_whose_licence_it_is(base, vocabulary, metas, licence):
    origin = Origin(base, "tiny", 0, vocabulary)
    assert (origin.metas, origin.licence) == (metas, licence)
    assert bool(notice(origin)) == metas


CHAIN = [Checkpoint("round3-policy", "p", "policy", "base", "d", "s", ())]


def test_the_safety_figures_of_the_checkpoint_stand_in_the_card(recorded):
    vr, frr = Rate(0.25, 40, 0.13, 0.41), Rate(0.1, 30, 0.03, 0.25)
    mine = [SafetyScore("round 3 policy", 3, layers, vr, vr, frr, frr, frr) for layers in ("model", "both guards")]
    other = SafetyScore("round 1 policy", 1, "output guard", vr, vr, frr, frr, frr)
    report = replace(recorded, safety=(*mine, other))
    card = model_card(CHAIN, Origin("data/tiny_base", "tiny", 0, 640), [], [], report)
    assert "| layers | violations | violations, unseen wording | look-alikes refused |" in card
    for layers in ("model", "both guards"):
        assert f"| {layers} | {vr} | {vr} | {frr} | {frr} | {frr} |" in card
    assert "| output guard |" not in card and "no safety figures" not in card


def test_what_was_not_measured_is_said(recorded):
    origin = Origin("data/tiny_base", "tiny", 0, 640)
    card = model_card(CHAIN, origin, [], [], replace(recorded, safety=()))
    assert "Not measured: the run's report holds no safety figures of this checkpoint" in card
    card = model_card(CHAIN, origin, [], [], None)
    assert "Not measured: the run's report holds no evaluation" in card and "This run wrote no report" in card


@pytest.mark.parametrize(
    ("name", "stage"),
    [("first", "first policy"), ("round1-sft", "round 1 sft"), ("round2-control", "round 2 sft on random"),
     ("round3-dpo-1", "round 3 dpo"), ("round3-policy", "round 3 policy"), ("round3-dpo-2", ""), ("06-x", "")],
)  # fmt: skip
def test_a_checkpoints_stage_is_that_of_the_report(name, stage, recorded):
    assert stage_of(name) == stage
    stages = {e.stage for r in recorded.rounds for e in r.evaluations} | {e.stage for e in recorded.start}
    assert not stage or stage in stages


# -- the command


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    args = parser.parse_args(["export", *words])
    return args.do(args)


def test_the_command_says_what_it_wrote_and_how_to_serve_it(run, tmp_path, capsys):
    assert run_command(str(run), "--checkpoint", "round3-policy", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert f"vllm serve {tmp_path / 'out'}" in said and "convert_hf_to_gguf.py" in said
    assert "merged weights of round3-policy" in said and "which it will refuse" in said  # TINY's own tokenizer
    assert run_command(str(run), "--checkpoint", "round3-dpo-1", "--out", str(tmp_path / "a"), "--adapter") == 0
    said = capsys.readouterr().out
    assert "--enable-lora" in said and "convert_lora_to_gguf.py" in said and "round3-sft: export that too" in said


def test_exporting_needs_no_torch(run, tmp_path):
    code = ("import sys; from pathlib import Path; from llama3_lab.commands import export as c; from llama3_lab.export "
            "import export; export(Path(sys.argv[1]), 'round3-policy', Path(sys.argv[2]));"
            "print(sorted({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)))")  # fmt: skip
    words = [sys.executable, "-c", code, run, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
