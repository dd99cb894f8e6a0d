"""The planner's choice for a card: it fits, the next does not, and what is added is counted by hand and by PEFT."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from llama3_lab import placement
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import GIB, Gpu, find_gpu, find_model
from llama3_lab.paper.memory import plan
from llama3_lab.placement import as_text, card_of, needed_gib, place, recipe_for, settle, stage_plan, with_whole
from llama3_lab.profiles import EIGHT_B, ONE_B, PROFILES, TINY, override

EIGHT, ONE = find_model("8b")[1], find_model("1b")[1]
SMALL = Architecture(layers=3, width=64, ffn=160, heads=4, kv_heads=2, head_dim=16, vocabulary=256)
CARDS = ["H200", "A100-80GB", "A100-40GB", "RTX 4090", "L4", "20GB"]


def whole(profile, on: bool = True):
    """The profile with embedding and output layer trained in full, or not."""
    text = str(on).lower()
    return override(override(profile, f"sft.embeddings={text}"), f"reward.embeddings={text}")


def at(placed, stage):
    return next(p for p in placed.stages if p.stage == stage)


@pytest.mark.parametrize(("card", "full"), [*((c, False) for c in CARDS), *((c, True) for c in [*CARDS[:3], "28GB"])])
def test_every_choice_fits_and_the_next_micro_batch_would_not(card, full):
    profile, gpu = whole(EIGHT_B, full), find_gpu(card)
    placed = place(profile, gpu, EIGHT)
    assert [p.stage for p in placed.stages] == ["sft", "reward", "dpo", "sample"]
    for p in placed.stages:
        assert p.plan.fits and p.batch % p.micro_batch == 0
        assert p.stage == "sample" or p.method == placed.method
        assert f"{needed_gib(p.plan):.1f} of {gpu.gib:.1f} GiB" in p.reason
        assert "\n" not in p.reason
        if p.micro_batch < p.batch:
            recipe = recipe_for(profile, p.stage, EIGHT, p.method, 2 * p.micro_batch, p.seq)
            larger = stage_plan(profile, recipe, gpu, p.batch)
            assert not larger.fits
            assert f"{2 * p.micro_batch} would need {needed_gib(larger):.1f}" in p.reason


def test_lora_where_every_stage_fits_at_full_length_else_qlora_and_it_says_why():
    assert place(whole(EIGHT_B), find_gpu("40GB"), EIGHT).method == "lora"
    placed = place(whole(EIGHT_B), find_gpu("28GB"), EIGHT)
    assert placed.method == "qlora"
    first = stage_plan(whole(EIGHT_B), recipe_for(whole(EIGHT_B), "sft", EIGHT, "lora", 1, 1024), find_gpu("28GB"), 32)
    assert not first.fits
    assert placed.reason == f"qlora: with 16-bit weights 1 row of 1,024 tokens in sft needs {needed_gib(first):.1f} GiB"
    assert place(whole(EIGHT_B, False), find_gpu("24GB"), EIGHT).method == "lora", "the whole modules made it too large"


def test_the_longer_a_row_the_fewer_fit():
    found = [at(place(override(EIGHT_B, f"sft.max_length={n}"), find_gpu("24GB"), EIGHT), "sft").micro_batch
             for n in (512, 1024, 2048, 4096)]  # fmt: skip
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_rows_are_shortened_only_where_not_one_fits_and_to_the_longest_that_does():
    profile = override(override(EIGHT_B, "sft.max_length=16384"), "model.method=lora")
    gpu = find_gpu("20GB")
    p = at(place(profile, gpu, EIGHT), "sft")
    assert p.micro_batch == 1 and p.seq % 64 == 0 and 256 <= p.seq < 16384
    longer = recipe_for(profile, "sft", EIGHT, "lora", 1, p.seq + 64)
    assert not stage_plan(profile, longer, gpu, p.batch).fits
    assert "rows shortened from 16,384 tokens" in p.reason
    assert settle(profile, place(profile, gpu, EIGHT)).sft.fit.max_length == p.seq
    assert "shortened" not in as_text(place(EIGHT_B, gpu, EIGHT))


def test_what_a_person_sets_stays_and_is_said():
    profile = override(override(EIGHT_B, "model.method=qlora"), "sft.micro_batch=2")
    placed = place(profile, find_gpu("H200"), EIGHT)
    assert placed.method == "qlora" and "model.method says" in placed.reason
    sft = at(placed, "sft")
    assert sft.micro_batch == 2 and sft.reason.endswith("sft.fit.micro_batch is set")
    assert at(placed, "reward").micro_batch == 32


@pytest.mark.parametrize(
    ("card", "settings", "words"),
    [("24GB", ["sft.micro_batch=32"], "sft.fit.micro_batch is 32; 32 rows of 1,024 tokens need"),
     ("24GB", ["reward.micro_batch=5"], "must divide the batch on this card, 32: use one of 1, 2, 4, 8, 16, 32"),
     ("24GB", ["model.method=full"], "model.method is 'full'; use auto, lora or qlora"),
     ("10GB", ["model.method=lora"], "--set model.method=qlora"),
     ("12GB", [], "a server (--set sampling.by=server)"),
     ("4GB", [], "--set model.path=meta-llama/Llama-3.2-1B), or a larger GPU"),
     ("7GB", ["sft.embeddings=true"], "--set sft.embeddings=false")],
)  # fmt: skip
def test_what_cannot_be_is_one_line_with_a_way_out(card, settings, words):
    profile = EIGHT_B
    for setting in settings:
        profile = override(profile, setting)
    with pytest.raises(ValueError) as error:
        place(profile, find_gpu(card), EIGHT)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_fit_names_both_sizes():
    with pytest.raises(ValueError, match=r"sft does not fit on 4 GB: qlora with 1 row .* needs [\d.]+ of 3\.9 GiB"):
        place(EIGHT_B, find_gpu("4GB"), EIGHT)
    with pytest.raises(ValueError) as error:
        place(ONE_B, find_gpu("2GB"), ONE)
    assert "smaller model" not in str(error.value), "it is the smallest already"


def test_a_profile_for_a_cpu_has_nothing_to_place():
    with pytest.raises(ValueError, match="profile tiny runs on a CPU; nothing to place"):
        place(TINY, find_gpu("24GB"), SMALL)


def test_processes_share_a_batch_evenly():
    assert at(place(EIGHT_B, find_gpu("H200"), EIGHT, 4), "sft").batch == 8
    with pytest.raises(ValueError, match="3 processes cannot share it evenly"):
        place(EIGHT_B, find_gpu("H200"), EIGHT, 3)


def test_a_server_samples_on_another_card():
    profile = override(EIGHT_B, "sampling.by=server")
    placed = place(profile, find_gpu("12GB"), EIGHT)
    assert [p.stage for p in placed.stages] == ["sft", "reward", "dpo"] and placed.method == "qlora"
    assert settle(profile, placed).sampling == profile.sampling


def test_settling_fills_in_the_choices_and_nothing_else():
    placed = place(EIGHT_B, find_gpu("24GB"), EIGHT)
    done = settle(EIGHT_B, placed)
    assert done.model.method == "lora"
    for stage in ("sft", "reward", "dpo"):
        fit, p = getattr(done, stage).fit, at(placed, stage)
        assert (fit.micro_batch, fit.max_length) == (p.micro_batch, p.seq)
        assert fit.per_device_train_batch_size == 32
    assert done.sampling.batch_prompts == at(placed, "sample").micro_batch
    again = place(done, find_gpu("24GB"), EIGHT)
    assert settle(done, again) == done, "what is settled is found again"
    unchanged = replace(done, model=EIGHT_B.model, sft=EIGHT_B.sft, reward=EIGHT_B.reward, dpo=EIGHT_B.dpo,
                        sampling=EIGHT_B.sampling)  # fmt: skip
    assert unchanged == EIGHT_B


@pytest.mark.parametrize("accumulates", [True, False])
def test_whole_modules_at_8b_by_hand(accumulates):
    table = 128_256 * 4_096
    assert placement.whole_modules(whole(EIGHT_B), "sft", EIGHT) == (table, table)
    assert placement.whole_modules(whole(EIGHT_B), "reward", EIGHT) == (table, 0)
    assert placement.whole_modules(whole(EIGHT_B, False), "sft", EIGHT) == (0, 0)
    assert placement.whole_modules(whole(EIGHT_B), "dpo", EIGHT) == (0, 0)
    base = plan(recipe_for(EIGHT_B, "sft", EIGHT, "qlora", 1, 1024), find_gpu("24GB"))
    more = with_whole(base, table, table, accumulates)
    grown = {phase: more.phases[phase] - base.phases[phase] for phase in base.phases}
    # fp32: copy 4 + gradient 4 + states 8 + AdamW's roots 4 bytes a weight of both tables: 21 GB in the step
    assert grown["optimizer step"] == pytest.approx(20 * 2 * table) == pytest.approx(21_013_463_040)
    # copy and states stay; the output layer's gradient is there from the loss on, the embedding's only at the end
    assert more.static - base.static == 12 * 2 * table
    own = 4 * 41_943_040 if accumulates else 0  # the adapters' gradients wait as well
    assert grown["last layer"] == pytest.approx(24 * table + (8 if accumulates else 4) * table + own)
    assert grown["logits"] == pytest.approx(24 * table + (8 * table if accumulates else 0) + (4 + 2) * table + own)
    assert grown["embedding"] == pytest.approx(24 * table + 8 * table + (4 * table if accumulates else 0))
    assert sum(more.parts.values()) == pytest.approx(max(more.phases.values())) == pytest.approx(more.peak)
    assert more.parts["whole modules"] == pytest.approx(more.peak - base.peak)
    assert more.reserved - more.peak == pytest.approx(base.reserved - base.peak)


def peft_model(stage: str, tied: bool):
    """A small Llama in bf16 with the adapters and whole modules of a stage, as training.py asks PEFT for them."""
    import torch
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from llama3_lab.models import lora_config
    from llama3_lab.pipeline.training import EMBEDDINGS, REWARD_MODULES_TO_SAVE

    m = replace(SMALL, tied=tied)
    config = LlamaConfig(
        hidden_size=m.width, intermediate_size=m.ffn, num_hidden_layers=m.layers, num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads, vocab_size=m.vocabulary, tie_word_embeddings=tied, num_labels=1,
    )  # fmt: skip
    if stage == "sft":
        model, how = LlamaForCausalLM(config), lora_config(EIGHT_B.sft.lora, "CAUSAL_LM", EMBEDDINGS)
    else:
        model = LlamaForSequenceClassification(config)
        how = lora_config(EIGHT_B.reward.lora, "SEQ_CLS", REWARD_MODULES_TO_SAVE)
    return get_peft_model(model.to(torch.bfloat16), how)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_peft_trains_the_weights_that_are_counted_and_in_these_types(tied, stage):
    import torch

    from llama3_lab.paper import weights

    trained = {n: p for n, p in peft_model(stage, tied).named_parameters() if p.requires_grad}
    recipe = recipe_for(whole(EIGHT_B), stage, replace(SMALL, tied=tied), "lora", 1, 64)
    full = sum(placement.whole_modules(whole(EIGHT_B), stage, SMALL))
    assert sum(p.numel() for p in trained.values()) == weights.trained(recipe) + full
    adapters = [p for n, p in trained.items() if "lora_" in n]
    modules = [p for n, p in trained.items() if "modules_to_save" in n and "score" not in n]
    assert {p.dtype for p in adapters} == {torch.float32} and recipe.adapter_size == 4
    assert {p.dtype for p in modules} == {torch.bfloat16} and sum(p.numel() for p in modules) == full
    assert len({p.data_ptr() for p in modules}) == len(modules), "two copies, tied or not"


def test_an_optimizer_keeps_what_is_counted_for_whole_modules():
    import torch

    modules = [p for n, p in peft_model("sft", False).named_parameters() if "modules_to_save" in n and p.requires_grad]
    for p in modules:
        p.data = p.data.float()  # as training.py does: PEFT leaves them in the base's type
    optimizer = torch.optim.AdamW(modules)
    for p in modules:
        p.grad = torch.ones_like(p)
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if v.dim() > 0]
    n = 2 * SMALL.vocabulary * SMALL.width
    assert sum(p.numel() * p.element_size() for p in modules) == 4 * n
    assert sum(p.grad.numel() * p.grad.element_size() for p in modules) == 4 * n
    assert sum(v.numel() * v.element_size() for v in states) == 8 * n


def test_tied_weights_are_untied_by_an_sft_that_trains_both():
    profile = whole(ONE_B)
    assert ONE.tied and not placement.architecture_for(profile, "dpo", ONE).tied
    assert placement.architecture_for(profile, "reward", ONE).tied, "a reward model is trained on the base"
    assert placement.architecture_for(whole(ONE_B, False), "dpo", ONE).tied
    table = ONE.vocabulary * ONE.width
    tied, untied = (plan(recipe_for(p, "sample", ONE, "lora", 1, 1024)) for p in (whole(ONE_B, False), profile))
    assert untied.parts["weights"] - tied.parts["weights"] == 2 * table


def test_a_prompt_is_read_once_for_all_its_answers():
    recipe = recipe_for(EIGHT_B, "sample", EIGHT, "lora", 8, 1024)
    assert (recipe.rows, recipe.samples, recipe.prompt) == (80, 10, 512)
    gpu = find_gpu("80GB")
    alone = stage_plan(EIGHT_B, replace(recipe, micro_batch=8, samples=1), gpu, 8)
    shared, planned = stage_plan(EIGHT_B, recipe, gpu, 8), plan(recipe, gpu)
    assert shared.phases["reading the prompt"] < planned.phases["reading the prompt"]
    assert shared.phases["writing"] == planned.phases["writing"]
    # 8 prompts read, then 80 answers written: beside weights and workspace, the passes are those of 8 rows
    apart = shared.phases["reading the prompt"] - plan(recipe, gpu).parts["kv cache"] - shared.parts["logits"]
    assert apart == pytest.approx(alone.phases["reading the prompt"] - alone.parts["kv cache"] - alone.parts["logits"])
    assert sum(shared.parts.values()) == pytest.approx(max(shared.phases.values()))


def test_the_recipe_is_that_of_training():
    recipe = recipe_for(EIGHT_B, "dpo", EIGHT, "lora", 4, 1024)
    assert (recipe.lora_r, recipe.lora_dropout, recipe.packing, recipe.checkpointing) == (16, 0.0, False, True)
    assert (recipe.reference, recipe.logits, recipe.optimizer) == ("precomputed", "chunked", "adamw")
    assert not recipe.fused
    assert recipe_for(EIGHT_B, "sft", EIGHT, "qlora", 4, 1024).adapter_dtype == "fp32", "over 4 bits too"
    eager = override(EIGHT_B, "model.attention=eager")
    assert recipe_for(eager, "sft", EIGHT, "lora", 4, 1024).attention == "eager"


@pytest.mark.parametrize(
    ("name", "known"),
    [("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
     ("Tesla T4", "T4"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA H100 80GB HBM3", "H100"),
     ("NVIDIA H100 PCIe", "H100-PCIe"), ("Tesla V100-SXM2-16GB", "V100-16GB"), ("NVIDIA L40S", "L40S"),
     ("NVIDIA RTX A6000", "RTX A6000"), ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("NVIDIA A10G", "A10G"),
     ("NVIDIA L4", "L4")],
)  # fmt: skip
def test_cuda_s_names_are_known_and_the_memory_is_the_device_s(name, known):
    card = card_of(name, 7 * GIB)
    assert card.name == known and card.tflops > 0 and card.gib == 7.0
    assert card.bf16 == find_gpu(known).bf16


def test_a_card_that_no_catalogue_has_has_no_speed():
    for name in ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Voodoo 2"):
        assert card_of(name, 16 * GIB) == Gpu(name, 16.0)
    assert card_of(None, 16 * GIB) == card_of("", 16 * GIB) == Gpu("GPU of 16.0 GiB", 16.0)
    with pytest.raises(ValueError, match="more than 0"):
        card_of("NVIDIA H200", 0)


def test_trainings_of_a_run_are_counted():
    assert placement.trainings(EIGHT_B) == {"sft": 8, "reward": 3, "dpo": 3}  # first, sibling, 3 rounds of two
    assert placement.trainings(override(EIGHT_B, "evaluation.control=false"))["sft"] == 5
    assert placement.trainings(override(EIGHT_B, "order=field_report"))["sft"] == 2
    assert placement.trainings(override(EIGHT_B, "dpo.runs=2"))["dpo"] == 6


def test_the_text_is_a_line_a_stage_and_always_the_same():
    placed = place(EIGHT_B, find_gpu("24GB"), EIGHT)
    lines = as_text(placed).splitlines()
    assert lines[0] == "meta-llama/Llama-3.1-8B on 24 GB (23.5 GiB): lora: every stage fits with 16-bit weights"
    assert [line[:10] for line in lines[1:]] == ["  sft     ", "  reward  ", "  dpo     ", "  sample  "]
    assert as_text(placed) == as_text(place(EIGHT_B, find_gpu("24GB"), EIGHT))
    assert "bf16" in as_text(place(ONE_B, find_gpu("T4"), ONE)), "a card without bfloat16 is said"


@pytest.mark.parametrize("name", ["1b", "8b"])
def test_the_profiles_as_they_are_fit_on_24_gb(name):
    profile = PROFILES[name]
    placed = place(profile, find_gpu("24GB"), find_model(profile.model.path)[1])
    assert all(p.seq >= getattr(profile, p.stage).fit.max_length for p in placed.stages if p.stage != "sample")


def test_no_torch_is_imported():
    code = ("import sys; import llama3_lab.placement; "
            "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
