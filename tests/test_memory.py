"""The planner: what lies still, what the peak is made of, what fits; counted, worked out by hand, and by its laws."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import fit_planner
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from llama3_lab.models import quiet
from llama3_lab.paper import activations, memory, weights
from llama3_lab.paper.advice import advice
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import GIB, find_gpu, find_model, model_names
from llama3_lab.paper.costs import costs, row_flops
from llama3_lab.paper.memory import fit, plan
from llama3_lab.paper.recipe import EVERY_LINEAR, Recipe, read_targets
from llama3_lab.pipeline.meters import Peak, kept_bytes, peak

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "memory" / "published_peaks.csv"
needs_rows = pytest.mark.skipif(not PUBLISHED.exists(), reason="the published peaks are not on this machine")
EIGHT = find_model("8b")[1]
SMALL = Architecture(3, 64, 160, 4, 2, 16, 256)


def built(recipe: Recipe):
    """A small Llama of the recipe's shape on the meta device, with PEFT's adapters where it has some."""
    from peft import LoraConfig, TaskType, get_peft_model

    m = recipe.model
    config = LlamaConfig(
        hidden_size=m.width, intermediate_size=m.ffn, num_hidden_layers=m.layers, num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads, head_dim=m.head_dim, vocab_size=m.vocabulary, num_labels=1)  # fmt: skip
    kind = LlamaForSequenceClassification if recipe.stage == "reward" else LlamaForCausalLM
    with torch.device("meta"), quiet():
        model = kind(config).to(torch.bfloat16)
        if recipe.method == "full":
            return model
        task = TaskType.SEQ_CLS if recipe.stage == "reward" else TaskType.CAUSAL_LM
        how = LoraConfig(r=recipe.lora_r, target_modules=list(recipe.adapted), task_type=task)
        return get_peft_model(model, how)


# -- what lies still


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("targets", ["q_proj,v_proj", "q,k,v,o", "all-linear"])
@pytest.mark.parametrize("name", ["8b", "1b", "llama-2-7b"])
def test_trained_parameters_are_pefts_to_the_unit(name, targets, stage):
    model = replace(find_model(name)[1], layers=2, tied=False)
    r = Recipe(model, stage, lora_r=8, lora_targets=read_targets(targets))
    assert weights.trained(r) == sum(p.numel() for p in built(r).parameters() if p.requires_grad)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_weights_are_those_of_a_real_model_in_bytes(stage):
    r = Recipe(SMALL, stage, "full")
    assert weights.base_bytes(r) == sum(p.numel() * p.element_size() for p in built(r).parameters())


def test_nf4_by_hand():
    # 64 weights: 32 bytes of 4 bits, 1 byte of scale, and 1/256 of 4 bytes for the scale of the scales
    assert weights.nf4_bytes(64) == 32 + 1 + 4 / 256
    r = Recipe(EIGHT, method="qlora")
    per_layer = 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
    rest = 2 * 128256 * 4096 + 65 * 4096
    assert weights.base_bytes(r) == pytest.approx(32 * per_layer * weights.NF4_BYTES + 2 * rest, rel=1e-3)


@pytest.mark.parametrize(("optimizer", "size"), [("adamw", 12), ("adamw_fused", 8), ("sgd", 0)])
def test_an_optimizers_states_are_those_that_it_makes(optimizer, size):
    r = Recipe(SMALL, method="full", dtype="fp32", optimizer=optimizer)
    assert weights.state_bytes(r) + weights.step_bytes(r) == size * SMALL.parameters()
    given = torch.nn.Parameter(torch.zeros(SMALL.parameters()))
    given.grad = torch.ones_like(given)
    steps = torch.optim.SGD([given], 0.1) if optimizer == "sgd" else torch.optim.AdamW([given], foreach=True)
    steps.step()
    kept = sum(t.numel() * t.element_size() for s in steps.state.values() for t in s.values() if t.numel() > 1)
    assert weights.state_bytes(r) == kept


def test_the_step_of_adamw_takes_one_more_tensor_for_each_weight():
    given = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(4)]
    optimizer = torch.optim.AdamW(given, foreach=True)
    for p in given:
        p.grad = torch.ones_like(p)
    optimizer.step()
    alive = [*given, *(p.grad for p in given), *(t for s in optimizer.state.values() for t in s.values())]
    with Peak(alive) as meter:
        optimizer.step()
    r = Recipe(SMALL, method="full", dtype="fp32")
    assert meter.most / 4000 == pytest.approx(weights.step_bytes(r) / SMALL.parameters(), rel=0.10)


# -- what moves


def test_attentions_cache_is_that_of_a_real_model():
    from transformers import DynamicCache

    config = LlamaConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, vocab_size=256)  # fmt: skip
    model, cache = LlamaForCausalLM(config).to(torch.bfloat16).eval(), DynamicCache(config=config)
    with torch.no_grad():
        model(input_ids=torch.zeros(2, 24, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    r = Recipe(SMALL, "sample", seq=24, micro_batch=2)
    assert activations.cache_bytes(r) / (1 + 1 / 3) == held  # without the layer that exists twice


def test_answers_to_one_prompt_can_share_its_cache():
    alone = Recipe(EIGHT, "sample", seq=1024, prompt=512, micro_batch=16, samples=16)
    shared = replace(alone, shared_prompt=True)
    assert activations.cache_bytes(shared) / activations.cache_bytes(alone) == (512 + 16 * 512) / (16 * 1024)


class Chunked(torch.autograd.Function):
    """The loss of a frozen output layer, a few rows' logits at a time; the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, table, rows):
        grad = torch.zeros_like(hidden)
        for at in range(0, len(hidden), rows):
            logits = (hidden[at : at + rows] @ table.T).float()
            logits.exp_()  # a kernel writes the gradient over the logits
            grad[at : at + rows] = logits.to(hidden.dtype) @ table
            del logits
        ctx.save_for_backward(grad)
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return ctx.saved_tensors[0], None, None


def test_chunked_logits_are_a_few_rows_at_a_time():
    d, v, t = 256, 8192, 1024
    r = Recipe(Architecture(1, d, 512, 4, 4, 64, v), seq=t)
    hidden = torch.zeros(t, d, dtype=torch.bfloat16, requires_grad=True)
    table = torch.zeros(v, d, dtype=torch.bfloat16)
    with Peak([hidden, table]) as meter:
        Chunked.apply(hidden, table, activations.chunk_rows(t, v, d))
    assert activations.logits(r) == pytest.approx(meter.most, rel=0.10)
    assert activations.logits(r) < activations.logits(replace(r, logits="full")) / 10


@pytest.mark.parametrize("vocabulary", [512, 4096])
def test_dpos_reference_runs_while_the_policys_tensors_wait(vocabulary):
    from test_memory_activations import build, planned_peak, recipe

    def logps(model, ids):
        logits = model(input_ids=ids).logits
        return logits.float().log_softmax(-1).gather(2, ids.unsqueeze(2))[..., 0].sum(1)

    r = recipe("grouped heads", stage="dpo", logits="full", checkpointing=False, micro_batch=1)
    r = replace(r, model=replace(r.model, vocabulary=vocabulary))
    model, ids = build(r, "like-a-gpu"), torch.zeros(r.rows, r.seq, dtype=torch.long)
    with peak(model) as meter:
        with torch.autocast("cpu", torch.bfloat16):
            policy = logps(model, ids)
            with torch.no_grad(), model.disable_adapter():
                reference = logps(model, ids)
        chosen, rejected = (policy - reference).chunk(2)
        (-torch.nn.functional.logsigmoid(chosen - rejected).mean()).backward()
    assert plan(r).phase == "reference"
    assert planned_peak(r) == pytest.approx(meter.most, rel=0.10)
    assert planned_peak(replace(r, reference="precomputed")) < planned_peak(r)


def test_the_meter_counts_by_hand():
    layer = torch.nn.Linear(10, 10, bias=False)
    x = torch.zeros(5, 10)
    assert kept_bytes(layer, lambda: layer(x).exp().sum()) == 4 * (50 + 50)  # the input, and exp's result
    with peak(layer) as meter:
        y = x + 1
        z = y + 1
        del y, z
    assert (meter.most, meter.now) == (400, 0)


# -- the published rows


@needs_rows
def test_the_published_peaks_are_met():
    errors = [abs(r.error) for r in fit_planner.read(PUBLISHED)]
    assert len(errors) == 15
    assert sum(errors) / len(errors) <= 0.03
    assert max(errors) <= 0.08


@needs_rows
def test_what_is_allocated_between_steps_is_met():
    for r in fit_planner.read(PUBLISHED):
        assert r.plan.static / GIB == pytest.approx(r.static, rel=0.001), r.name


@needs_rows
def test_the_margins_constants_are_what_the_script_finds(capsys):
    blocks, logits = fit_planner.shares(fit_planner.read(PUBLISHED))
    assert (round(blocks, 2), round(logits, 2)) == (memory.FRAGMENTS, memory.FRAGMENTS_LOGITS)
    assert fit_planner.main([str(PUBLISHED)]) == 0
    assert f"FRAGMENTS = {memory.FRAGMENTS} " in capsys.readouterr().out


def test_the_script_finds_constants_that_were_put_in():
    made = []
    for micro_batch in (1, 2, 4, 8):
        for logits in ("full", "chunked"):
            p = plan(Recipe(EIGHT, micro_batch=micro_batch, logits=logits), find_gpu("H200"))
            above = memory.CONTEXT_GIB + (0.3 * p.most["activations"] + 0.7 * p.most["logits"]) / GIB
            made.append(fit_planner.Measured("made", p, p.peak / GIB, 0.0, p.peak / GIB + above))
    assert fit_planner.shares(made) == pytest.approx((0.3, 0.7), rel=0.01)


def test_a_row_that_cannot_be_planned_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("model,method\n8b,full\n")
    with pytest.raises(ValueError, match="line 2"):
        fit_planner.read(path)


# -- laws

recipes = st.builds(
    Recipe, st.sampled_from([EIGHT, SMALL, *(find_model(n)[1] for n in ("1b", "qwen2.5-7b", "llama-2-7b"))]),
    st.sampled_from(["sft", "reward", "dpo", "guard", "sample"]), st.sampled_from(["full", "lora", "qlora"]),
    st.integers(1, 8192), st.integers(1, 32), lora_r=st.integers(1, 128),
    lora_targets=st.sets(st.sampled_from(EVERY_LINEAR), min_size=1).map(tuple), checkpointing=st.booleans(),
    logits=st.sampled_from(["full", "chunked"]), optimizer=st.sampled_from(["adamw", "adamw_8bit", "sgd"]),
    kernels=st.sampled_from(["auto", "fused", "plain"]), attention=st.sampled_from(["flash", "eager"]),
    lora_dropout=st.sampled_from([0.0, 0.05]), packing=st.booleans())  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(recipes, st.sampled_from(["seq", "micro_batch", "lora_r"]), st.integers(1, 4096))
def test_more_of_anything_takes_no_less(recipe, name, more):
    larger = plan(replace(recipe, **{name: getattr(recipe, name) + more}))
    smaller = plan(recipe)
    assert larger.peak >= smaller.peak * (1 - 1e-12)
    assert larger.reserved >= smaller.reserved * (1 - 1e-12)
    assert larger.static >= smaller.static


@settings(max_examples=100, deadline=None)
@given(recipes, st.sampled_from(["layers", "width", "ffn"]), st.integers(1, 8))
def test_a_larger_model_takes_no_less(recipe, name, times):
    model = replace(recipe.model, **{name: getattr(recipe.model, name) * (times + 1)})
    assert plan(replace(recipe, model=model)).peak >= plan(recipe).peak


@settings(max_examples=100, deadline=None)
@given(recipes)
def test_parts_add_up_and_the_margin_is_on_top(recipe):
    p = plan(recipe)
    assert p.peak == pytest.approx(max(p.phases.values()))
    assert all(amount > 0 for amount in p.parts.values()) and set(p.parts) <= set(memory.PARTS)
    assert p.reserved > p.peak >= p.static * (1 - 1e-12)
    if recipe.trains:
        assert p.peak <= plan(replace(recipe, logits="full")).peak * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(recipes, st.sampled_from(["T4", "24GB", "H100", "H200"]))
def test_what_fit_finds_fits_and_one_more_does_not(recipe, card):
    gpu = find_gpu(card)
    batch, length = fit(recipe, gpu)
    if batch:
        assert batch.fits
        assert not plan(replace(recipe, micro_batch=batch.recipe.micro_batch + 1), gpu).fits or (
            batch.recipe.micro_batch == 65_536)  # fmt: skip
    else:
        assert not plan(replace(recipe, micro_batch=1), gpu).fits
    if length:
        assert length.fits


@settings(max_examples=60, deadline=None)
@given(recipes, st.sampled_from(["T4", "24GB", "H100"]))
def test_advice_ends_in_a_plan_that_fits_or_says_that_none_does(recipe, card):
    gpu = find_gpu(card)
    changes = advice(recipe, gpu)
    assert bool(changes) <= (not plan(recipe, gpu).fits)
    peaks = [plan(recipe, gpu).peak, *(c.plan.peak for c in changes)]
    assert all(after <= before * (1 + 1e-9) for before, after in zip(peaks, peaks[1:], strict=False))
    assert not any(c.plan.fits for c in changes[:-1]), "a change too many"


# -- what a reader can check by hand


def test_full_fine_tuning_of_8b_takes_ten_bytes_a_weight():
    p = plan(Recipe(EIGHT, method="full"), find_gpu("H100"))
    assert p.phase == "optimizer step"
    assert p.peak - p.parts["workspace"] == 10 * EIGHT.parameters()


def test_8b_trains_on_24_gb_with_lora_and_not_in_full():
    card = find_gpu("24GB")
    assert plan(Recipe(EIGHT), card).fits
    assert plan(Recipe(EIGHT, method="qlora", micro_batch=4), card).fits
    assert not plan(Recipe(EIGHT, method="full", optimizer="sgd"), card).fits


def test_a_second_model_is_there_all_the_time():
    own, second = (plan(Recipe(EIGHT, "dpo", reference=kind)) for kind in ("adapter off", "second model"))
    assert second.static - own.static == weights.base_bytes(second.recipe)


def test_costs_are_a_range_and_grow_with_the_rows():
    r, card = Recipe(EIGHT), find_gpu("A100-80GB")
    one, ten = costs(r, card, 100), costs(r, card, 1000)
    assert 0 < one.hours[0] < one.hours[1] and 0 < one.usd[0] < one.usd[1]
    assert ten.flops == pytest.approx(10 * one.flops)
    assert costs(r, find_gpu("24GB"), 100) is None
    again, once = (row_flops(Recipe(EIGHT, method="full", checkpointing=c)) for c in (True, False))
    assert again / once == 4 / 3
    slow, quick = (costs(Recipe(EIGHT, "sample", seq=512, micro_batch=b), card, 64).hours[0] for b in (1, 64))
    assert slow > 5 * quick, "one answer at a time reads the weights for each of its tokens"


@needs_rows
def test_the_published_speeds_lie_in_the_range():
    with PUBLISHED.open(newline="") as file:
        for row in csv.DictReader(file):
            r = fit_planner.recipe_of(row)
            hours = float(1 / float(row["tok_s"]) * r.seq * 1000 / 3600)
            low, high = costs(r, find_gpu(row["gpu"]), 1000).hours
            assert low <= hours <= high


@pytest.mark.parametrize(
    "name", ["llama-3-8b", "meta-llama/Llama-3.1-70B-Instruct", "405b", "meta-llama/Llama-3.2-1B", "3b",
             "mistralai/Mistral-7B-v0.1", "Qwen/Qwen2.5-7B-Instruct", "Llama-2-7b-hf"],
)  # fmt: skip
def test_models_are_known_by_name(name):
    assert plan(Recipe(find_model(name)[1])).peak > 0
    assert len(model_names()) >= 14


def test_it_needs_no_torch():
    import subprocess

    code = ("import sys; from llama3_lab.paper import memory, advice, costs, catalogue; "
            "print(sorted({'torch', 'numpy', 'scipy', 'transformers'} & set(sys.modules)))")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
