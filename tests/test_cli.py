"""The command line: one clear line for a mistake, nothing heavy before it is needed, nothing lost."""

import errno
import json
import os
import resource
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from llama3_lab import cli, disk, doctor
from llama3_lab.profiles import TINY, override
from llama3_lab.records import RunReport
from llama3_lab.store import RunFolder, to_json, write_records

REPORT = RunReport("r", "tiny", "d", "paper", 1, 1, (), (), (), (), (), (), (), 60.0, 1.0)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder, and a loop that records what it was asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA3_LAB_DEBUG", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)
    asked = []

    def run_loop(profile, out, placed=None):
        asked.append((profile, out))
        RunFolder(out, profile).close()
        return REPORT

    fake(monkeypatch, "llama3_lab.pipeline.rounds", run_loop=run_loop)
    fake(monkeypatch, "llama3_lab.course.page", render_page=lambda report: f"<html>{report.name}</html>")
    fake(monkeypatch, "llama3_lab.course.views", table_stages=lambda report: "the table")
    fake(monkeypatch, "llama3_lab.course.safety_views", table_safety=lambda report: "",
         table_false_refusals=lambda report: "")  # fmt: skip
    return asked


def fake(monkeypatch, name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def fails(capsys, *argv) -> str:
    """Run a command that must fail with exit code 2; return its one line."""
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("llama3-lab: error: ")
    assert err.count("\n") == 1
    return err


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from llama3_lab import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'trl', 'matplotlib', 'numpy', 'psutil'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        before = processor_seconds()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        seconds.append(processor_seconds() - before)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "doctor | run | report" in done.stdout
    assert min(seconds) < 0.5


def processor_seconds() -> float:
    """Processor time of finished child processes: the wall clock of a busy machine proves nothing."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_version_is_the_package_s(capsys):
    from llama3_lab import __version__

    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_a_run_builds_its_profile_writes_the_report_and_says_where(place, capsys):
    argv = ["run", "--rounds", "2", "--order", "field_report", "--seed", "7", "--set", "sft.max_steps=3", "--set",
            "sampling.k=4"]  # fmt: skip
    assert cli.main(argv) == 0
    ((profile, out),) = place
    expected = TINY
    for setting in ("rounds=2", "order=field_report", "seed=7", "sft.max_steps=3", "sampling.k=4"):
        expected = override(expected, setting)
    assert replace(profile, model=TINY.model) == expected
    assert Path(profile.model.path).samefile(ROOT / "data" / "tiny_base")  # found from any folder
    assert out == Path("runs/tiny-field_report-seed7")
    assert json.loads((out / "report.json").read_text()) == to_json(REPORT)
    assert (out / "report.html").read_text() == "<html>r</html>"
    printed = capsys.readouterr().out
    assert "the table" in printed
    assert "runs/tiny-field_report-seed7/report.html" in printed


def test_a_report_is_written_again_from_its_figures(place, capsys):
    assert cli.main(["run", "--out", "here"]) == 0
    page = Path("here/report.html")
    page.unlink()
    assert cli.main(["report", "here"]) == 0
    assert page.read_text() == "<html>r</html>"
    assert "the table" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "doctor | run | report"),
        (["sing"], "sing"),
        (["run", "--profile", "9T"], "unknown profile '9T'; there is: tiny"),
        (["run", "--order", "none"], "order: must be one of paper, field_report, not 'none'"),
        (["run", "--rounds", "0"], "rounds is 0; it must be from 1"),
        (["run", "--rounds", "many"], "'rounds' must be"),
        (["run", "--seed", "-1"], "seed is -1"),
        (["run", "--set", "sampling.k=0"], "sampling.k is 0"),
        (["run", "--set", "sft.max_steps=-3"], "sft.fit.max_steps is -3; it must be at least 1"),
        (["run", "--set", "dpo.beta=0"], "dpo.beta is 0.0"),
        (["run", "--set", "sampling.temperature=nan"], "sampling.temperature is nan"),
        (["run", "--set", "reward.edit_share=2"], "reward.edit_share is 2.0; it must be from 0 to 1"),
        (["run", "--set", "evaluation.split=foo"], "evaluation.split: must be one of validation, test, not 'foo'"),
        (["run", "--set", "reward.min_strength=great"], "reward.min_strength: must be one of"),
        (["run", "--set", "model.dtype=int8"], "model.dtype: must be one of float32, bfloat16"),
        (["run", "--set", "evaluation.best_of_k=4,2"], "write growing numbers"),
        (["run", "--set", "evaluation.best_of_k=0,2"], "evaluation.best_of_k is 0"),
        (["run", "--set", "nothing.here=1"], "unknown setting 'nothing.here'"),
        (["run", "--set", "rounds"], "write name=value"),
        (["run", "--prompts", "none.jsonl"], "none.jsonl: there is no such file"),
        (["run", "--wrong"], "unrecognized arguments: --wrong"),
        (["run", "--set", "model.memory_gb=1e6"], "GB of memory"),
        (["report", "nowhere"], "nowhere/report.json: there is no such file"),
        (["doctor", "--profile", "9T"], "unknown profile '9T'"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(place, capsys, argv, words):
    assert words in fails(capsys, *argv)
    assert place == []
    assert os.listdir() == []


def test_every_number_of_a_profile_has_a_range():
    settings = [(n, v) for n, v in cli._settings(TINY) if isinstance(v, int | float | tuple)]
    assert {n.rpartition(".")[2] for n, v in settings if not isinstance(v, bool)} <= set(cli.RANGES)
    assert cli.check_profile(TINY) == TINY


def test_a_malformed_line_of_the_prompts_is_named(place, capsys):
    Path("mine.jsonl").write_text('{"id": "a"}\n')
    assert "mine.jsonl:1: field 'skill' of Prompt is missing" in fails(capsys, "run", "--prompts", "mine.jsonl")


def test_no_room_on_the_disk_is_said_before_anything_is_loaded(place, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "free_disk_gb", lambda folder: 0.01)
    assert "0.01 GB are free for runs/" in fails(capsys, "run")
    assert place == []


def test_other_settings_in_the_same_folder_are_refused_and_its_results_stay(place, capsys):
    assert cli.main(["run", "--out", "here"]) == 0
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in Path("here").iterdir()}
    assert "sampling.k (there 16, now 4)" in fails(capsys, "run", "--out", "here", "--set", "sampling.k=4")
    assert {p.name: p.read_bytes() for p in Path("here").iterdir()} == before


def test_a_second_run_in_the_same_folder_is_refused_at_once(place, capsys):
    with RunFolder(Path("here"), cli._profile(cli._parser().parse_args(["run"]))):
        assert "another run is writing it" in fails(capsys, "run", "--out", "here")
    assert place == []


@pytest.mark.parametrize("content", ["{", '{"name": "r"}', "[]"])
def test_a_damaged_report_is_named(place, capsys, content):
    Path("here").mkdir()
    Path("here/report.json").write_text(content)
    line = fails(capsys, "report", "here")
    assert "here/report.json" in line
    assert "run the same `llama3-lab run` again" in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("first line\nsecond line"), "first line second line"),
        (OSError(28, "No space left on device"), "No space left"),
        (MemoryError(), "out of memory; close other programs"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "out of memory"),
    ],
)
def test_an_error_from_the_loop_is_one_line(place, capsys, monkeypatch, error, words):
    def run_loop(profile, out, placed=None):
        raise error

    fake(monkeypatch, "llama3_lab.pipeline.rounds", run_loop=run_loop)
    monkeypatch.setattr(cli, "_check_room", lambda profile, out: None)
    assert cli.main(["run"]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("LLAMA3_LAB_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["run"])


def test_an_error_of_ours_keeps_its_traceback(place, monkeypatch):
    def run_loop(profile, out, placed=None):
        raise RuntimeError("shapes do not match")

    fake(monkeypatch, "llama3_lab.pipeline.rounds", run_loop=run_loop)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["run"])


def test_ctrl_c_says_that_the_same_command_resumes(place, capsys, monkeypatch):
    def run_loop(profile, out, placed=None):
        raise KeyboardInterrupt

    fake(monkeypatch, "llama3_lab.pipeline.rounds", run_loop=run_loop)
    assert cli.main(["run"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "code"), [("PASS", 0), ("WARN", 0), ("FAIL", 1)])
def test_the_doctor_s_exit_code_is_for_failures_only(capsys, monkeypatch, status, code):
    monkeypatch.setattr(doctor, "examine", lambda profile: [doctor.Finding("disk", status, "found", "do this")])
    assert cli.main(["doctor"]) == code
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(status)
    assert ("not ready: disk" in out) is (status == "FAIL")


def test_a_run_says_whether_it_goes_on(place, capsys):
    assert cli.main(["run", "--out", "here"]) == 0
    assert "runs in here" in capsys.readouterr().err
    write_records(Path("here/stages.jsonl"), [])
    assert cli.main(["run", "--out", "here"]) == 0
    assert "goes on in here" in capsys.readouterr().err


@pytest.mark.parametrize(("busy", "threads", "asleep"), [(0, 2, False), (60, 2, True), (95, 2, True), (95, 1, False)])
def test_on_a_busy_machine_threads_that_wait_sleep(place, capsys, monkeypatch, busy, threads, asleep):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    assert cli.main(["run", "--set", f"model.threads={threads}"]) == 0
    assert (os.environ.get("OMP_WAIT_POLICY") == "PASSIVE") is asleep
    assert ("of 2 cores busy: this run takes longer" in capsys.readouterr().err) is asleep


def test_a_wait_policy_of_one_s_own_stands(place, capsys, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 100.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert cli.main(["run"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_nothing_before_the_wait_policy_imports_torch():
    code = "import sys; from llama3_lab import cli, doctor, store; import llama3_lab.pipeline.prompts;"
    done = subprocess.run([sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True,
                          text=True, cwd=ROOT, check=True)  # fmt: skip
    assert done.stdout.strip() == "False"


# -- places that take no run


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("/proc/nope", "cannot write /proc/nope: no folder can be made there"),
        ("file", "cannot write file: there is a file of that name"),
        ("file/below", "cannot write file/below: a part of that path is a file"),
        ("file/below/deeper", "a part of that path is a file"),
        ("a" * 300, "the name is too long; choose a shorter one"),
        ("new/" + "a" * 300, "the name is too long; choose a shorter one"),
        ("circle", "cannot write circle: "),
        ("nowhere", "cannot write nowhere: there is a file of that name, or a link that leads nowhere"),
        ("full", "full: not empty, and no run folder"),
    ],
)
def test_a_place_that_takes_no_run_is_said_in_one_line(place, capsys, out, words):
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    Path("file").write_text("mine")
    Path("circle").symlink_to("circle")
    Path("nowhere").symlink_to("not/there")
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    line = fails(capsys, "run", "--out", out)
    assert words in line
    assert "choose" in line
    assert "free some space" not in line
    assert sorted(os.listdir()) == ["circle", "file", "full", "nowhere"]
    assert (Path("file").read_text(), os.listdir("full"), place) == ("mine", ["mine"], [])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "your disk quota is used up; free some space"),
        (errno.EROFS, "the disk is read-only; choose another folder"),
        (errno.EACCES, "you may not write there; choose another folder"),
        (errno.EPERM, "you may not write there; choose another folder"),
        (errno.ENOENT, "no folder can be made there, or it has gone; choose another folder"),
        (errno.ENOTDIR, "a part of that path is a file, not a folder; choose another folder"),
        (errno.ENAMETOOLONG, "the name is too long; choose a shorter one"),
        (errno.ELOOP, "its links lead round in a circle; choose another folder"),
        (errno.EIO, "the disk reports an error; see to it"),
        (errno.EMFILE, "too many files are open; close other programs"),
        (errno.EBUSY, f"{os.strerror(errno.EBUSY)}; choose another folder"),
    ],
)
def test_whatever_keeps_a_folder_from_being_made_is_said_with_what_to_do(place, capsys, monkeypatch, code, words):
    def refuse(self, *_, **__):
        raise OSError(code, os.strerror(code), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert fails(capsys, "run", "--out", "a/b") == (
            f"llama3-lab: error: cannot write a/b: {words}; what was finished before is intact\n"
        ).replace("see to it;", "see to it, or choose another folder;")
    assert (os.listdir(), place) == ([], [])


def test_a_disk_without_room_is_told_from_a_place_that_takes_nothing(place, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "free_disk_gb", lambda folder: 0.0)
    assert "0.00 GB are free for a/b; free some space" in fails(capsys, "run", "--out", "a/b")
    Path("file").write_text("")
    assert "cannot write file/b: a part of that path is a file" in fails(capsys, "run", "--out", "file/b")
    assert os.listdir() == ["file"]  # the folders of the attempt are gone


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["report", "file"], "file/report.json: there is no such file, for a part of that path is a file"),
        (["report", "a" * 300], "the name is too long; check it"),
        (["report", "circle"], "circle/report.json: its links lead round in a circle"),
        (["report", "folder"], "folder/report.json: a folder, not a file"),
        (["run", "--prompts", "folder"], "folder: a folder, not a file; check the name"),
        (["run", "--prompts", "file/x"], "file/x: there is no such file, for a part of that path is a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line(place, capsys, argv, words):
    Path("file").write_text("mine")
    Path("circle").symlink_to("circle")
    Path("folder/report.json").mkdir(parents=True)
    assert words in fails(capsys, *argv)
    assert place == []


def test_a_file_that_one_may_not_read_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything: a real file would prove nothing
    with pytest.raises(ValueError, match="x: you may not read it; check its permissions"):
        disk.read_bytes(Path("x"))


def test_on_a_gpu_the_planner_chooses_says_why_and_the_folder_keeps_what_was_asked(place, monkeypatch, capsys):
    from llama3_lab import doctor_gpu
    from llama3_lab.paper.catalogue import GIB

    seen = {}

    def run_loop(profile, out, placed=None):
        seen.update(asked=profile, placed=placed)
        RunFolder(out, profile).close()
        return REPORT

    fake(monkeypatch, "llama3_lab.pipeline.rounds", run_loop=run_loop)
    monkeypatch.setattr(doctor_gpu, "find_card", lambda device: doctor_gpu.Card("RTX 4090", round(23.5 * GIB), True))
    assert cli.main(["run", "--profile", "8b", "--set", "model.memory_gb=0"]) == 0
    assert seen["asked"].model.method == "auto" and seen["asked"].sft.fit.micro_batch == 0
    assert seen["placed"].model.method == "lora" and seen["placed"].sft.fit.micro_batch > 0
    said = capsys.readouterr().err
    assert "RTX 4090" in said and "rows of 1,024 tokens need" in said
    config = ROOT / "configs" / "accelerate" / "several_gpus.yaml"
    assert cli.main(["run", "--profile", "8b", "--set", "model.memory_gb=0", "--set", f"model.launcher={config}",
                     "--out", "shared"]) == 0  # fmt: skip
    processes = int(yaml.safe_load(config.read_text())["num_processes"])
    share = 32 // processes
    assert processes > 1 and share % seen["placed"].sft.fit.micro_batch == 0


def test_without_a_gpu_profile_8b_says_what_to_do(place, capsys):
    assert "llama3-lab doctor --profile 8b" in fails(capsys, "run", "--profile", "8b")
