"""The doctor says PASS, WARN or FAIL for the right reason, and what to do."""

import dataclasses
import hashlib
import shutil
import socket
import time
from pathlib import Path

import pytest

from llama3_lab import doctor
from llama3_lab.doctor import Finding, examine, free_disk_gb, free_memory_gb
from llama3_lab.profiles import TINY, Model

ROOT = Path(__file__).resolve().parent.parent


def with_model(**settings) -> dataclasses.replace:
    return dataclasses.replace(TINY, model=Model(**settings))


def only(look, profile=TINY) -> Finding:
    (finding,) = look(profile)
    return finding


def test_every_finding_that_is_no_pass_says_what_to_do():
    findings = examine("tiny")
    assert {"python", "torch", "device", "threads", "memory", "disk", "base model", "sandbox", "gated weights"} <= {
        f.name for f in findings
    }
    for f in findings:
        assert f.status == "PASS" or f.remedy, f
        assert "\n" not in str(f)
        assert str(f).startswith(f.status)
    by_name = {f.name: f.status for f in findings}
    assert by_name["python"] == by_name["torch"] == by_name["sandbox"] == by_name["device"] == "PASS"


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        examine("huge")


def test_other_versions_than_the_tested_are_a_warning_and_none_a_failure(monkeypatch):
    found = {f.name: f for f in doctor._packages(TINY)}
    assert {found[p].status for p in doctor.NEEDED} == {"PASS"}
    monkeypatch.setattr(doctor, "pinned", lambda: {"torch": "1.0", "numpy": "0.1"})
    found = {f.name: f for f in doctor._packages(TINY)}
    assert (found["torch"].status, found["other packages"].status) == ("WARN", "WARN")
    assert "tested with 1.0" in found["torch"].found
    assert "numpy" in found["other packages"].found
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    assert next(doctor._packages(TINY)).status == "FAIL"


def test_the_pins_are_read_whatever_the_spelling():
    assert doctor.pinned()["pydantic-monty"] == "1.4.0"
    assert doctor.pinned()["pyyaml"]
    assert doctor.pinned()["torch"] == "2.13.0"


@pytest.mark.parametrize(("need", "status"), [(0.001, "PASS"), (1e6, "FAIL")])
def test_memory_is_compared_with_what_the_profile_needs(need, status):
    assert only(doctor._memory, with_model(memory_gb=need)).status == status
    assert 0 < free_memory_gb() < 1e5


@pytest.mark.parametrize(("free", "status"), [(doctor.RUN_GB * 0.9, "FAIL"), (doctor.RUN_GB * 1.1, "PASS")])
def test_disk_is_compared_with_what_a_run_writes(monkeypatch, tmp_path, free, status):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "free_disk_gb", lambda folder: free)
    assert only(doctor._disk).status == status


def test_room_is_measured_where_the_folder_will_be(tmp_path):
    assert free_disk_gb(tmp_path / "not" / "there" / "yet") == pytest.approx(free_disk_gb(tmp_path), rel=0.1)


def test_more_threads_than_cores_are_a_warning():
    finding = only(doctor._threads, with_model(threads=1000))
    assert finding.status == "WARN"
    assert "model.threads=" in finding.remedy


def test_a_device_that_is_not_there_is_a_failure(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert only(doctor._device, with_model(device="cuda")).status == "FAIL"
    assert only(doctor._device, with_model(device="cpu")).status == "PASS"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with a base of three files and their digests in CARDS.md."""
    base = tmp_path / "data" / "tiny_base"
    base.mkdir(parents=True)
    rows = []
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (base / name).write_text(name)
        digest = hashlib.sha256(name.encode()).hexdigest()
        rows.append(f"| `tiny_base/{name}` | made here | Apache-2.0 | 1 | `{digest}` |")
    (tmp_path / "data" / "CARDS.md").write_text("\n".join(rows))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return base


def test_an_intact_base_passes_and_a_changed_one_is_named(project):
    assert only(doctor._base_model).status == "PASS"
    assert "3 files intact" in only(doctor._base_model).found
    (project / "model.safetensors").write_text("other")
    finding = only(doctor._base_model)
    assert finding.status == "FAIL"
    assert "altered: model.safetensors" in finding.found
    (project / "model.safetensors").unlink()
    assert "missing: model.safetensors" in only(doctor._base_model).found
    shutil.rmtree(project)
    assert only(doctor._base_model).status == "FAIL"


def test_a_base_without_digests_is_a_warning(project):
    (project.parent / "CARDS.md").unlink()
    assert only(doctor._base_model).status == "WARN"


def test_a_base_on_the_hub_is_no_failure(project):
    assert only(doctor._base_model, with_model(path="owner/some-model")).status == "WARN"


def test_a_sandbox_that_does_not_start_is_a_failure(monkeypatch):
    from llama3_lab.pipeline import sandbox

    def broken(program, tests):
        raise RuntimeError("no worker\nat all")

    monkeypatch.setattr(sandbox, "run_tests", broken)
    finding = only(doctor._sandbox)
    assert finding.status == "FAIL"
    assert "no worker" in finding.found
    assert "\n" not in str(finding)


def test_offline_the_hub_is_not_asked(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = only(doctor._gated)
    assert finding.status == "WARN"
    assert "HF_HUB_OFFLINE" in finding.found


def test_without_a_token_the_hub_is_not_asked(monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "no token" in only(doctor._gated).found


@pytest.mark.parametrize(
    ("status", "words"), [(401, "accept its licence"), (403, "accept its licence"), (None, "out of reach")]
)
def test_a_refusal_of_the_hub_is_a_warning_that_says_what_to_do(monkeypatch, status, words):
    import huggingface_hub

    def refuse(*_: object, timeout: float, **__: object) -> None:
        assert timeout <= 5
        error = OSError("refused")
        error.response = type("Response", (), {"status_code": status})()
        raise error

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    finding = only(doctor._gated)
    assert finding.status == "WARN"
    assert words in finding.found
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    assert only(doctor._gated).status == "PASS"


def test_it_takes_seconds_not_minutes():
    start = time.perf_counter()
    examine("tiny")
    assert time.perf_counter() - start < 20
