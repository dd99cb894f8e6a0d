"""model.keep=adapters: what a stage leaves is small, and loads as the merged weights would have."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from peft import PeftModel

from llama3_lab import cli
from llama3_lab.export import export
from llama3_lab.models import apply_special_rows, batches, load_policy, load_reward_model, token_logprobs, write_merged
from llama3_lab.pipeline.averaging import average
from llama3_lab.pipeline.training import train_dpo, train_reward, train_sft
from llama3_lab.profiles import TINY, Dpo, Fit, Model, Reward, Sft
from llama3_lab.records import Demonstration, PreferencePair
from llama3_lab.store import RunFolder
from llama3_lab.world.corpus import ideal, make_prompt

BASE = Path(__file__).resolve().parent.parent / "data" / "tiny_base"
MERGED = Model(threads=1)
KEPT = replace(MERGED, keep="adapters")
FIT = Fit(max_steps=3, per_device_train_batch_size=4, warmup_steps=1)
RNG = Random(0)
PROMPTS = [make_prompt(RNG, "arithmetic", 1, "train", f"p{i}") for i in range(8)]
ROWS = [Demonstration(p, ideal(p), "written") for p in PROMPTS]
PAIRS = [PreferencePair(p, ideal(p), "Answer: 999", "better", "annotator", 1.0) for p in PROMPTS]


def stages(folder: Path, settings: Model) -> Path:
    """SFT with LoRA alone, two DPO runs on it, and their average; a reward model."""
    train_sft(BASE, ROWS, Sft(fit=FIT, embeddings=False), folder / "sft", settings, embeddings=False)
    for i in (1, 2):
        train_dpo(folder / "sft", PAIRS, Dpo(fit=replace(FIT, learning_rate=1e-3)), folder / f"dpo-{i}", settings, i)
    average([folder / "dpo-1" / "adapter", folder / "dpo-2" / "adapter"], folder / "sft", folder / "policy", settings)
    train_reward(BASE, PAIRS, Reward(fit=FIT, embeddings=False), folder / "reward", settings)
    return folder


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    return stages(tmp_path_factory.mktemp("merged"), MERGED)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return stages(tmp_path_factory.mktemp("kept"), KEPT)


def logits(folder: Path, kind: str = "policy") -> torch.Tensor:
    load = load_reward_model if kind == "reward" else load_policy
    loaded = load(folder, MERGED)
    ids = torch.tensor([loaded.tokenizer(PROMPTS[0].text).input_ids])
    with torch.inference_mode():
        return loaded.model(ids, use_cache=False).logits


@pytest.mark.parametrize("name", ["sft", "dpo-1", "policy", "reward"])
def test_what_is_kept_loads_as_the_merged_weights_do(merged, kept, name):
    kind = "reward" if name == "reward" else "policy"
    assert torch.equal(logits(kept / name, kind), logits(merged / name, kind))


def test_it_differs_from_the_base_and_from_its_parent(kept):
    assert not torch.allclose(logits(kept / "sft"), logits(BASE), atol=1e-3)
    assert not torch.allclose(logits(kept / "policy"), logits(kept / "sft"), atol=1e-5)


@pytest.mark.parametrize("name", ["sft", "dpo-1", "policy", "reward"])
def test_no_weights_are_written_but_the_adapter_s(kept, merged, name):
    files = {p.relative_to(kept / name).as_posix() for p in (kept / name).rglob("*") if p.is_file()}
    assert "adapter/adapter_model.safetensors" in files and "config.json" in files and "tokenizer.json" in files
    assert not [f for f in files if f.startswith("model")]
    assert (merged / name / "model.safetensors").is_file() and not (merged / name / "parent.json").exists()


def test_the_parent_is_named_relative_to_the_folder_so_that_a_run_can_be_moved(kept, tmp_path):
    assert json.loads((kept / "dpo-1" / "parent.json").read_text()) == {"parent": "../sft"}
    assert json.loads((kept / "policy" / "parent.json").read_text()) == {"parent": "../sft"}


def test_the_prepared_rows_lie_beside_the_adapters_that_need_them(kept):
    assert (kept / "sft" / "adapter" / "special_rows.safetensors").is_file()
    assert (kept / "reward" / "adapter" / "special_rows.safetensors").is_file()
    assert not (kept / "dpo-1" / "adapter" / "special_rows.safetensors").exists()


def test_a_chain_without_its_prepared_rows_is_another_model(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    (tmp_path / "run" / "sft" / "adapter" / "special_rows.safetensors").unlink()
    config = json.loads((tmp_path / "run" / "sft" / "parent.json").read_text())
    (tmp_path / "run" / "sft" / "parent.json").write_text(json.dumps({**config, "parent": str(BASE)}))
    tokens = [(PROMPTS[0].text, ROWS[0].text)]
    policy, other = load_policy(kept / "sft", MERGED), load_policy(tmp_path / "run" / "sft", MERGED)
    encoded = [(policy.tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True,
                return_dict=False), policy.tokenizer(a).input_ids) for t, a in tokens]  # fmt: skip
    assert token_logprobs(policy, encoded) != token_logprobs(other, encoded)


def test_merged_weights_can_be_written_afterwards(kept, merged, tmp_path):
    for name, kind in (("policy", "policy"), ("reward", "reward")):
        write_merged(kept / name, MERGED, tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_bytes((kept / name / "tokenizer.json").read_bytes())
        for file in ("tokenizer_config.json", "chat_template.jinja"):
            (tmp_path / name / file).write_bytes((kept / name / file).read_bytes())
        assert torch.equal(logits(tmp_path / name, kind), logits(merged / name, kind))


def test_batches_hold_every_row_once_within_both_limits():
    lengths = [RNG.randint(1, 90) for _ in range(57)]
    found = list(batches(lengths, 8, 300))
    assert sorted(i for batch in found for i in batch) == list(range(57))
    for batch in found:
        assert len(batch) <= 8 and (len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 300)
    assert list(batches([500], 8, 300)) == [[0]]
    assert [len(b) for b in batches([10] * 20, 8)] == [8, 8, 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder that keeps adapters: an SFT, and a DPO run on it."""
    profile = replace(TINY, model=KEPT)
    path = tmp_path_factory.mktemp("runs") / "run"
    sft = path / "checkpoints" / "first"
    with RunFolder(path, profile) as folder:
        folder.checkpoint("first", "policy", "base", "d" * 64, lambda out: train_sft(
            BASE, ROWS, Sft(fit=FIT, embeddings=False), out, KEPT, embeddings=False))  # fmt: skip
        folder.checkpoint("round1-policy", "policy", "first", "e" * 64, lambda out: train_dpo(
            sft, PAIRS, Dpo(fit=FIT), out, KEPT, seed=1))  # fmt: skip
    return path


@pytest.mark.parametrize("name", ["first", "round1-policy"])
def test_the_command_exports_merged_weights_with_equal_logits(run, tmp_path, name, capsys):
    assert cli.main(["export", str(run), "--checkpoint", name, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out" / "parent.json").exists()
    assert "vllm serve" in capsys.readouterr().out
    assert torch.equal(logits(tmp_path / "out"), logits(run / "checkpoints" / name))
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_an_exported_adapter_brings_the_rows_it_needs(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--checkpoint", "first", "--adapter", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "special_rows.safetensors").is_file()
    assert "special_rows.safetensors" in capsys.readouterr().out
    base = load_policy(BASE, MERGED)
    apply_special_rows(base.model, tmp_path / "out")
    model = PeftModel.from_pretrained(base.model, tmp_path / "out").merge_and_unload()
    ids = torch.tensor([[5, 17, 101]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, load_policy(run / "checkpoints" / "first", MERGED).model(ids).logits)


def test_the_library_says_that_there_are_no_merged_weights(run, tmp_path):
    with pytest.raises(ValueError, match="keeps adapters only"):
        export(run, "first", tmp_path / "out")
