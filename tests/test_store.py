"""Records survive the way to disk and back; a run survives kills, full disks and altered files."""

import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_lab import disk, records
from llama3_lab.profiles import TINY, Profile, override
from llama3_lab.records import Check, Checkpoint, HealthCheck, PreferencePair, Prompt, Rate
from llama3_lab.store import (
    RunFolder,
    StoreError,
    digest_records,
    digest_settings,
    from_json,
    read_records,
    to_json,
    write_records,
    write_text,
)
from llama3_lab.typed_json import parse_line, to_lines

TEXT = st.text(st.characters(codec=None), max_size=20)
PROMPTS = st.builds(
    Prompt, st.text(min_size=1, max_size=8), TEXT, st.text(max_size=9).map(lambda t: "a" + t),
    st.sampled_from(["train", "validation", "test"]), st.integers(),
    st.builds(Check, st.sampled_from(["number", "tests"]), TEXT, st.lists(TEXT, max_size=3).map(tuple)),
)
NUMBERS = st.floats(allow_nan=False)
RATES = st.builds(Rate, NUMBERS, st.integers(), NUMBERS, NUMBERS, st.integers())
CHECKPOINTS = st.builds(
    Checkpoint, TEXT, TEXT, st.sampled_from(["policy", "reward"]), TEXT, TEXT, TEXT,
    st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
)
PROMPT = Prompt("p1", "arithmetic", "3+4?", "train", 1, Check("number", "7", ("3+4=7",)))


def prompts(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "arithmetic", f"{i}+1?", "train", 1, Check("number", str(i + 1))) for i in range(n)]


def fill(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"w" * 5000)
    (folder / "inside").mkdir()
    (folder / "inside" / "config.json").write_text("{}")


def build(run: RunFolder, name: str = "sft", make=fill, data: str = "d1") -> Checkpoint:
    return run.checkpoint(name, "policy", "base", data, make)


def never(*_: object) -> list[Prompt]:
    raise AssertionError("a finished stage was made again")


# -- records <-> JSON


@given(st.one_of(PROMPTS, RATES, CHECKPOINTS))
@settings(max_examples=200, deadline=None)
def test_every_record_survives_json_text(record):
    line = to_lines([record])
    assert line.count(b"\n") == 1
    assert parse_line(type(record), line, "here") == record


@given(st.lists(PROMPTS, max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_list_of_records_survives_the_disk_and_keeps_its_digest(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_records(path, rows)
    back = read_records(path, Prompt)
    assert back == rows
    assert digest_records(back) == digest_records(rows)


def test_a_profile_survives_and_its_types_come_back():
    back = from_json(Profile, json.loads(json.dumps(to_json(TINY))))
    assert back == TINY
    assert isinstance(back.evaluation.best_of_k, tuple)


def test_numbers_that_json_has_no_word_for_survive():
    row = HealthCheck("sft", "loss", "WARN", math.inf, "r")
    assert to_json(row)["value"] == "inf"
    assert from_json(HealthCheck, to_json(row)) == row
    lost = from_json(HealthCheck, to_json(HealthCheck("sft", "loss", "WARN", math.nan, "r")))
    assert math.isnan(lost.value)


def test_numbers_of_numpy_become_plain_ones():
    import numpy as np

    data = to_json(Rate(np.float32(0.5), np.int64(3), np.float64(0.25), 1.0))
    assert {type(v) for v in data.values()} == {int, float}
    assert from_json(Rate, data) == Rate(0.5, 3, 0.25, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "no field 'colour'"),
        ({"level": None}, "level: must be a int, not None"),
        ({"level": True}, "level: must be a int, not True"),
        ({"split": "dev"}, "split: must be one of train, validation, test, not 'dev'"),
        ({"check": 3}, "check: must be an object with the fields of Check"),
        ({"check": {"kind": "number", "answer": "7", "items": ["a", 2]}}, r"check.items\[1\]: must be a str, not 2"),
        ({"check": {"kind": "number", "answer": "7"}}, "check: field 'items' of Check is missing"),
        ({"text": "  "}, "must not be empty"),
    ],
)
def test_a_wrong_field_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        from_json(Prompt, {**to_json(PROMPT), **change})


def test_a_pair_of_a_tuple_of_pairs_has_two_parts():
    data = to_json(Checkpoint("a", "b", "policy", "c", "d", "e", (("f", "g"),)))
    data["files"][0].append("h")
    with pytest.raises(ValueError, match=r"files\[0\]: must be a list of 2, not of 3"):
        from_json(Checkpoint, data)


def test_none_is_kept_apart_from_a_missing_edit():
    pair = PreferencePair(PROMPT, "a", "b", "better", "annotator", 1.0)
    assert to_json(pair)["edited"] is None
    assert from_json(PreferencePair, to_json(pair)) == pair


def test_what_is_no_record_is_refused():
    with pytest.raises(ValueError, match="cannot write a set"):
        to_json({1, 2})


def test_every_record_of_the_course_can_be_read_back():
    from llama3_lab.typed_json import _reader

    kinds = [k for k in vars(records).values() if isinstance(k, type) and hasattr(k, "__dataclass_fields__")]
    assert len(kinds) > 15
    for kind in kinds:  # a field of a type that the reader does not know would fail on first use
        with pytest.raises(ValueError, match="no field 'no such field'"):
            _reader(kind)({"no such field": 1})


# -- JSONL


@pytest.mark.parametrize(
    ("line", "words"),
    [(b'{"id": "p"', "not JSON"), (b"", "the line is empty"), (b"\xff\xfe", "not UTF-8"), (b"[]", "must be an object"),
     (b"{}", "field 'id' of Prompt is missing"), (b"[" * 100_000, "not JSON")],
)
def test_a_malformed_line_is_named_with_its_number(tmp_path, line, words):
    path = tmp_path / "prompts.jsonl"
    good = to_lines(prompts(6))
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:7: .*{words}") as caught:
        read_records(path, Prompt)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.jsonl: there is no such file"):
        read_records(tmp_path / "nothing.jsonl", Prompt)


def test_no_records_are_an_empty_list(tmp_path):
    write_records(tmp_path / "none.jsonl", [])
    assert read_records(tmp_path / "none.jsonl", Prompt) == []


def test_the_digest_depends_on_order_and_content():
    a, b = prompts(2)
    assert digest_records([a, b]) != digest_records([b, a])
    assert digest_settings(TINY.sft) != digest_settings(override(TINY, "sft.max_steps=3").sft)


# -- disks that refuse


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    write_records(path, prompts(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a real write that stops in the middle
    try:
        with pytest.raises(StoreError, match="cannot write .*rows.jsonl: the file is larger"):
            write_records(path, prompts(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_records(path, Prompt) == prompts(3)
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_no_space_is_said_in_one_line(tmp_path):
    disk.temporary_name(tmp_path / "page.html").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="page.html: the disk is full; free some space") as caught:
        write_text(tmp_path / "page.html", "text")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "read-only"), (errno.EACCES, "may not write"), (errno.EDQUOT, "quota")],
)
def test_whatever_the_system_call_says_earlier_results_stay(tmp_path, monkeypatch, code, words):
    with RunFolder(tmp_path / "run", TINY) as run:
        rows = run.once("prompts", Prompt, lambda: prompts(3))
        checkpoint = build(run)

        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            for attempt in (lambda: run.once("more", Prompt, lambda: prompts(2)), lambda: build(run, "dpo")):
                with pytest.raises(StoreError, match=words):
                    attempt()
    with RunFolder(tmp_path / "run", TINY) as run:
        assert run.once("prompts", Prompt, never) == rows
        assert build(run, make=never) == checkpoint
        assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["sft"]
        assert len(run.once("more", Prompt, lambda: prompts(2))) == 2


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"),
     RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })')],
)
def test_a_disk_that_fills_while_a_model_is_saved(tmp_path, error):
    def make(folder: Path) -> None:
        fill(folder)
        raise error

    with RunFolder(tmp_path / "run", TINY) as run:
        with pytest.raises(StoreError, match="the disk is full"):
            build(run, make=make)
        assert not any((run.path / "checkpoints").iterdir())


# -- the run folder


def test_a_finished_stage_is_read_not_made_and_keeps_its_seconds(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run:
        rows, made = run.once("round1/prompts", Prompt, lambda: prompts(3)), build(run)
        seconds = run.seconds("round1/prompts"), run.seconds("sft")
    with RunFolder(tmp_path / "run", TINY) as run:
        assert run.once("round1/prompts", Prompt, never) == rows == prompts(3)
        assert build(run, make=never) == made
        assert (run.seconds("round1/prompts"), run.seconds("sft")) == seconds
        assert run.total_seconds() == sum(seconds) > 0
        assert run.path_of(made) == tmp_path / "run" / "checkpoints" / "sft"
        assert [f for f, _ in made.files] == ["inside/config.json", "weights.bin"]
    ledger = (tmp_path / "run" / "stages.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in ledger] == ["round1/prompts", "sft"]


def test_an_unfinished_stage_has_no_seconds(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run, pytest.raises(ValueError, match="'sft' has not finished"):
        run.seconds("sft")


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", ".hidden", "settings", "stages", "", "a/.."])
def test_a_stage_stays_inside_its_folder(tmp_path, name):
    with RunFolder(tmp_path / "run", TINY) as run, pytest.raises(ValueError, match="cannot be called"):
        run.once(name, Prompt, list)


def test_other_settings_are_refused_and_named(tmp_path):
    RunFolder(tmp_path / "run", TINY).close()
    other = override(override(TINY, "sampling.k=8"), "sft.max_steps=3")
    with pytest.raises(ValueError, match=r"sampling\.k \(there 16, now 8\); sft\.fit\.max_steps \(there \d+, now 3\)"):
        RunFolder(tmp_path / "run", other)
    RunFolder(tmp_path / "run", TINY).close()


def test_a_folder_with_other_things_is_no_run_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty, and no run folder"):
        RunFolder(tmp_path, TINY)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_closes(tmp_path):
    with RunFolder(tmp_path / "run", TINY), pytest.raises(ValueError, match="another run is writing it"):
        RunFolder(tmp_path / "run", TINY)
    RunFolder(tmp_path / "run", TINY).close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.write_bytes(b"w" * 4999 + b"x"), "weights.bin: altered or cut off"),
        (lambda f: f.write_bytes(b"w" * 4000), "weights.bin: altered or cut off"),
        (lambda f: f.unlink(), "weights.bin: missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_deleting_it_helps(tmp_path, damage, words):
    with RunFolder(tmp_path / "run", TINY) as run:
        made = build(run)
        rows = run.once("later", Prompt, lambda: prompts(2))
        damage(run.path_of(made) / "weights.bin")
        with pytest.raises(ValueError, match=rf"{words}.* delete the folder .*checkpoints/sft to build it again"):
            build(run, make=never)
        shutil.rmtree(run.path_of(made))
        assert build(run) == made
        assert run.once("later", Prompt, never) == rows  # the same bytes again: what follows still holds


def test_a_stage_made_again_otherwise_makes_the_later_ones_again_and_keeps_the_earlier(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run:
        first = run.once("first", Prompt, lambda: prompts(1))
        run.once("second", Prompt, lambda: prompts(2))
        build(run)
        (run.path / "second.jsonl").unlink()
        assert run.once("second", Prompt, lambda: prompts(3)) == prompts(3)
    with RunFolder(tmp_path / "run", TINY) as run:
        assert run.once("first", Prompt, never) == first
        assert run.once("second", Prompt, never) == prompts(3)
        assert build(run, data="d2").data_digest == "d2"
    ledger = (tmp_path / "run" / "stages.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in ledger] == ["first", "second", "sft"]


def test_records_altered_on_disk_are_named(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run:
        run.once("prompts", Prompt, lambda: prompts(3))
        path = run.path / "prompts.jsonl"
        path.write_text(path.read_text().replace("1+1", "1+9"))
        with pytest.raises(ValueError, match=r"prompts\.jsonl: altered or cut off.*delete it"):
            run.once("prompts", Prompt, never)


def test_a_checkpoint_of_other_rows_is_not_taken(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run:
        build(run)
        with pytest.raises(ValueError, match=r"made with another training data \(d1, now d2\)"):
            build(run, make=never, data="d2")


def test_a_checkpoint_of_no_files_is_refused(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run, pytest.raises(ValueError, match="nothing was written"):
        build(run, make=lambda folder: None)


def test_a_cut_off_last_line_of_the_ledger_is_a_stage_that_did_not_finish(tmp_path):
    with RunFolder(tmp_path / "run", TINY) as run:
        run.once("one", Prompt, lambda: prompts(1))
        run.once("two", Prompt, lambda: prompts(2))
    ledger = tmp_path / "run" / "stages.jsonl"
    whole = ledger.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first, first + 1, len(whole) - 20, len(whole) - 1):
        ledger.write_bytes(whole[:cut])
        with RunFolder(tmp_path / "run", TINY) as run:
            assert run.once("one", Prompt, never) == prompts(1)
            assert run.once("two", Prompt, lambda: prompts(2)) == prompts(2)
            made_again = (tmp_path / "run" / "stages.jsonl").read_text().splitlines()
            assert [json.loads(line)["name"] for line in made_again] == ["one", "two"]


@dataclass(frozen=True)
class Kill:
    """Where a run is killed: the code that stands in for the stage, and what must not be left."""

    stage: str
    stage_code: str


KILLS = [
    Kill("records", "run.once('second', Prompt, lambda: os.kill(os.getpid(), 9))"),
    Kill("half a file", "disk.os.fsync = lambda h: os.kill(os.getpid(), 9); run.once('second', Prompt, lambda: rows)"),
    Kill("half a checkpoint",
         "half = lambda d: ((d / 'half').write_text('x'), os.kill(os.getpid(), 9));"
         "run.checkpoint('sft', 'policy', 'base', 'd1', half)"),
    Kill("before the ledger line",
         "run._finish = lambda s: os.kill(os.getpid(), 9);"
         "run.checkpoint('sft', 'policy', 'base', 'd1', lambda d: (d / 'w').write_text('x'))"),
]


@pytest.mark.parametrize("kill", KILLS, ids=[k.stage for k in KILLS])
def test_a_killed_run_resumes_after_its_last_finished_stage(tmp_path, kill):
    code = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from llama3_lab import disk
        from llama3_lab.profiles import TINY
        from llama3_lab.records import Check, Prompt
        from llama3_lab.store import RunFolder
        rows = [Prompt("p0", "arithmetic", "0+1?", "train", 1, Check("number", "1"))]
        run = RunFolder(Path({str(tmp_path / "run")!r}), TINY)
        run.once("first", Prompt, lambda: rows)
        {kill.stage_code}
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with RunFolder(tmp_path / "run", TINY) as run:
        assert run.once("first", Prompt, never) == prompts(1)
        assert run.once("second", Prompt, lambda: prompts(2)) == prompts(2)
        made = build(run)
        assert [f for f, _ in made.files] == ["inside/config.json", "weights.bin"]
        assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["sft"]
        assert not list(run.path.rglob("*.partial"))


def test_an_interrupt_leaves_no_half_checkpoint(tmp_path):
    def interrupt(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with RunFolder(tmp_path / "run", TINY) as run:
        with pytest.raises(KeyboardInterrupt):
            build(run, make=interrupt)
        assert not any((run.path / "checkpoints").iterdir())


# -- a folder that several notebooks share


def shared(path: Path, told=None) -> RunFolder:
    return RunFolder(path / "run", TINY, shared=True, told=told)


def stages_in(path: Path) -> list[str]:
    return [json.loads(line)["name"] for line in (path / "run" / "stages.jsonl").read_text().splitlines()]


def test_a_second_notebook_sees_what_the_first_made_after_both_were_opened(tmp_path):
    one, two = shared(tmp_path), shared(tmp_path)
    rows, made = one.once("prompts", Prompt, lambda: prompts(3)), build(one)
    assert two.once("prompts", Prompt, never) == rows
    assert build(two, make=never) == made
    assert two.seconds("sft") == one.seconds("sft")
    two.once("more", Prompt, lambda: prompts(1))
    assert one.once("more", Prompt, never) == prompts(1)
    assert stages_in(tmp_path) == ["prompts", "sft", "more"]


def test_a_stage_says_once_whether_it_was_kept_or_made(tmp_path):
    first: list[str] = []
    second: list[str] = []
    one = shared(tmp_path, first.append)
    for _ in range(2):
        one.once("prompts", Prompt, lambda: prompts(3))
        build(one)
    assert first == ["prompts: made in 0 s", "sft: made in 0 s"]
    two = shared(tmp_path, second.append)
    for _ in range(2):
        build(two, make=never)
    assert second == ["sft: kept from before"]


def test_a_missing_stage_is_looked_for_again_before_it_is_declared_missing(tmp_path):
    one, two = shared(tmp_path), shared(tmp_path)

    def missing() -> list[Prompt]:
        raise ValueError("not measured yet")

    with pytest.raises(ValueError, match="not measured yet"):
        two.once("scores", Prompt, missing)
    one.once("scores", Prompt, lambda: prompts(2))
    assert two.once("scores", Prompt, missing) == prompts(2)


def test_a_stage_may_use_another_while_it_is_made(tmp_path):
    run = shared(tmp_path)
    rows = run.once("outer", Prompt, lambda: run.once("inner", Prompt, lambda: prompts(2)))
    assert rows == prompts(2)
    assert stages_in(tmp_path) == ["inner", "outer"]
    assert shared(tmp_path).once("inner", Prompt, never) == rows  # and the lock is free again


MAKER = """
import sys, time
from pathlib import Path
from llama3_lab.profiles import TINY
from llama3_lab.records import Check, Prompt
from llama3_lab.store import RunFolder
def make():
    print("making", flush=True)
    sys.stdin.readline()
    return [Prompt("p0", "arithmetic", "0+1?", "train", 1, Check("number", "1"))]
RunFolder(Path(sys.argv[1]), TINY, shared=True).once("slow", Prompt, make)
"""


@pytest.fixture
def maker(tmp_path):
    """Another process that is making the stage "slow" until it reads a line."""
    command = [sys.executable, "-c", MAKER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "making\n"
        yield other
        other.kill()


def test_who_needs_a_stage_that_is_being_made_waits_says_so_and_reads_it(tmp_path, maker):
    lines: list[str] = []

    def told(line: str) -> None:
        lines.append(line)
        if "waiting" in line:
            maker.stdin.write("\n")
            maker.stdin.flush()

    assert shared(tmp_path, told).once("slow", Prompt, never) == prompts(1)
    assert lines == ["slow: waiting for another notebook, which makes slow", "slow: kept from before"]


def test_what_is_finished_is_read_without_waiting(tmp_path, maker):
    run = shared(tmp_path)  # opening does not wait either
    with pytest.raises(ValueError, match="'slow' has not finished"):
        run.seconds("slow")


def test_a_notebook_killed_while_it_makes_a_stage_holds_up_nobody(tmp_path, maker):
    maker.kill()
    maker.wait()
    assert shared(tmp_path).once("slow", Prompt, lambda: prompts(2)) == prompts(2)


def test_a_run_of_ones_own_and_a_notebook_exclude_each_other(tmp_path, maker):
    with pytest.raises(ValueError, match="another run is writing it"):
        RunFolder(tmp_path / "run", TINY)
    maker.communicate("\n", timeout=60)
    with RunFolder(tmp_path / "run", TINY) as run:
        assert run.once("slow", Prompt, never) == prompts(1)


def test_a_line_that_another_is_just_writing_is_left_alone(tmp_path):
    one = shared(tmp_path)
    one.once("one", Prompt, lambda: prompts(1))
    ledger = tmp_path / "run" / "stages.jsonl"
    half = ledger.read_bytes() + b'{"name": "tw'
    ledger.write_bytes(half)
    two = shared(tmp_path)
    assert two.once("one", Prompt, never) == prompts(1)
    assert ledger.read_bytes() == half
    two.once("two", Prompt, lambda: prompts(2))  # under the lock nobody writes: the half line is of a dead run
    assert stages_in(tmp_path) == ["one", "two"]


def test_a_checkpoint_of_other_data_is_made_again_where_a_run_of_ones_own_refuses(tmp_path):
    lines: list[str] = []
    build(shared(tmp_path))
    again = build(shared(tmp_path, lines.append), data="d2")
    assert again.data_digest == "d2"
    assert lines == ["sft: made again in 0 s"]
    with RunFolder(tmp_path / "run", TINY) as run, pytest.raises(ValueError, match="another training data"):
        build(run, data="d3")


def test_what_rests_on_a_stage_made_again_is_made_again(tmp_path):
    run = shared(tmp_path)
    build(run, "sft")
    run.once("scores-sft-chat", Prompt, lambda: prompts(1))
    build(run, "sft", data="d2")
    assert run.once("scores-sft-chat", Prompt, lambda: prompts(2)) == prompts(2)


def test_only_its_own_notebook_rests_on_a_notebooks_stage(tmp_path):
    run = shared(tmp_path)
    for name in ("06-nll", "round1-policy", "05-best", "06-nll-more"):
        build(run, name)
    run.once("scores-06-nll-chat", Prompt, lambda: prompts(1))
    build(run, "06-nll", data="d2")
    assert stages_in(tmp_path) == ["round1-policy", "05-best", "06-nll"]
    assert build(run, "round1-policy", make=never) and build(run, "05-best", make=never)
    with pytest.raises(AssertionError, match="made again"):
        run.once("scores-06-nll-chat", Prompt, never)


def test_an_altered_file_of_a_shared_run_is_named(tmp_path):
    run = shared(tmp_path)
    run.once("prompts", Prompt, lambda: prompts(2))
    (tmp_path / "run" / "prompts.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"prompts.jsonl: altered or cut off .* delete it to remake it"):
        run.once("prompts", Prompt, never)
    (tmp_path / "run" / "prompts.jsonl").unlink()
    assert run.once("prompts", Prompt, lambda: prompts(2)) == prompts(2)


def test_other_settings_are_refused_in_a_shared_folder_too(tmp_path):
    shared(tmp_path)
    with pytest.raises(ValueError, match=r"made with other settings: sampling.k"):
        RunFolder(tmp_path / "run", override(TINY, "sampling.k=8"), shared=True)
