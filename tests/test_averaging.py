"""average(): exactly the mean of the weight updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from llama3_lab.models import load_policy, lora_config
from llama3_lab.pipeline.averaging import average
from llama3_lab.profiles import Lora, Model

BASE = Path(__file__).parents[1] / "data" / "tiny_base"
SETTINGS = Model(threads=1)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Three adapters with random factors, as trainings with three seeds would leave them."""
    from peft import get_peft_model

    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = get_peft_model(load_policy(BASE, SETTINGS).model, lora_config(Lora(4, 8), "CAUSAL_LM"))
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = torch.randn_like(p) * 0.05
        folders.append(tmp_path_factory.mktemp(f"run{seed}") / "adapter")
        model.save_pretrained(folders[-1])
    return folders


def delta(folder: Path, layer: str) -> torch.Tensor:
    """Return one layer's weight update, B @ A times alpha / r, from the file itself."""
    raw = load_file(folder / "adapter_model.safetensors")
    a, b = (raw[f"base_model.model.{layer}.lora_{x}.weight"] for x in "AB")
    return b @ a * (8 / 4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_average_is_the_parent_plus_the_mean_of_the_updates(adapters, tmp_path, n):
    average(adapters[:n], BASE, tmp_path / "out", SETTINGS)
    before, after = load_file(BASE / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, weight in before.items():
        expected = weight
        if "_proj" in key:
            updates = [delta(f, key.removesuffix(".weight")) for f in adapters[:n]]
            expected = weight + sum(updates, torch.zeros_like(weight)) / n
            assert (expected - weight).abs().max() > 0.01  # there is something to average
        assert_close(after[key], expected, atol=1e-6, rtol=0, msg=key)


def test_averaging_the_factors_would_be_another_model(adapters):
    raw = [load_file(f / "adapter_model.safetensors") for f in adapters[:2]]
    layer = "model.layers.0.self_attn.q_proj"
    a, b = (sum(r[f"base_model.model.{layer}.lora_{x}.weight"] for r in raw) / 2 for x in "AB")
    exact = (delta(adapters[0], layer) + delta(adapters[1], layer)) / 2
    assert (b @ a * 2 - exact).abs().max() > 1e-3


def test_order_changes_nothing_and_the_result_loads(adapters, tmp_path):
    average(adapters[:2], BASE, tmp_path / "ab", SETTINGS)
    average(adapters[1::-1], BASE, tmp_path / "ba", SETTINGS)
    ids = torch.tensor([[628, 5, 6, 7]])
    with torch.no_grad():
        one, other = (load_policy(tmp_path / n, SETTINGS).model(ids).logits for n in ("ab", "ba"))
    assert_close(one, other, atol=1e-4, rtol=0)


def test_the_adapters_stay_as_they_are(adapters, tmp_path):
    before = [(f / "adapter_model.safetensors").read_bytes() for f in adapters]
    average(adapters, BASE, tmp_path / "out", SETTINGS)
    assert before == [(f / "adapter_model.safetensors").read_bytes() for f in adapters]


def test_no_adapter_is_said(tmp_path, adapters):
    with pytest.raises(ValueError, match="no adapters"):
        average([], BASE, tmp_path / "out", SETTINGS)
    with pytest.raises(ValueError, match="no adapter there") as error:
        average([adapters[0], tmp_path / "nothing"], BASE, tmp_path / "out", SETTINGS)
    assert "\n" not in str(error.value)


def test_an_adapter_with_whole_modules_is_refused(tmp_path):
    from peft import get_peft_model

    model = get_peft_model(load_policy(BASE, SETTINGS).model, lora_config(Lora(4, 8), "CAUSAL_LM", ["lm_head"]))
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="trained lm_head as a whole"):
        average([tmp_path / "whole"], BASE, tmp_path / "out", SETTINGS)
