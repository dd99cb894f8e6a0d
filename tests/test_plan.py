"""`llama3-lab plan`: what it prints for people and for programs, and how it takes a mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest

from llama3_lab import cli
from llama3_lab.paper.memory import PARTS

EIGHT = ["plan", "--model", "8b"]


def run(capsys, *more: str) -> str:
    assert cli.main([*EIGHT, *more]) == 0
    return capsys.readouterr().out


def run_json(capsys, *more: str) -> dict:
    return json.loads(run(capsys, "--json", *more))


def test_json_has_the_figures_and_they_add_up(capsys):
    found = run_json(capsys, "--gpu", "A100-80GB", "--fit")
    assert {"peak_allocated_gib", "reserved_gib", "static_gib", "fits", "parts"} <= set(found)
    assert set(found["parts"]) == set(PARTS)
    assert sum(found["parts"].values()) == pytest.approx(found["peak_allocated_gib"], abs=0.01)
    assert found["static_gib"] < found["peak_allocated_gib"] < found["reserved_gib"]
    assert found["fits"] is True and found["changes"] == []
    assert found["fit"]["micro_batch"] > 1 and found["fit"]["seq"] > 2048
    assert 0 < found["costs"]["hours"][0] < found["costs"]["hours"][1]


def test_the_text_says_the_same(capsys):
    found, text = run_json(capsys), run(capsys)
    assert f"peak allocated  {found['peak_allocated_gib']:7.2f} GiB" in text
    assert re.search(r"^24 GB +23.52 GiB: fits$", text, re.M)
    assert "8,030,261,248 weights, and 41,943,040 in adapters of rank 16" in text


def test_every_stage_and_method_is_planned(capsys):
    for stage in ("sft", "reward", "dpo", "sample", "guard"):
        peaks = [run_json(capsys, "--stage", stage, "--method", m)["peak_allocated_gib"] for m in
                 ("full", "lora", "qlora")]  # fmt: skip
        assert peaks[2] < peaks[1] <= peaks[0]


@pytest.mark.parametrize(
    ("dear", "cheap"),
    [("--no-checkpointing", "--checkpointing"), ("--logits=full", "--logits=chunked"), ("--seq=4096", "--seq=2048"),
     ("--micro-batch=4", "--micro-batch=1"), ("--lora-r=256", "--lora-r=8"), ("--no-packing", "--packing"),
     ("--lora-targets=all-linear", "--lora-targets=q_proj,v_proj"), ("--attention=eager", "--attention=flash")],
)  # fmt: skip
def test_a_switch_does_what_it_says(capsys, dear, cheap):
    high, low = (run_json(capsys, "--micro-batch", "2", s)["peak_allocated_gib"] for s in (dear, cheap))
    assert low < high


def test_the_optimizer_counts_in_full_fine_tuning(capsys):
    sizes = [run_json(capsys, "--method", "full", "--optimizer", o)["peak_allocated_gib"] for o in
             ("sgd", "adamw_8bit", "adamw")]  # fmt: skip
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2


def test_where_it_does_not_fit_it_says_what_to_change_and_that_then_fits(capsys):
    how = ["--method", "full", "--no-checkpointing", "--logits", "full", "--micro-batch", "4"]
    found = run_json(capsys, *how)
    assert found["fits"] is False and found["changes"][-1]["fits"] is True
    assert found["changes"][0]["setting"] == "--logits chunked", "what costs nothing comes first"
    assert "To make it fit, change first what costs least" in run(capsys, *how)
    changed = [word for c in found["changes"] for word in c["setting"].split()]
    assert run_json(capsys, *how, *changed)["fits"]


def test_what_never_fits_is_said(capsys):
    text = run(capsys, "--gpu", "2GB")
    assert "does not fit" in text and "a larger card, a smaller model" in text


def test_a_config_is_a_model_too(capsys, tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert cli.main(["plan", "--model", str(path), "--json"]) == 0
    # two tables of 256 · 64; in each layer q and o 64 · 64, k and v 64 · 32, three of 64 · 160, two norms; a last norm
    by_hand = 2 * 256 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64) + 64
    assert json.loads(capsys.readouterr().out)["parameters"] == by_hand


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(["--model", "9b"], "no model '9b'"), (["--gpu", "Voodoo2"], "no GPU 'Voodoo2'"),
     (["--gpu", "0GB"], "more than 0"),
     (["--seq", "-4"], "seq is -4"), (["--micro-batch", "0"], "micro-batch is 0"), (["--lora-r", "-1"], "lora-r is -1"),
     (["--seq", "many"], "invalid int value"), (["--stage", "ppo"], "stage is 'ppo'"), (["--method", "dora"], "dora"),
     (["--lora-targets", "lm_head"], "lora targets: lm_head"), (["--lora-dropout", "2"], "lora_dropout is 2"),
     (["--examples", "0"], "examples is 0"), (["--model", "nowhere/config.json"], "nowhere/config.json"),
     (["--logits", "none"], "logits is 'none'"), (["--optimizer", "lion"], "optimizer is 'lion'")],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(capsys, wrong, words):
    assert cli.main([*EIGHT, *wrong]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and words in said.err


def plan_profile(capsys, *more: str) -> str:
    assert cli.main(["plan", "--profile", *more]) == 0
    return capsys.readouterr().out


def test_a_profile_is_placed_stage_by_stage_with_time_and_cost(capsys):
    text = plan_profile(capsys, "8b", "--gpu", "A100-80GB")
    placed, priced = text.split("Expected time, and cost at assumed rents:")
    for stage in ("sft", "reward", "dpo", "sample"):
        assert re.search(rf"^  {stage} .* of 79\.2 GiB", placed, re.M)
        assert re.search(rf"^  {stage} .* hours on one A100-80GB, .* USD$", priced, re.M)
    assert "one training (of 8 in a run), 9,600 rows" in priced, "300 steps of 32"
    assert "candidates of one round, 20,000 answers" in priced, "10 each to 2,000 prompts"
    assert "time and cost: name a card" in plan_profile(capsys, "8b", "--gpu", "24GB")


def test_a_profile_s_json_says_the_same(capsys):
    found = json.loads(plan_profile(capsys, "8b", "--gpu", "RTX 4090", "--json"))
    text = plan_profile(capsys, "8b", "--gpu", "RTX 4090")
    assert found["profile"] == "8b" and found["gpu_gib"] == 23.5 and found["method"] == "lora"
    for stage in found["stages"]:
        assert stage["reason"] in text and stage["batch"] % stage["micro_batch"] == 0
        assert stage["peak_allocated_gib"] < stage["needed_gib"] <= 23.5
        assert sum(stage["parts"].values()) == pytest.approx(stage["peak_allocated_gib"], abs=0.01)
        low, high = stage["costs"]["hours"]
        assert 0 < low < high
    assert [s["times"] for s in found["stages"]] == [8, 3, 3, 3]


def test_a_profile_s_settings_decide(capsys):
    assert ": qlora, as model.method says" in plan_profile(capsys, "8b", "--set", "model.method=qlora")
    assert "2 rows of 512 tokens" in plan_profile(
        capsys, "1b", "--set", "sft.micro_batch=2", "--set", "sft.max_length=512"
    )
    assert plan_profile(capsys, "1b", "--set", "model.stand_in=true").startswith("unsloth/Llama-3.2-1B on 24 GB")


@pytest.mark.parametrize("name", ["tiny", "course"])
def test_a_profile_for_a_cpu_is_not_placed(capsys, name):
    assert plan_profile(capsys, name) == f"profile {name} runs on a CPU; nothing to place\n"
    assert json.loads(plan_profile(capsys, name, "--json"))["stages"] == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [([], "give --model"), (["--profile", "9b"], "unknown profile '9b'"),
     (["--profile", "8b", "--set", "model.method=full"], "must be one of auto, lora, qlora"),
     (["--profile", "8b", "--set", "sft.embedding=no"], "unknown setting"),
     (["--profile", "8b", "--gpu", "4GB"], "does not fit on 4 GB"),
     (["--profile", "8b", "--seq", "512"], "--seq is not for --profile"),
     (["--profile", "8b", "--model", "8b"], "--model is not for --profile"),
     (["--profile", "8b", "--set", "model.path=owner/other"], "no model 'owner/other'"),
     (["--model", "8b", "--set", "sft.max_length=512"], "--set changes a profile's settings")],
)  # fmt: skip
def test_a_mistake_about_a_profile_is_one_line_and_status_2(capsys, wrong, words):
    assert cli.main(["plan", *wrong]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and words in said.err


@pytest.mark.parametrize("what", [["--model", "70b", "--fit"], ["--profile", "8b"]])
def test_it_takes_under_a_second_and_no_torch(what):
    code = (f"import sys; from llama3_lab.cli import main; code = main(['plan', *{what}]); "
            "print(code, sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))")  # fmt: skip
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begun)
        assert done.stdout.splitlines()[-1] == "0 []"
    assert min(seconds) < 1.0
