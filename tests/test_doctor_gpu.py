"""The doctor before a profile for a GPU: card, place, packages, disk, weights, licence, data; no GPU, no network."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama3_lab import cli, doctor, doctor_gpu, doctor_hub, models
from llama3_lab.doctor import examine
from llama3_lab.doctor_gpu import Card, disk_findings, find_card, gpu_findings, run_bytes
from llama3_lab.paper.catalogue import GIB, find_model
from llama3_lab.placement import needed_gib, place, weights_bytes
from llama3_lab.profiles import EIGHT_B, ONE_B, TINY, override

EIGHT, ONE = find_model("8b")[1], find_model("1b")[1]
RTX = Card("NVIDIA GeForce RTX 4090", round(23.5 * GIB), True)
GATED, COPY = "meta-llama/Llama-3.1-8B", "NousResearch/Meta-Llama-3.1-8B"


def looked(profile, card, build="12.9", model=EIGHT) -> dict:
    found = list(gpu_findings(profile, card, build, model))
    for f in found:
        assert "\n" not in str(f)
        assert f.status == "PASS" or f.remedy, f
    return {f.name: f for f in found}


def with_settings(profile, *settings):
    for setting in settings:
        profile = override(profile, setting)
    return profile


@pytest.fixture
def installed(monkeypatch):
    """Say which of the optional packages are installed."""
    names: set[str] = set()
    monkeypatch.setattr(doctor_gpu.importlib.util, "find_spec", lambda n: SimpleNamespace() if n in names else None)
    monkeypatch.setattr(doctor_gpu, "_version", lambda package: "9.9")
    return names


def test_a_card_on_which_the_profile_fits_passes_stage_by_stage(installed):
    found = looked(EIGHT_B, RTX)
    assert {f.status for f in found.values()} == {"PASS"}
    assert "RTX 4090, 23.5 GiB; torch for CUDA 12.9" in found["gpu"].found
    placed = place(EIGHT_B, doctor_gpu.card_of(RTX.name, RTX.total_bytes), EIGHT)
    for p in placed.stages:
        assert found[p.stage].found == p.reason
        assert f"{needed_gib(p.plan):.1f} of 23.5 GiB" in p.reason
    assert "bitsandbytes" not in found, "LoRA needs none"


@pytest.mark.parametrize(("build", "words"), [("", "torch is a CPU build"), ("12.9", "none that torch (CUDA 12.9)")])
def test_no_card_is_a_failure_that_names_the_planner(installed, build, words):
    found = looked(EIGHT_B, None, build)
    assert found["gpu"].status == "FAIL" and words in found["gpu"].found
    assert "llama3-lab plan --profile 8b --gpu 24GB" in found["gpu"].remedy
    assert "placement" not in found and "sft" not in found


def test_a_card_that_is_too_small_says_what_is_needed_and_what_to_do(installed):
    found = looked(EIGHT_B, Card("Tesla T4", round(14.6 * GIB), False))
    assert found["placement"].status == "FAIL"
    assert re.search(r"needs [\d.]+ of 14\.6 GiB", found["placement"].found)
    assert "--set model.path=meta-llama/Llama-3.2-1B" in found["placement"].remedy
    assert found["bfloat16"].status == "WARN" and "Ampere" in found["bfloat16"].remedy
    assert looked(ONE_B, Card("Tesla T4", round(14.6 * GIB), False), model=ONE)["placement"].status == "PASS"


def test_shortened_rows_and_tight_places_are_warnings(installed):
    long = with_settings(EIGHT_B, "sft.max_length=16384", "model.method=lora")
    found = looked(long, Card("", round(19.6 * GIB), True))
    assert found["sft"].status == "WARN" and "shortened from 16,384" in found["sft"].found
    assert "larger GPU" in found["sft"].remedy
    tight = looked(EIGHT_B, Card("", round(21.6 * GIB), True))
    assert tight["sft"].found.endswith("; tight")
    assert tight["sft"].status == "WARN" and "expandable_segments" in tight["sft"].remedy


def test_bitsandbytes_is_asked_for_where_qlora_is_chosen_and_only_there(installed):
    qlora = with_settings(EIGHT_B, "model.method=qlora")
    missing = looked(qlora, RTX)["bitsandbytes"]
    assert missing.status == "FAIL" and "model.method=lora" in missing.remedy
    installed.add("bitsandbytes")
    assert looked(qlora, RTX)["bitsandbytes"].status == "PASS"
    by_planner = with_settings(EIGHT_B, "sft.embeddings=true", "reward.embeddings=true")
    larger = Card("some card", 28 * GIB, True)
    assert looked(by_planner, larger)["bitsandbytes"].status == "PASS", "the planner takes QLoRA here"
    assert looked(qlora, None)["bitsandbytes"].status == "PASS", "without a card too"


def test_the_attention_is_that_of_the_models(installed):
    for there in (False, True):
        installed.update({"flash_attn"} if there else set())
        for wanted in ("auto", "sdpa", "eager", "flash_attention_2"):
            profile = with_settings(EIGHT_B, f"model.attention={wanted}")
            finding = looked(profile, RTX)["attention"]
            if wanted == "flash_attention_2" and not there:
                assert finding.status == "FAIL" and "model.attention=sdpa" in finding.remedy
                with pytest.raises(ValueError, match="flash-attn is not installed"):
                    models.attention_of(profile.model)
            else:
                assert models.attention_of(profile.model) in finding.found
                assert finding.status == ("WARN" if wanted == "eager" else "PASS")


def test_the_card_is_what_cuda_says(monkeypatch):
    import torch

    cards = [SimpleNamespace(name="NVIDIA H200", total_memory=150 * GIB, major=9),
             SimpleNamespace(name="Tesla T4", total_memory=15 * GIB, major=7)]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    assert find_card("cuda") == find_card("cuda:0") == Card("NVIDIA H200", 150 * GIB, True)
    assert find_card("cuda:1") == Card("Tesla T4", 15 * GIB, False)
    assert find_card("cuda:2") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_card("cuda") is None


def test_what_a_run_writes_is_counted_from_the_profile():
    policy, reward = 2 * 8_030_261_248, 2 * (8_030_261_248 - 128_256 * 4_096 + 4_096)
    adapter, answers = 4 * 41_943_040, 0.2e9
    # first, sibling; in each of 3 rounds SFT and its control, one DPO run, their average, and a reward model
    merged = with_settings(EIGHT_B, "model.keep=merged")
    assert run_bytes(merged, EIGHT) == pytest.approx(14 * policy + 3 * reward + (8 + 3 + 3) * adapter + answers)
    assert run_bytes(EIGHT_B, EIGHT) == pytest.approx((8 + 3 + 3 + 3) * adapter + answers), "adapters, averages too"
    over_4_bits = with_settings(EIGHT_B, "model.method=qlora")
    assert run_bytes(over_4_bits, EIGHT) == run_bytes(merged, EIGHT), "QLoRA's are always merged"
    one = with_settings(merged, "rounds=1", "evaluation.control=false")
    assert run_bytes(one, EIGHT) == pytest.approx(5 * policy + reward + 5 * adapter + answers)
    report = with_settings(merged, "rounds=1", "order=field_report")
    assert run_bytes(report, EIGHT) == pytest.approx(4 * policy + reward + 4 * adapter + answers)
    # whole tables are written in the adapter too, and tied ones are untied in the policy
    one_b = with_settings(ONE_B, "model.keep=merged")
    whole = with_settings(one_b, "sft.embeddings=true")
    table = 2 * 128_256 * 2_048
    assert run_bytes(whole, ONE) - run_bytes(one_b, ONE) == pytest.approx(8 * (2 * table + table) + 6 * table)


@pytest.mark.parametrize(("free", "statuses"), [(1e4, ["PASS"] * 2), (280.0, ["PASS", "FAIL"]), (10.0, ["FAIL"] * 2)])
def test_one_disk_must_hold_download_and_run(monkeypatch, tmp_path, free, statuses):
    monkeypatch.setattr(doctor_gpu, "free_disk_gb", lambda folder: free)
    size = weights_bytes(EIGHT)
    assert size == 16_060_522_496
    merged = with_settings(EIGHT_B, "model.keep=merged")
    found = list(disk_findings(merged, EIGHT, tmp_path / "cache", size, tmp_path / "runs"))
    assert [f.status for f in found] == statuses
    assert "16.1 GB to download" in found[0].found and "16.1 are downloaded to the same disk" in found[1].found
    writes = run_bytes(merged, EIGHT) / 1e9
    assert 264 < writes < 280 and f"about {writes:.0f}" in found[1].found
    assert all(f.status == "PASS" or f.remedy for f in found)
    (alone,) = disk_findings(EIGHT_B, EIGHT, tmp_path / "cache", 0, tmp_path / "runs")
    assert "download" not in alone.found, "the weights are here"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, no token, and a hub that must not be asked."""
    import huggingface_hub
    from huggingface_hub import constants

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for name in doctor_hub.OFFLINE_DATA:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def fill(cache: Path, shards: int, there: int, begun: int = 0, source: str = GATED) -> int:
    """Put a model's snapshot into the cache, with so many of its shards; return the bytes."""
    folder = cache / f"models--{source.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / "abc", folder / "blobs"
    for path in (snapshot, blobs, folder / "refs"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    index = json.dumps({"weight_map": {f"layer{i}": name for i, name in enumerate(names)}})
    files = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors.index.json": index,
             **dict.fromkeys(names[:there], "x" * 1000)}  # fmt: skip
    for i, (name, text) in enumerate(files.items()):
        (blobs / str(i)).write_text(text)
        (snapshot / name).symlink_to(blobs / str(i))
    for i in range(begun):
        (blobs / f"{i}b.0123abcd.incomplete").write_text("x" * 500)
    return sum(len(t) for t in files.values()) + 500 * begun


def hub(profile=EIGHT_B) -> list:
    found = list(doctor_hub.hub_findings(profile))
    for f in found:
        assert "\n" not in str(f)
        assert f.status == "PASS" or f.remedy, f
    return found


def answers(monkeypatch, status, asked=None):
    """Let the hub answer with a status (None: it is not reached; 200: it hands files out)."""
    import huggingface_hub

    def ask(url: str, *, token: object, timeout: float) -> None:
        assert timeout <= 5
        if asked is not None:
            asked.append((url, token))
        if status != 200:
            error = ConnectionError("refused")
            error.response = SimpleNamespace(status_code=status) if status else None
            raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)


def test_weights_that_are_whole_need_no_hub(cache):
    size = fill(cache, 4, 4)
    weights, licence = hub()
    assert (weights.status, licence.status) == ("PASS", "PASS")
    assert doctor_hub.kept(GATED, cache).bytes == size
    assert doctor_hub.to_download(EIGHT_B) == 0


@pytest.mark.parametrize(("there", "begun"), [(3, 0), (3, 1), (0, 2)])
def test_a_download_that_was_cut_off_goes_on(cache, there, begun):
    size = fill(cache, 4, there, begun)
    state = doctor_hub.kept(GATED, cache)
    assert (state.state, state.bytes) == ("part", size)
    weights, _ = hub()
    assert weights.status == "WARN" and "of 16.1 GB are in the hub's cache" in weights.found
    assert "a download that was cut off goes on where it stopped" in weights.remedy
    assert doctor_hub.to_download(EIGHT_B) == weights_bytes(EIGHT) - size


def test_a_model_in_one_file_is_whole_and_another_model_s_files_do_not_count(cache):
    fill(cache, 1, 0, source=COPY)
    assert doctor_hub.kept(GATED, cache).state == "none"
    snapshot = cache / f"models--{COPY.replace('/', '--')}" / "snapshots" / "abc"
    assert doctor_hub.kept(COPY, cache).state == "part"
    (snapshot / "model.safetensors").write_text("x")
    assert doctor_hub.kept(COPY, cache).state == "whole"


def test_without_a_token_a_licensed_model_is_not_asked_for(cache):
    weights, licence = hub()
    assert weights.status == "WARN" and "16.1 GB to download" in weights.found
    assert licence.status == "FAIL" and "there is no token" in licence.found
    for words in (f"huggingface.co/{GATED}", "HF_TOKEN", f"--set model.stand_in=true ({COPY})"):
        assert words in licence.remedy


@pytest.mark.parametrize(
    ("status", "found", "remedy"),
    [(401, "answered 401, it does not know this token", "set HF_TOKEN"),
     (403, "answered 403, the account of HF_TOKEN has no access", "wait"),
     (404, "404, there is no such model", "model.path"), (None, "out of reach (ConnectionError)", "copy the weights"),
     (500, "out of reach (500)", "try again")],
)  # fmt: skip
def test_what_the_hub_answers_is_said_with_the_next_step(cache, monkeypatch, status, found, remedy):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    asked: list = []
    answers(monkeypatch, status, asked)
    licence = hub()[1]
    assert licence.status == "FAIL" and found in licence.found and remedy in licence.remedy
    assert [token for _, token in asked] == ["a token"] and GATED in asked[0][0]
    answers(monkeypatch, 200)
    assert hub()[1].status == "PASS"


def test_a_stand_in_needs_no_token(cache, monkeypatch):
    asked: list = []
    answers(monkeypatch, 200, asked)
    weights, licence = hub(with_settings(EIGHT_B, "model.stand_in=true"))
    assert COPY in weights.found and "16.1 GB" in weights.found and licence.status == "PASS"
    assert [(COPY in url, token) for url, token in asked] == [(True, None)]
    (unknown,) = hub(with_settings(EIGHT_B, "model.stand_in=true", "model.path=owner/other"))
    assert unknown.status == "FAIL" and "none is known for owner/other" in unknown.found


def test_offline_the_hub_is_not_asked_and_what_is_here_will_do(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    licence = hub()[1]
    assert licence.status == "FAIL" and "HF_HUB_OFFLINE is set" in licence.found
    assert "unset HF_HUB_OFFLINE" in licence.remedy and "model.path=FOLDER" in licence.remedy
    fill(cache, 2, 2)
    assert {f.status for f in hub()} == {"PASS"}


def test_a_local_folder_is_looked_through(cache, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    profile = with_settings(EIGHT_B, f"model.path={folder}")
    (finding,) = hub(profile)
    assert finding.status == "FAIL" and "config.json, tokenizer.json, model.safetensors" in finding.found
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    assert hub(profile)[0].status == "PASS"
    (gone,) = hub(with_settings(EIGHT_B, "model.path=/no/such/folder"))
    assert gone.status == "FAIL" and "no such folder" in gone.found


def test_with_safety_on_the_guard_s_weights_are_looked_for_too(cache):
    found = [f.found for f in hub(with_settings(ONE_B, "safety.on=true")) if f.name == "weights"]
    assert len(found) == 2 and "meta-llama/Llama-Guard-3-1B" in found[1]


def test_a_model_that_no_table_has_is_read_from_the_cache(cache):
    profile = with_settings(EIGHT_B, "model.path=owner/other")
    with pytest.raises(ValueError, match="no model 'owner/other'"):
        doctor_hub.shape_of(profile)
    fill(cache, 2, 0, source="owner/other")
    config = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
              "vocab_size": 256}  # fmt: skip
    (cache / "models--owner--other" / "blobs" / "0").write_text(json.dumps(config))
    assert doctor_hub.shape_of(profile).layers == 3


def test_data_sets_local_there_offline_and_out_of_reach(cache, monkeypatch, tmp_path):
    def data(profile=EIGHT_B) -> dict:
        found = list(doctor_hub.data_findings(profile))
        assert all(f.status == "PASS" or f.remedy for f in found)
        return {f.found.split(":")[0].split(" ")[0]: f for f in found}

    asked: list = []
    answers(monkeypatch, 200, asked)
    assert {f.status for f in data().values()} == {"PASS"}
    assert len(asked) == 3, "each once, though GSM8K serves twice"
    answers(monkeypatch, 404)
    assert data()["openai/gsm8k"].status == "FAIL"
    assert "data.benchmarks.gsm8k_train, data.benchmarks.gsm8k_test" in data()["openai/gsm8k"].remedy
    asked.clear()
    answers(monkeypatch, None, asked)
    assert {f.status for f in data().values()} == {"WARN"} and len(asked) == 1, "once out of reach, it is asked no more"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert all("HF_HUB_OFFLINE is set" in f.found for f in data().values())
    file = tmp_path / "rows.jsonl"
    local = with_settings(EIGHT_B, f"data.benchmarks.mbpp={file}")
    assert data(local)[str(file)].status == "FAIL"
    file.write_text("{}\n")
    assert data(local)[str(file)].status == "PASS"
    assert data(TINY) == {}, "the small world needs none"


def test_the_doctor_looks_at_a_large_profile_without_touching_the_network(cache, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor_gpu, "find_card", lambda device: RTX)
    monkeypatch.setattr(doctor_gpu, "free_disk_gb", lambda folder: 1e4)
    names = [f.name for f in examine("8b")]
    wanted = "python memory sandbox gpu bfloat16 placement sft sample attention disk weights licence data"
    assert set(wanted.split()) <= set(names)
    assert "gated weights" not in names and "base model" not in names
    assert cli.main(["doctor", "--profile", "8b", "--set", "model.stand_in=true"]) == 1
    said = capsys.readouterr().out
    assert COPY in said and "not ready: " in said and "licence" in said
    fill(cache, 2, 2)
    assert [f for f in examine("8b") if f.status == "FAIL" and f.name not in ("memory",)] == []


def test_settings_change_what_the_doctor_looks_at_and_a_wrong_one_is_one_line(capsys, monkeypatch):
    seen: list = []
    monkeypatch.setattr(doctor, "examine", lambda profile: seen.append(profile) or [])
    assert cli.main(["doctor", "--profile", "1b", "--set", "sft.max_length=512", "--set", "model.method=qlora"]) == 0
    assert (seen[0].sft.fit.max_length, seen[0].model.method) == (512, "qlora")
    assert cli.main(["doctor", "--profile", "1b", "--set", "model.method=full"]) == 2
    assert cli.main(["doctor", "--set", "sft.no_such=1"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("path", ["owner/other", "/no/such"])
def test_a_model_of_unknown_shape_is_said_and_the_rest_goes_on(cache, monkeypatch, path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {f.name: f for f in examine(with_settings(EIGHT_B, f"model.path={path}"))}
    assert found["model"].status == ("WARN" if path == "owner/other" else "FAIL")
    assert found["gpu"].status == "FAIL" and found["weights"].status != "PASS"
    assert "disk" not in found
