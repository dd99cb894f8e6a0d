"""The written-out LoRA layer: the laws that it rests on, and equality with PEFT's, value and gradient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from llama3_lab.course.same import assert_same
from llama3_lab.models import load_policy, lora_config, quiet
from llama3_lab.pipeline.lora import EVERY_LINEAR, LoraLinear, add_lora
from llama3_lab.profiles import Lora, Model

BASE = Path(__file__).parents[1] / "data" / "tiny_base"
HOW = Lora(r=8, alpha=24)
IDS_BT = torch.arange(2 * 9).reshape(2, 9) + 300


@pytest.fixture(scope="module")
def base() -> Any:
    return load_policy(BASE, Model(threads=1)).model


def with_peft(base: Any) -> Any:
    with quiet():
        return get_peft_model(copy.deepcopy(base), lora_config(HOW, "CAUSAL_LM"))


def small(seed: int = 0) -> LoraLinear:
    torch.manual_seed(seed)
    layer = LoraLinear(nn.Linear(6, 4), r=2, alpha=6)
    nn.init.normal_(layer.b_OR)
    return layer


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"])
def test_one_layer_is_pefts_in_value_and_gradient(base, name):
    theirs = with_peft(base).base_model.model.model.layers[1].get_submodule(name)
    mine = LoraLinear(copy.deepcopy(theirs.base_layer), HOW.r, HOW.alpha)
    g = torch.Generator().manual_seed(1)
    x, a, b = (torch.randn(s, generator=g) for s in ((2, 5, mine.layer.in_features), mine.a_RI.shape, mine.b_OR.shape))
    assert_same(
        lambda x, a, b: functional_call(mine, {"a_RI": a, "b_OR": b}, (x,)),
        lambda x, a, b: functional_call(theirs, {"lora_A.default.weight": a, "lora_B.default.weight": b}, (x,)),
        x, a, b, names=["x", "A", "B"])  # fmt: skip


def test_a_whole_model_is_pefts_in_value_and_gradient(base):
    theirs, mine = with_peft(base), copy.deepcopy(base)
    trained = add_lora(mine, HOW.r, HOW.alpha)
    adapters = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(trained) == len(adapters) == 2 * len(EVERY_LINEAR) * base.config.num_hidden_layers
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in adapters.values())
    g = torch.Generator().manual_seed(2)
    for own in (m for m in mine.modules() if isinstance(m, LoraLinear)):
        own.b_OR.data = torch.randn(own.b_OR.shape, generator=g) * 0.1
    names = {id(m): n for n, m in mine.named_modules() if isinstance(m, LoraLinear)}
    both = {n: (mine.get_submodule(n), theirs.base_model.model.get_submodule(n)) for n in names.values()}
    for own, other in both.values():
        other.lora_A["default"].weight.data = own.a_RI.data.clone()
        other.lora_B["default"].weight.data = own.b_OR.data.clone()
    logits = [m(IDS_BT).logits for m in (mine, theirs)]
    assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert (logits[0] - base(IDS_BT).logits).abs().max() > 0.1  # the adapters do something
    for out in logits:
        out.log_softmax(-1)[..., 7].sum().backward()
    for n, (own, other) in both.items():
        scale = own.b_OR.grad.abs().max()
        assert scale > 0, n
        assert_close(own.b_OR.grad, other.lora_B["default"].weight.grad, atol=1e-5 * float(scale) + 1e-6, rtol=1e-4)
        assert_close(own.a_RI.grad, other.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-4)


def test_a_new_adapter_changes_nothing_and_only_b_learns_at_first():
    torch.manual_seed(0)
    plain = nn.Linear(6, 4)
    layer, x = LoraLinear(copy.deepcopy(plain), r=2, alpha=4), torch.randn(3, 6)
    assert torch.equal(layer(x), plain(x))
    layer(x).square().sum().backward()
    assert layer.a_RI.grad.abs().max() == 0 < layer.b_OR.grad.abs().max()
    assert layer.layer.weight.grad is None and layer.layer.bias.grad is None


def test_the_update_is_scaled_by_alpha_over_r_worked_by_hand():
    layer = LoraLinear(nn.Linear(2, 1, bias=False), r=1, alpha=3)
    layer.layer.weight.data = torch.tensor([[1.0, 2.0]])
    layer.a_RI.data, layer.b_OR.data = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5]])
    assert layer(torch.tensor([4.0, 1.0])).item() == 4 + 2 + 3 * 0.5 * (4 - 1)


def test_the_merged_matrix_does_the_same_and_its_update_has_rank_r():
    layer, x = small(), torch.randn(5, 6)
    assert_close(layer(x), x @ layer.merged().T + layer.layer.bias)
    assert torch.linalg.matrix_rank(layer.merged() - layer.layer.weight) == 2


def test_nothing_but_the_adapters_trains(base):
    model = copy.deepcopy(base)
    trained = {id(p) for p in add_lora(model, 4, 8, ["q_proj"])}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    assert len(trained) == 2 * base.config.num_hidden_layers
    with pytest.raises(ValueError, match="no linear layer called c_attn; name some"):
        add_lora(copy.deepcopy(base), 4, 8, ["c_attn"])
