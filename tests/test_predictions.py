"""A prediction is said first, scored against the result, and counted over all notebooks."""

import json

import pytest

from llama3_lab.course.predictions import Prediction, predict, score


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA3_LAB_PREDICTIONS", str(tmp_path / "inside" / "predictions.json"))
    return tmp_path / "inside" / "predictions.json"


def scored(capsys, key="03.a", low=0.2, high=0.6, result=(0.5, 0.4, 0.55)) -> list[str]:
    score(Prediction(key, low, high), *result)
    return capsys.readouterr().out.splitlines()


def test_a_prediction_is_said_before_the_result(capsys):
    assert predict("03.format", 0.5, 1) == Prediction("03.format", 0.5, 1.0)
    assert capsys.readouterr().out == "03.format: you are 90 % sure of 0.5 to 1\n"


@pytest.mark.parametrize(("low", "high", "words"), [(1, 0, "low must be the smaller"), (1, 1, "must be the smaller"),
                                                    ("a", 1, "low is 'a'"), (0, float("nan"), "high is nan"),
                                                    (None, 1, "low is None"), (True, 2, "low is True")])  # fmt: skip
def test_what_is_no_interval_is_refused(low, high, words):
    with pytest.raises(ValueError, match=words):
        predict("03.a", low, high)


@pytest.mark.parametrize(
    ("result", "words"),
    [((0.5, 0.4, 0.55), "holds 0.50 [0.40, 0.55]. It was 0.40 wide; the result's own interval is 0.15 wide."),
     ((0.6, 0.6, 0.6), "holds 0.60 [0.60, 0.60]. "),
     ((0.55, 0.45, 0.65), "holds 0.55 [0.45, 0.65], though not all of its interval."),
     ((0.65, 0.55, 0.75), "misses 0.65 [0.55, 0.75], but not all of its interval."),
     ((0.9, 0.8, 0.95), "misses 0.90 [0.80, 0.95]. ")],
)
def test_a_result_is_held_or_missed(file, capsys, result, words):
    assert words in scored(capsys, result=result)[0]


def test_the_score_runs_over_keys_and_the_newest_result_of_a_key_counts(file, capsys):
    assert scored(capsys)[1].startswith("So far 1 of 1 prediction holds; ")
    assert scored(capsys, "04.b", result=(0.9, 0.8, 1.0))[1].startswith("So far 1 of 2 predictions hold; ")
    assert scored(capsys, "04.b")[1].startswith("So far 2 of 2 ")
    assert sorted(json.loads(file.read_text())) == ["03.a", "04.b"]


def test_who_is_too_sure_or_too_careful_is_told(file, capsys):
    for i in range(8):
        said = scored(capsys, f"03.{i}")[1]
        assert ("dare narrower" in said) is (i == 7)
    for i in range(4):
        said = scored(capsys, f"04.{i}", result=(0.9, 0.8, 1.0))[1]
        assert ("surer than you should be" in said) is (i == 3), "8 of 11 may be bad luck, 8 of 12 hardly"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {}}', ""])
def test_a_damaged_file_counts_as_none(file, capsys, content):
    file.parent.mkdir()
    file.write_text(content)
    assert scored(capsys)[1].startswith("So far 1 of 1 ")


def test_a_place_that_cannot_be_written_costs_a_line_only(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA3_LAB_PREDICTIONS", str(tmp_path / "file" / "predictions.json"))
    said = scored(capsys)
    assert said[1].startswith("(not kept: cannot write ")
    assert said[2].startswith("So far 1 of 1 ")
