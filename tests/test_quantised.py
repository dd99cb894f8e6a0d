"""int8: a guard in less than three fifths of the bytes that still says the same, beside an untouched original."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llama3_lab.profiles import TINY
from llama3_lab.safety.guard import Guard, load_guard, score
from llama3_lab.safety.guard_training import draw_examples
from llama3_lab.safety.quantised import quantised, size_of, speed_ratio
from llama3_lab.safety.taxonomy import TOY
from llama3_lab.world import hazards

FOLDER = Path(__file__).parents[1] / "data" / "tiny_guard"
KNOWN = tuple(f for f in hazards.FAMILIES if f != TINY.safety.held_out)


@pytest.fixture(scope="module")
def guard() -> Guard:
    return load_guard(FOLDER, replace(TINY.model, threads=1), TOY)


@pytest.fixture(scope="module")
def small(guard: Guard) -> Guard:
    return quantised(guard)


@pytest.fixture(scope="module")
def examples():
    return draw_examples(200, "validation", 5, KNOWN)


def test_it_is_at_least_two_fifths_smaller(guard: Guard, small: Guard) -> None:
    assert size_of(small) <= 0.6 * size_of(guard)
    parameters = sum(p.numel() * p.element_size() for p in guard.model.parameters())
    assert size_of(guard) >= 0.9 * parameters, "the float32 weights are counted, not a part of them"
    assert size_of(small) >= parameters / 4, "an int8 weight still takes a byte"


def test_every_linear_layer_is_int8_and_the_embedding_is_not(guard: Guard, small: Guard) -> None:
    linear = [name for name, m in guard.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) > 7
    modules = dict(small.model.named_modules())
    assert all(modules[name].weight().dtype == torch.qint8 for name in linear)
    assert not [m for m in modules.values() if type(m) is torch.nn.Linear]
    assert small.model.get_input_embeddings().weight.dtype == torch.float32


def test_scores_agree_with_the_full_guards(guard: Guard, small: Guard, examples) -> None:
    turns = [e.turns for e in examples]
    full, int8 = np.array(score(guard, turns)), np.array(score(small, turns))
    assert ((int8 >= 0) & (int8 <= 1)).all()
    assert np.corrcoef(full, int8)[0, 1] > 0.9
    assert ((full >= guard.threshold) == (int8 >= small.threshold)).mean() >= 0.9
    assert not np.array_equal(full, int8), "rounded weights cannot give the very same scores"


def test_the_original_stays_as_it_is(guard: Guard, examples) -> None:
    turns = [e.turns for e in examples[:20]]
    weights = {k: v.clone() for k, v in guard.model.state_dict().items()}
    before = score(guard, turns)
    made = quantised(guard)
    assert made.model is not guard.model and not made.model.training
    assert guard.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in guard.model.state_dict().items())
    assert score(guard, turns) == before
    assert (made.known, made.threshold, made.name) == (guard.known, guard.threshold, f"{guard.name}-int8")
    assert made.tokenizer is guard.tokenizer


def test_the_threshold_goes_with_the_copy(guard: Guard) -> None:
    assert quantised(replace(guard, threshold=0.9)).threshold == 0.9


def test_speed_is_a_ratio_of_paired_times(guard: Guard, small: Guard, examples) -> None:
    turns = [e.turns for e in examples[:6]]
    ratio = speed_ratio(guard, small, turns, repeats=3)
    assert math.isfinite(ratio) and ratio > 0
    assert 0.2 < speed_ratio(guard, guard, turns, repeats=5) < 5, "a guard is as fast as itself"
