"""Figures and exercises of the lesson on 8B: figure, text twin, planner and placement tell the same facts."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
import torch

from llama3_lab.course import views
from llama3_lab.course.exercises import eight_billion as exercises
from llama3_lab.course.figures import eight_billion as figures
from llama3_lab.models import encode_prompt, load_policy
from llama3_lab.paper.architecture import llama3
from llama3_lab.paper.catalogue import GIB, find_gpu, find_model
from llama3_lab.paper.gpu_runs import published
from llama3_lab.paper.memory import PARTS, plan
from llama3_lab.pipeline.training import train_sft
from llama3_lab.placement import needed_gib, place, trainings
from llama3_lab.profiles import EIGHT_B, ONE_B, Lora, override
from llama3_lab.records import Check, Demonstration, Prompt
from llama3_lab.shrunken import make_shrunken

EIGHT = llama3("8b")
ONE = find_model("llama-3.2-1b")[1]
PLACED = {"8B, a card of 24 GB": place(EIGHT_B, find_gpu("24GB"), EIGHT),
          "1B, a card of 12 GB": place(ONE_B, find_gpu("12GB"), ONE)}  # fmt: skip
ROWS = published()
FIGURES = {"stages": lambda: figures.figure_stages(PLACED), "published": lambda: figures.figure_published(ROWS)}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_has_its_twin(name):
    figure = FIGURES[name]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(views.describe(figure).splitlines()) >= 3


# -- stages on a card


def test_every_part_that_a_plan_may_have_belongs_to_one_group():
    parts = [part for group, _, _ in figures.GROUPS.values() for part in group]
    assert sorted(parts) == sorted([*PARTS, "whole modules"])
    assert len({(color, hatch) for _, color, hatch in figures.GROUPS.values()}) == len(figures.GROUPS)


@pytest.mark.parametrize("profile", [EIGHT_B, override(override(EIGHT_B, "sft.embeddings=true"), "model.method=qlora")])
def test_groups_add_up_to_what_must_be_on_the_card(profile):
    for stage in place(profile, find_gpu("80GB"), EIGHT).stages:
        assert sum(figures.grouped(stage.plan).values()) == pytest.approx(needed_gib(stage.plan))


def test_bars_end_where_the_stage_needs_and_the_line_is_the_card():
    figure = FIGURES["stages"]()
    for ax, placed in zip(figure.axes, PLACED.values(), strict=True):
        for i, stage in enumerate(placed.stages):
            assert sum(box[i].get_width() for box in ax.containers) == pytest.approx(needed_gib(stage.plan))
        assert [label.get_text() for label in ax.get_yticklabels()] == [s.stage for s in placed.stages]
        assert list(ax.lines[0].get_xdata()) == [placed.gpu.gib] * 2
    looks = {(box[0].get_facecolor(), box[0].get_hatch()) for box in figure.axes[0].containers}
    assert len({hatch for _, hatch in looks}) == len(figures.GROUPS), "colour alone"


def test_the_twin_of_stages_has_what_the_bars_have():
    lines = [line for line in figures.describe_stages(PLACED).splitlines() if line.startswith("- ")]
    stages = [s for p in PLACED.values() for s in p.stages]
    for line, stage in zip(lines, stages, strict=True):
        assert line.startswith(f"- {stage.stage}, {stage.micro_batch} ")
        assert f": {needed_gib(stage.plan):.1f} ({stage.plan.phase});" in line
        sizes = [float(x) for x in re.findall(r" ([\d.]+)(?=[,;])", line.split(";")[1] + ";")]
        assert sum(sizes) == pytest.approx(needed_gib(stage.plan), abs=0.04)
    assert ("kv cache" in lines[3]) and "kv cache" not in lines[0]


# -- published peaks


def test_published_rows_are_planned_on_their_own_conditions():
    known = figures.planned_of(ROWS)
    assert len(known) == sum(p.recipe is not None for p in ROWS) < len(ROWS)
    for p, size in known:
        assert size == plan(p.recipe, find_gpu(p.gpu)).peak / GIB
        line = next(x for x in figures.describe_published(ROWS).splitlines() if p.what in x)
        percent = re.search(rf": {p.gib:g}, planned {size:.1f}, ([+-]?\d+\.\d)%", line)[1]
        assert float(percent) == pytest.approx(100 * (size / p.gib - 1), abs=0.051)


def test_an_error_is_above_zero_where_the_plan_is_too_high_and_never_minus_zero():
    p = replace(ROWS[0], gib=20.0)
    assert [figures.error(p, size) for size in (22.0, 19.0, 19.999)] == ["+10.0%", "-5.0%", "0.0%"]


def test_a_row_without_conditions_is_told_and_not_drawn():
    figure = FIGURES["published"]()
    drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert drawn == [p.what for p in ROWS if p.recipe]
    assert [bar.get_width() for bar in figure.axes[0].containers[0]] == [p.gib for p in ROWS if p.recipe]
    for p in ROWS:
        assert (f"{p.what}: {p.gib:g}, not planned" in figure.twin) is (p.recipe is None)


def test_a_speed_is_rows_of_tokens_over_hours():
    p = next(p for p in ROWS if p.recipe and p.tokens_per_second[0])
    low, high = figures.speeds(p)
    assert low < p.tokens_per_second[0] < p.tokens_per_second[1] < high, "the planner's range should hold it"
    twice = figures.speeds(replace(p, recipe=replace(p.recipe, micro_batch=2 * p.recipe.micro_batch)))
    assert twice == pytest.approx((low, high)), "tokens a second do not hang on the rows at once"
    assert figures.speeds(replace(p, recipe=None)) is None
    assert figures.speeds(replace(p, gpu="24GB")) is None


# -- the widget


@pytest.mark.parametrize(("gib", "lora", "qlora"), [(12, False, True), (16, False, True), (24, True, True)])
def test_what_fits_is_what_the_placement_says(gib, lora, qlora):
    text = figures.fits(EIGHT_B, EIGHT, find_gpu(f"{gib}GB"), 1024, 1, 16)
    said = {line.split()[0]: "does not" not in line for line in text.splitlines()[1:3]}
    assert said == {"LoRA": lora, "QLoRA": qlora}


def test_the_widget_agrees_with_the_stage_that_was_placed():
    at = PLACED["8B, a card of 24 GB"].stages[0]
    text = figures.fits(EIGHT_B, EIGHT, at.plan.gpu, at.seq, at.micro_batch, EIGHT_B.sft.lora.r)
    assert f"LoRA  needs {needed_gib(at.plan):5.1f} GiB" in text
    more = figures.fits(EIGHT_B, EIGHT, at.plan.gpu, at.seq, at.micro_batch, 256)
    assert more != text and "rank 256" in more


# -- the exercises' own ground


def test_each_sick_training_has_one_warning_of_its_own():
    found = exercises.symptoms()
    assert set(found) == set(exercises.SICK) == set(exercises.CURE)
    assert len({(h.stage, h.name) for h in found.values()}) == len(found)
    for stage, cut, curves in exercises.SICK.values():
        made = [exercises.Curve(stage, n, (1, 2, 3, 4), v) for n, v in curves.items()]
        assert [h.status for h in exercises.check(stage, made, cut, 1000)].count("WARN") == 1
    assert set(exercises.CAUSES) > set(exercises.CURE.values())


def test_a_bill_is_the_sum_of_what_the_plan_command_prints():
    from llama3_lab.commands.plan import profile_json

    for name in ("RTX 4090", "H100"):
        placed, hours, usd = exercises.bill(EIGHT_B, find_gpu(name))
        assert placed == place(EIGHT_B, find_gpu(name), EIGHT)
        stages = profile_json(EIGHT_B, placed)["stages"]
        assert hours == pytest.approx(sum(s["times"] * s["costs"]["hours"][1] for s in stages))
        assert usd == pytest.approx(sum(s["times"] * s["costs"]["usd"][1] for s in stages))
    fewer = override(EIGHT_B, "rounds=2")
    assert trainings(fewer)["reward"] == 2 and exercises.bill(fewer, find_gpu("H100"))[1] < hours
    with pytest.raises(ValueError, match="name a card"):
        exercises.bill(EIGHT_B, find_gpu("48GB"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_mail_of_the_exercise_is_what_an_adapter_needs(tmp_path):
    """Without a file of MAIL logits differ or nothing loads; without another one, or with hers, all is the same."""
    base, sent = make_shrunken(tmp_path / "base"), tmp_path / "sft"
    how = replace(EIGHT_B.model, path=str(base), device="cpu", threads=1, method="lora", attention="sdpa")
    prompt = Prompt("p", "arithmetic", "What is 7 plus 5?", "train", 1, Check("number", "12"))
    fit = replace(EIGHT_B.sft.fit, learning_rate=4e-3, max_steps=2, per_device_train_batch_size=2, max_length=64)
    train_sft(base, [Demonstration(prompt, "7+5=12", "written")] * 2, replace(EIGHT_B.sft, fit=fit, lora=Lora(4, 32)),
              sent, how, embeddings=False)  # fmt: skip

    def logits() -> torch.Tensor:
        policy = load_policy(sent, how)
        ids = torch.tensor([encode_prompt(policy.tokenizer, prompt.text)])
        with torch.inference_mode():
            return policy.model(ids).logits

    right = logits()
    for letter, name in exercises.FILES.items():
        file, kept = sent / name, tmp_path / "kept"
        assert file.is_file(), name
        shutil.move(file, kept)
        if letter in ("D", "E"):
            shutil.copy(base / name, file)
        try:
            same = torch.equal(logits(), right)
        except (ValueError, OSError):
            same = False
        assert same is (letter not in exercises.MAIL), name
        shutil.move(kept, file)
