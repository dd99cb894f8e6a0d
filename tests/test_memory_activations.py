"""The planner's activations are those of real tensors: counted on small Llamas, part by part and at the peak."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from llama3_lab.models import quiet
from llama3_lab.paper import activations, weights
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.memory import plan
from llama3_lab.paper.recipe import ATTENTION, EVERY_LINEAR, Recipe
from llama3_lab.pipeline.meters import kept_bytes, peak

SHAPES = {
    "grouped heads": Architecture(3, 128, 448, 8, 2, 16, 512),
    "one head each": Architecture(4, 128, 344, 4, 4, 32, 384),
    "wide heads": Architecture(2, 96, 256, 4, 1, 64, 512),
    "narrow FFN": Architecture(3, 192, 192, 6, 3, 32, 256),
}  # fmt: skip


class Flash(torch.autograd.Function):
    """What FlashAttention keeps and makes, without the arithmetic: this test counts bytes."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        out = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype)
        ctx.save_for_backward(q, k, v, out, torch.zeros(q.shape[:3]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        q, k, v, _, _ = ctx.saved_tensors
        sums = torch.zeros(q.shape)
        return q * sums[..., :1].to(q.dtype), torch.zeros_like(k), torch.zeros_like(v)


def flash(module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> tuple[Any, None]:
    """FlashAttention knows 16 bits only: where autocast is on, transformers and PyTorch turn fp32 to that first."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    return Flash.apply(q, k, v), None


AttentionInterface.register("like-a-gpu", flash)


def build(recipe: Recipe, attention: str) -> Any:
    """Return a small Llama as the recipe says."""
    m = recipe.model
    config = LlamaConfig(
        hidden_size=m.width, intermediate_size=m.ffn, num_hidden_layers=m.layers, num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads, head_dim=m.head_dim, vocab_size=m.vocabulary, tie_word_embeddings=m.tied,
        attn_implementation=attention, use_cache=False)  # fmt: skip
    model: Any = LlamaForCausalLM(config).to(torch.float32 if recipe.dtype == "fp32" else torch.bfloat16)
    if recipe.method != "full":
        from peft import LoraConfig, get_peft_model

        with quiet():
            model = get_peft_model(model, LoraConfig(
                r=recipe.lora_r, lora_dropout=recipe.lora_dropout, target_modules=list(recipe.adapted),
                task_type="CAUSAL_LM"), autocast_adapter_dtype=recipe.adapter_dtype == "fp32")  # fmt: skip
    if recipe.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
        if recipe.method != "full":
            model.enable_input_require_grads()
    return model.train()


def forward(model: Any, recipe: Recipe, logits: bool = False) -> torch.Tensor:
    ids = torch.zeros(recipe.rows, recipe.seq, dtype=torch.long)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
        if logits:
            return model(input_ids=ids, labels=ids).loss
        return inner.model(input_ids=ids).last_hidden_state.sum()


def recipe(shape: str, **changes: Any) -> Recipe:
    usual: dict[str, Any] = {"seq": 160, "micro_batch": 2, "lora_r": 4, "lora_dropout": 0.0, "kernels": "plain"}
    return Recipe(SHAPES[shape], **{**usual, **changes})


METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "LoRA on attention": {"lora_targets": ATTENTION},
    "LoRA on all": {"lora_targets": EVERY_LINEAR},
    "LoRA on q and v, 16-bit adapters": {"lora_targets": ("q_proj", "v_proj"), "adapter_dtype": "bf16"},
    "LoRA on down, fp32 adapters, no autocast": {"lora_targets": ("down_proj",), "autocast": False},
    "LoRA on all, 16-bit adapters, no autocast":
        {"lora_targets": EVERY_LINEAR, "adapter_dtype": "bf16", "autocast": False},
    "full, all fp32": {"method": "full", "dtype": "fp32", "autocast": False},
    "full, fp32 with autocast": {"method": "full", "dtype": "fp32"},
    "LoRA on all, fp32": {"dtype": "fp32", "autocast": False},
}  # fmt: skip
CASES = list(itertools.product(SHAPES, METHODS))


def adapter_copies(r: Recipe) -> int:
    """Autocast's 16-bit copies of trained fp32 weights: autograd keeps them too; the planner counts them elsewhere."""
    if not r.autocast or weights.trained_size(r) < 4:
        return 0
    return 2 * (weights.adapter_weights(r) if r.method != "full" else
                r.model.matrix_parameters() - r.model.vocabulary * r.model.width)  # fmt: skip


def last_norm(r: Recipe) -> int:
    stream = r.stream_size * r.model.width if r.method == "full" else 0
    return (4 * r.model.width + 4 + stream) * r.tokens


@pytest.mark.parametrize("attention", ["flash", "sdpa", "eager"])
@pytest.mark.parametrize(("shape", "method"), CASES, ids=[f"{s}-{m}" for s, m in CASES])
def test_what_the_layers_keep_is_what_autograd_keeps(shape, method, attention):
    r = recipe(shape, checkpointing=False, attention="eager" if attention == "eager" else "flash", **METHODS[method])
    model = build(r, "like-a-gpu" if attention == "flash" else attention)
    counted = kept_bytes(model, lambda: forward(model, r)) - adapter_copies(r) - last_norm(r)
    assert activations.kept(r) == pytest.approx(counted, rel=0.05 if attention == "flash" else 0.10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_with_checkpointing_the_layers_keep_their_inputs_only(shape, method):
    r = recipe(shape, checkpointing=True, **METHODS[method])
    model = build(r, "like-a-gpu")
    with peak(model) as meter:
        loss = forward(model, r)
        counted = meter.now
    del loss
    assert activations.kept(r) + activations.around(r) == pytest.approx(counted - last_norm(r), rel=0.05)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize(("shape", "method"), CASES, ids=[f"{s}-{m}" for s, m in CASES])
def test_the_peak_of_a_step_is_the_largest_phase(shape, method, attention, checkpointing):
    r = recipe(shape, checkpointing=checkpointing, attention=attention, logits="full", seq=320, **METHODS[method])
    assert planned_peak(r) == pytest.approx(counted_peak(r, attention), rel=0.10)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_with_a_large_vocabulary_the_peak_is_at_the_logits(method, checkpointing):
    wide = replace(SHAPES["grouped heads"], vocabulary=8192)
    r = replace(recipe("grouped heads", checkpointing=checkpointing, logits="full", **METHODS[method]), model=wide)
    assert plan(replace(r, optimizer="sgd")).phase == "logits"
    assert planned_peak(r) == pytest.approx(counted_peak(r, "flash"), rel=0.05)


def planned_peak(r: Recipe) -> float:
    """The plan's largest phase before the optimizer's step, without what lies still."""
    p = plan(r)
    return max(size for phase, size in p.phases.items() if phase != "optimizer step") - p.static


def counted_peak(r: Recipe, attention: str) -> int:
    model = build(r, "like-a-gpu" if attention == "flash" else attention)
    with peak(model) as meter:
        forward(model, r, logits=True).backward()
    return meter.most
