"""Exercises of 02_base_and_lora: adapters counted, folded in and examined; bytes a weight; a training made to fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.paper.architecture import Architecture, llama3
from llama3_lab.paper.catalogue import find_gpu
from llama3_lab.paper.memory import plan
from llama3_lab.paper.recipe import EVERY_LINEAR, Recipe
from llama3_lab.paper.weights import NF4_BYTES, adapter_weights
from llama3_lab.pipeline.lora import LoraLinear

RANK, TARGETS = 8, ("q_proj", "v_proj")  # of 02.1
BITS, BLOCK, SCALE = 4, 32, 2  # of 02.4: bits a weight, weights a block, bytes of a block's scale

# 02.5: an estimate of what LoRA needs. N weights and n in adapters. Two lines are wrong.
ESTIMATE: Mapping[str, str] = {
    "A": "weights, 16-bit:                    2 · N",
    "B": "adapters:                           4 · n",
    "C": "gradients:                          4 · n",
    "D": "AdamW's two states:                 8 · N",
    "E": "kept, with checkpointing:           layers · 2 · width · tokens",
    "F": "logits, a chunk at a time:          12 · vocabulary · tokens",
}


def estimate(recipe: Recipe) -> dict[str, float]:
    """Return the estimate of 02.5, line by line, in bytes. (A museum piece: two lines are wrong.)"""
    m, n = recipe.model, adapter_weights(recipe)
    big = m.parameters()
    return {"A": 2.0 * big, "B": 4.0 * n, "C": 4.0 * n, "D": 8.0 * big, "E": m.layers * 2.0 * m.width * recipe.tokens,
            "F": 12.0 * m.vocabulary * recipe.tokens}  # fmt: skip


def museum_adapter(layer: Any, r: int, alpha: int) -> Any:
    """Return a layer with an adapter that changes nothing at first. (A museum piece: one thing is wrong with it.)"""
    made = LoraLinear(layer, r, alpha)
    made.a_RI.data.zero_()
    return made


def swapped_adapter(layer: Any, r: int, alpha: int) -> Any:
    """Return a layer whose adapter has the zeros in A and the random numbers in B: unusual, and right."""
    import torch

    made = LoraLinear(layer, r, alpha)
    made.a_RI.data.zero_()
    torch.nn.init.normal_(made.b_OR.data, std=0.1)
    return made


def _loud(layer: Any, r: int, alpha: int) -> Any:
    import torch

    made = LoraLinear(layer, r, alpha)
    torch.nn.init.normal_(made.b_OR.data, std=0.1)
    return made


def _thawed(layer: Any, r: int, alpha: int) -> Any:
    made = LoraLinear(layer, r, alpha)
    made.layer.requires_grad_(True)
    return made


def _count(answer: float) -> str | None:
    m = llama3("8b")
    right = adapter_weights(Recipe(m, lora_r=RANK, lora_targets=TARGETS))
    one = right // m.layers
    square = m.layers * RANK * 4 * m.width
    near = {"layer": one, "square": square, "everything": adapter_weights(Recipe(m, lora_r=RANK)),
            "whole": m.layers * (m.width * m.width + m.width * m.kv_heads * m.head_dim),
            "one matrix": m.layers * RANK * 2 * m.width}  # fmt: skip
    if math.isclose(answer, right, rel_tol=1e-9):
        return None
    return next((key for key, value in near.items() if math.isclose(answer, value, rel_tol=1e-9)), "far")


def _merge(merge: Callable[..., Any]) -> str | None:
    import torch

    rng = torch.Generator().manual_seed(2)
    w_OI, a_RI, b_OR = (torch.randn(shape, generator=rng) for shape in ((6, 10), (4, 10), (6, 4)))
    before, alpha = w_OI.clone(), 12
    got = merge(w_OI, a_RI, b_OR, alpha)
    if not torch.equal(w_OI, before):
        return "in place"
    if tuple(got.shape) != (6, 10):
        return "shape"
    change = b_OR @ a_RI
    near = {"": 3 * change, "scale": change, "alpha": alpha * change, "times": 48 * change, "inverse": change / 3,
            "sign": -3 * change}  # fmt: skip
    for key, value in near.items():
        if torch.allclose(got, w_OI + value, atol=1e-4):
            return key or None
    return "only the change" if torch.allclose(got, 3 * change, atol=1e-4) else "far"


def _sound(test: Callable[..., Any]) -> str | None:
    if not (test(LoraLinear) and test(swapped_adapter)):
        return "alarm"
    if test(museum_adapter):
        return "missed"
    return "partly" if test(_loud) or test(_thawed) else None


def _bytes(answer: float) -> str | None:
    right = BITS / 8 + SCALE / BLOCK
    near = {"bits": 8 * right, "scale": BITS / 8, "every": BITS / 8 + SCALE, "scale of 4": BITS / 8 + 4 / BLOCK,
            "double": NF4_BYTES}  # fmt: skip
    if math.isclose(answer, right, rel_tol=1e-3):
        return None
    return next((key for key, value in near.items() if math.isclose(answer, value, rel_tol=2e-3)), "far")


def _lines(answer: Any) -> str | None:
    chosen = set(answer)
    if chosen - set(ESTIMATE):
        return "letters"
    for letters, key in (("A", "base"), ("BC", "fp32"), ("E", "kept")):
        if chosen & set(letters):
            return key
    return next((key for letter, key in (("D", "states"), ("F", "chunk")) if letter not in chosen), None)


START = {"stage": "dpo", "seq": 4096, "method": "full", "checkpointing": False, "logits": "full"}  # of 02.6
_FIXED = ("model", "stage", "seq", "micro_batch", "dtype", "kernels", "attention", "autocast", "packing", "upcast")


def start(model: Architecture | None = None) -> Recipe:
    """Return the training of 02.6, which does not fit: all of 8B's weights by DPO, everything left plain."""
    return Recipe(model or llama3("8b"), **START)  # type: ignore[arg-type]


def _design(answer: Any) -> str | None:
    if set(answer) & set(_FIXED):
        return "moved"
    if set(answer) - {"method", "checkpointing", "logits", "reference", "optimizer", "lora_r", "lora_targets"}:
        return "names"
    made = replace(start(), **answer)
    if made.method != "full" and (made.lora_r < 16 or tuple(made.lora_targets) != EVERY_LINEAR):
        return "smaller"
    if made.method == "full":
        return "full"
    if not plan(made, find_gpu("24GB")).fits:
        return "second" if made.reference_kind == "second model" else "large"
    if made.method == "qlora":
        return "four bits"
    return None if made.optimizer == "adamw" else "optimizer"


EXERCISES = (
    Exercise(
        "02.1", "predict", "The adapters of the first paper", 1, 2, 4, 1, _count,
        {"layer": "That is one layer; every layer has its own.",
         "square": "v_proj is not square: few heads have keys and values.",
         "everything": "That is for all seven matrices of a layer; here two are asked for.",
         "whole": "Those are the frozen matrices themselves.",
         "one matrix": "That is q_proj alone.",
         "far": "For each matrix: rank times (inputs + outputs). Take shapes from `linear_shapes`."},
        "Rank 16 on all seven matrices, as most people take it today, trains twelve times as many.",
    ),
    Exercise(
        "02.2", "implement", "An adapter folded into its matrix", 1, 3, 6, 2, _merge,
        {"in place": "You change W itself. Whoever wants to switch the adapter off again cannot.",
         "shape": "The result must have W's shape, (outputs, inputs). In which order are A and B applied?",
         "scale": "You add B A as it is. What stands before it in the formula?",
         "alpha": "You multiply by alpha; the rank is missing.",
         "times": "You multiply by alpha and by the rank.",
         "inverse": "The scale is the other way round.",
         "sign": "The update is added.",
         "only the change": "That is what is added; W itself is missing.",
         "far": "W + (alpha / r) · B A, and r is the number of A's rows."},
        "Merged, an adapter costs nothing when the model is used; that is LoRA's advantage over added layers.",
    ),
    Exercise(
        "02.3", "diagnose", "An adapter that passes the first test", 2, 3, 10, 2, _sound,
        {"alarm": "Your test refuses an adapter that is right. Does it look at A or B, instead of at what they do?",
         "missed": "The museum piece passes. Take a training step: what has changed after it?",
         "partly": "The museum piece fails, but so should one that is loud at step 0, or whose W learns."},
        "One of two factors must be zero, and only one: the gradient of each is a multiple of the other.",
    ),
    Exercise(
        "02.4", "predict", "Another four bits", 1, 2, 3, 3, _bytes,
        {"bits": "That is bits; the question is for bytes.",
         "scale": "Each block also keeps a scale.",
         "every": "A scale serves a whole block, not one weight.",
         "scale of 4": "That would be scales in fp32; these are 16-bit.",
         "double": "That is NF4's figure, with 64 weights a block and its scales quantised once more.",
         "far": "Bits over eight, and a scale shared by a block."},
        "Smaller blocks follow the weights better, and their scales cost more: half a bit a weight here.",
    ),
    Exercise(
        "02.5", "diagnose", "An estimate with two wrong lines", 2, 3, 6, 4, _lines,
        {"letters": "Answer with letters of the list.",
         "base": "The frozen weights do lie on the card, in 16 bits.",
         "fp32": "PEFT makes adapters fp32, so they and their gradients take 4 bytes each.",
         "kept": "With checkpointing each layer keeps its input, 16-bit, of every token.",
         "states": "Which weights does the optimizer know?",
         "chunk": "What is the point of a chunked loss?"},
        "Both mistakes err on the safe side, and so they live long: they only make people rent larger cards.",
    ),
    Exercise(
        "02.6", "design", "DPO of 8B on 24 GB, at the least price", 3, 3, 12, 5, _design,
        {"moved": "Model, stage, length and batch are given; change how it is trained.",
         "names": "Use settings of `Recipe`: method, checkpointing, logits, reference, optimizer and the adapters'.",
         "smaller": "A smaller adapter is another training, and saves next to nothing here.",
         "full": "Weights, gradients and states of all weights alone are more than three such cards.",
         "second": "Two copies of the base lie on the card. Where else can the reference come from?",
         "large": "It does not fit yet. What grows with the tokens, and what bounds it?",
         "four bits": "It fits. But a base in 4 bits is slower and worse, and there is a way in 16.",
         "optimizer": "It fits. But is it the optimizer's states that were in the way?"},
        "The reference is free in memory: the same weights, with the adapters switched off.",
    ),
)  # fmt: skip
