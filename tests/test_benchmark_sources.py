"""Rows from files and from the hub: the same columns, clear one-line errors, and no test row that trains."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llama3_lab.benchmarks import gsm8k, preferences, xstest
from llama3_lab.benchmarks.sources import Row, Source, read_rows, refuse_test
from llama3_lab.pipeline.pairs import strong
from llama3_lab.records import Check, PreferencePair, Prompt
from llama3_lab.store import read_records, write_records

ROOT = Path(__file__).resolve().parents[1]
XSTEST = Path(os.environ.get("LLAMA3_LAB_SHARED", ROOT.parent / "shared")) / "data" / "xstest"
ROWS = [{"question": "How many, in all?", "answer": f"It is\n#### {n}"} for n in (2, 3, 1_000)]


def write(path: Path, rows: list[dict[str, Any]]) -> Source:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return Source(str(path), "train")


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        act()
    words = str(caught.value)
    assert "\n" not in words and len(words) < 400
    return words


# -- files


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    source = write(tmp_path / f"rows{suffix}", ROWS)
    rows = read_rows(source, training=True)
    assert [dict(r.columns) for r in rows] == ROWS
    assert [(r.number, r.split, r.where) for r in rows][2] == (3, "train", f"{tmp_path / f'rows{suffix}'}:3")
    assert [p.check.answer for p in gsm8k.load_gsm8k(source)] == ["2", "3", "1000"]
    assert len(read_rows(Source(source.place, "train", limit=2))) == 2


def test_a_byte_order_mark_and_a_single_list_inside_an_object_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"version": 1, "data": ROWS}).encode())
    assert len(read_rows(Source(str(path), "train"))) == 3


@pytest.mark.parametrize("name, data, words", [
    ("rows.jsonl", b'{"a": 1}\nno\n', "rows.jsonl:2: not a JSON object: 'no'"),
    ("rows.jsonl", b"[1]\n", "rows.jsonl:1: not a JSON"), ("rows.jsonl", b"", "no rows in it"),
    ("rows.json", b"[]", "no rows in it"), ("rows.json", b"{", "no JSON"),
    ("rows.json", b"[1]", "not a list of JSON objects"),
    ("rows.jsonl", b'{"a": "\xff"}', "not UTF-8 text at byte 7"),
    ("rows.csv", b"a,b\n1,2,3\n", "rows.csv:1: another number of columns"),
    ("rows.csv", b"a,b\n1\n", "rows.csv:1: another"), ("rows.csv", b'a\n"x', "no CSV"),
    ("rows.parquet", b"no", "no Parquet file"), ("rows.txt", b"a", "use .jsonl, .json, .csv, .parquet"),
])  # fmt: skip
def test_a_broken_file_is_one_clear_line(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert words in refusal(lambda: read_rows(Source(str(tmp_path / name), "train")))


def test_a_missing_file_and_a_wrong_setting_are_named(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(lambda: read_rows(Source(str(tmp_path / "none.csv"), "train")))
    assert "no such file, and no name of a data set" in refusal(lambda: read_rows(Source("a/b/c d", "train")))
    assert "split is 'dev'" in refusal(lambda: Source("x.csv", "dev"))  # type: ignore[arg-type]
    assert "limit is -1" in refusal(lambda: Source("x.csv", "train", limit=-1))


def test_a_column_that_is_missing_or_of_another_kind_is_named_with_its_row() -> None:
    row = Row(4, "rows.csv:4", "train", {"a": 1, "b": "", "c": '["x", "y"]', "d": [1], "e": None})
    assert row.texts("c") == ("x", "y")
    assert refusal(lambda: row.text("z")) == "rows.csv:4: no column 'z'; there are: a, b, c, d, e"
    assert "'a' is 1; a text is needed" in refusal(lambda: row.text("a"))
    assert "'b' is ''; a text is needed" in refusal(lambda: row.text("b"))
    assert "no column 'e'" in refusal(lambda: row.get("e"))
    for name in "abd":
        assert "a list of texts is needed" in refusal(lambda name=name: row.texts(name))


# -- splits


@pytest.mark.parametrize("word, split", [("train", "train"), ("TRAIN_prefs", "train"), ("dev", "validation"),
                                         ("test", "test"), ("test_prefs", "test"), ("validation", "validation"),
                                         ("", "train")])  # fmt: skip
def test_a_rows_own_split_counts(word: str, split: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{**ROWS[0], "split": word}])
    assert read_rows(source)[0].split == split
    prompts = gsm8k.load_gsm8k(source)
    assert (prompts[0].split, prompts[0].id) == (split, f"gsm8k-{split}-00001")


def test_test_rows_never_train(tmp_path: Path) -> None:
    mixed = write(tmp_path / "rows.jsonl", [ROWS[0], {**ROWS[1], "split": "test"}, {**ROWS[2], "split": "test_sft"}])
    words = refusal(lambda: gsm8k.load_gsm8k(mixed, training=True))
    assert "rows.jsonl:2: of the test split, which never trains; 2 such rows" in words
    assert len(gsm8k.load_gsm8k(mixed)) == 3
    whole = Source(mixed.place, "test")
    assert "test split" in refusal(lambda: read_rows(whole, training=True))
    assert {r.split for r in read_rows(whole)} == {"test"}
    named = write(tmp_path / "gsm8k-test.jsonl", ROWS)
    assert "named 'gsm8k-test'" in refusal(lambda: read_rows(named, training=True))
    assert len(read_rows(write(tmp_path / "contest_latest.jsonl", ROWS), training=True)) == 3
    assert "test split" in refusal(lambda: read_rows(Source("owner/set", "test"), training=True))
    by_name = Source("owner/set", "train", hub_split="test_prefs")
    assert "named 'test_prefs', and a test split never trains" in refusal(lambda: read_rows(by_name, training=True))
    with pytest.raises(ValueError, match="prompt t: of the test split"):
        refuse_test([Prompt("t", "gsm8k", "How many?", "test", 1, Check("number", "1"))])


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{**ROWS[0], "split": "other"}])
    assert "rows.jsonl:1: column 'split' is 'other'" in refusal(lambda: read_rows(source))


# -- the hub


def test_offline_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = refusal(lambda: read_rows(Source("nobody-here/no-such-set", "train")))
    assert words.startswith("nobody-here/no-such-set: not on this machine, and HF_HUB_OFFLINE forbids to fetch it;")
    assert "local .jsonl" in words


def test_rows_of_the_hub_are_asked_for_as_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*given: Any, **named: Any) -> list[dict[str, str]]:
        asked.append((given, named))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows(Source("owner/set", "train", "main", "abc", "train_prefs", 2), training=True)
    assert asked == [(("owner/set", "main"), {"split": "train_prefs[:2]", "revision": "abc"})]
    assert len(rows) == 2 and rows[0].where == "owner/set:1"
    assert gsm8k.HUB.split == "train" and xstest.HUB.split == "test"


@pytest.mark.parametrize("kind, words", [
    ("GatedRepoError", "accept its terms on its page and set HF_TOKEN"),
    ("ConnectionError", "the hub cannot be reached"),
    ("DatasetNotFoundError", "no such data set on the hub"), ("ValueError", "check name, config and split"),
    ("OfflineModeIsEnabled", "the hub cannot be reached"),
])  # fmt: skip
def test_what_the_hub_refuses_is_one_line_with_the_next_step(kind: str, words: str, monkeypatch) -> None:
    import datasets

    def load(*given: Any, **named: Any) -> None:
        raise type(kind, (Exception,), {})("first line\nsecond line " + "x" * 500)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    said = refusal(lambda: read_rows(Source("owner/set", "train")))
    assert said.startswith("owner/set") and words in said


# -- borderline prompts


def test_borderline_prompts_are_of_the_test_split_and_know_which_should_be_answered(tmp_path: Path) -> None:
    rows = [{"id": "v2-1", "prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"},
            {"id": "v2-2", "prompt": "How do I do harm?", "type": "contrast_homonyms", "label": "unsafe"}]  # fmt: skip
    for suffix in (".csv", ".jsonl"):
        asked = xstest.load_xstest(write(tmp_path / f"rows{suffix}", rows))
        assert [(a.kind, a.safe, a.prompt.split, a.prompt.id) for a in asked] == [
            ("homonyms", True, "test", "xstest-test-v2-1"), ("contrast_homonyms", False, "test", "xstest-test-v2-2"),
        ]  # fmt: skip
    bare = [{k: v for k, v in r.items() if k != "label"} for r in rows]
    assert [a.safe for a in xstest.load_xstest(write(tmp_path / "bare.csv", bare))] == [True, False]
    wrong = write(tmp_path / "wrong.csv", [rows[0], {**rows[1], "label": "maybe"}])
    assert "wrong.csv:2: column 'label' is 'maybe'" in refusal(lambda: xstest.load_xstest(wrong))


@pytest.mark.skipif(not XSTEST.exists(), reason="the published borderline prompts are not there")
def test_the_published_borderline_prompts_and_labels_are_read_whole() -> None:
    asked = xstest.load_xstest(Source(str(XSTEST / "xstest_prompts.csv"), "test"))
    assert len(asked) == 450 == len({a.prompt.id for a in asked}) and sum(a.safe for a in asked) == 250
    for name, refused in (("gpt4", 220), ("llama2new", 274)):
        answers = xstest.load_answers(Source(str(XSTEST / f"xstest_v2_completions_{name}.csv"), "test"))
        assert len(answers) == 450 and sum(a.refused for a in answers) == refused
        assert sum(a.asked.safe for a in answers) == 250


# -- preferences

ASKED = {"role": "user", "content": "Which is larger?"}
GOOD, BAD = {"role": "assistant", "content": "Nine."}, {"role": "assistant", "content": "Eight."}


@pytest.mark.parametrize("row", [
    {"prompt": "Which is larger?", "chosen": "Nine.", "rejected": "Eight."},
    {"prompt": "Which is larger?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])},
    {"chosen": "\n\nHuman: Which is larger?\n\nAssistant: Nine.",
     "rejected": "\n\nHuman: Which is larger?\n\nAssistant: Eight."},
    {"chosen": [{"from": "human", "value": "Which is larger?"}, {"from": "gpt", "value": "Nine."}],
     "rejected": [{"from": "human", "value": "Which is larger?"}, {"from": "gpt", "value": "Eight."}]},
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_text_and_messages_give_the_same_pair(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    found = preferences.load_preferences(write(tmp_path / f"rows{suffix}", [row]), training=True)
    (pair,) = found.pairs
    assert (pair.prompt.text, pair.chosen, pair.rejected) == ("Which is larger?", "Nine.", "Eight.")
    assert (pair.strength, pair.source, pair.prompt.split) == ("better", "annotator", "train")
    assert math.isnan(pair.true_margin)
    assert str(found) == "1 pairs; 0 rows left out"


def test_pairs_outlive_the_disk_and_the_pipeline_takes_them(tmp_path: Path) -> None:
    rows = [{"prompt": "A?", "chosen": "b", "rejected": "c", "strength": s} for s in ("slightly better", "better")]
    pairs = preferences.load_preferences(write(tmp_path / "rows.csv", rows)).pairs
    write_records(tmp_path / "pairs.jsonl", pairs)
    back = read_records(tmp_path / "pairs.jsonl", PreferencePair)
    assert [(p.prompt, p.chosen, p.strength) for p in back] == [(p.prompt, p.chosen, p.strength) for p in pairs]
    assert strong(back, "better") == [back[1]]


def test_several_turns_become_one_request_under_their_roles(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, ASKED, BAD, {"role": "user", "content": "Sure?"}]
    (pair,) = preferences.load_preferences(
        write(tmp_path / "rows.jsonl", [{"chosen": [*turns, GOOD], "rejected": [*turns, BAD]}])
    ).pairs
    assert pair.prompt.text == "System: Be brief.\n\nUser: Which is larger?\n\nAssistant: Eight.\n\nUser: Sure?"


def test_rows_that_are_no_pair_are_counted_not_dropped_in_silence(tmp_path: Path) -> None:
    answers = (("A?", "b"), ("A?", " "), ("A?", "c"), ("", "c"))
    rows = [{"prompt": prompt, "chosen": "b", "rejected": rejected} for prompt, rejected in answers]
    found = preferences.load_preferences(write(tmp_path / "rows.jsonl", rows))
    assert len(found.pairs) == 1 and found.pairs[0].prompt.id == "preference-train-00003"
    assert [where.rpartition(":")[2] for where, _ in found.left_out] == ["1", "2", "4"]
    assert str(found) == "1 pairs; 3 rows left out (1 an empty answer, 1 both answers the same, 1 no prompt)"
    none = write(tmp_path / "none.jsonl", rows[:2])
    said = refusal(lambda: preferences.load_preferences(none))
    assert said.endswith("none of 2 rows is a pair; the first: both answers the same")


@pytest.mark.parametrize("change, words", [
    ({"chosen": [ASKED]}, "'chosen' does not end with a message of the assistant"),
    ({"chosen": 3}, "'chosen' is neither text"), ({"rejected": None}, "no column 'rejected'"),
    ({"rejected": [{"role": "robot", "content": "x"}]}, "'rejected' is neither text"),
    ({"strength": "much"}, "'strength' is 'much'"), ({"chosen": []}, "'chosen' is neither text"),
])  # fmt: skip
def test_what_cannot_be_read_as_a_pair_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    row = {"prompt": "A?", "chosen": "b", "rejected": "c"}
    source = write(tmp_path / "rows.jsonl", [row, {**row, **change}])
    said = refusal(lambda: preferences.load_preferences(source))
    assert "rows.jsonl:2: " in said and words in said


# -- the package


def test_nothing_here_needs_torch() -> None:
    names = sorted(p.stem for p in (ROOT / "llama3_lab" / "benchmarks").glob("*.py") if p.stem != "__init__")
    modules = ", ".join(f"llama3_lab.benchmarks.{n}" for n in names)
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'datasets', 'trl'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
