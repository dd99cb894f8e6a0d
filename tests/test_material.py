"""What a run asks: the small world as before, and published problems whose splits stay apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from published import published, write_published

from llama3_lab.pipeline import material
from llama3_lab.pipeline.prompts import draw_prompts, held_out
from llama3_lab.profiles import EIGHT_B, TINY, override


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_published(folder, train=60, test=12, pairs=30)
    return replace(published(EIGHT_B, folder), name="8b-published")


def numbers(prompts, skill):
    return [int(p.id.rsplit("-", 1)[1]) for p in prompts if p.skill == skill]


def test_the_small_world_s_prompts_are_those_it_always_gave():
    assert material.tests(TINY) == held_out(TINY.data.test_per_skill, "test")
    tests = material.tests(TINY)
    assert material.asked(TINY, 40, 5, "round1", tests) == draw_prompts(10, "train", 5, "round1", tests)
    assert material.skills(TINY.data) == ("arithmetic", "programs", "orderings", "conversation")


def test_published_tests_are_of_the_test_split_and_the_same_whatever_the_seed(profile):
    tests = material.tests(profile)
    assert {p.split for p in tests} == {"test"} and {p.skill for p in tests} == {"gsm8k", "mbpp"}
    assert tests == material.tests(replace(profile, seed=9))
    few = material.tests(override(profile, "data.test_per_skill=5"))
    assert len(few) == 10 and set(few) <= set(tests)


def test_validation_is_every_tenth_training_row_and_never_trains(profile):
    tests = material.tests(override(profile, "evaluation.split=validation"))
    assert {p.split for p in tests} == {"validation"}
    assert sorted(numbers(tests, "gsm8k")) == [1, 11, 21, 31, 41, 51]
    trained = material.asked(profile, 200, 0, "round1", material.tests(profile))
    assert {p.split for p in trained} == {"train"}
    assert not set(numbers(trained, "gsm8k")) & set(numbers(tests, "gsm8k"))


def test_rounds_take_other_problems_and_begin_again_at_the_end(profile):
    tests = material.tests(profile)
    first, second = (material.asked(profile, 40, 0, f"round{i}", tests, start=20 * (i - 1)) for i in (1, 2))
    assert len(first) == len(second) == 40
    assert not set(numbers(first, "gsm8k")) & set(numbers(second, "gsm8k"))
    pool = len(set(numbers(material.asked(profile, 1000, 0, "all", tests), "gsm8k")))
    again = material.asked(profile, 40, 0, "late", tests, start=pool)
    assert set(numbers(again, "gsm8k")) == set(numbers(first, "gsm8k"))
    assert len({p.id for p in [*first, *second, *again]}) == 120


def test_a_skill_with_too_few_problems_gives_each_once(profile):
    chosen = material.asked(profile, 1000, 0, "all", material.tests(profile))
    for skill in ("gsm8k", "mbpp"):
        found = numbers(chosen, skill)
        assert 40 <= len(found) == len(set(found)) <= 60


def test_the_seed_decides_the_order(profile):
    tests = material.tests(profile)
    one, other = (material.asked(replace(profile, seed=s), 20, 0, "round1", tests) for s in (0, 1))
    assert set(numbers(one, "gsm8k")) != set(numbers(other, "gsm8k"))


def test_demonstrations_are_the_sets_own_solutions_and_right(profile):
    from llama3_lab.benchmarks.checkers import check_text

    rows = material.written(override(profile, "data.demonstrations=60"), 0, material.tests(profile))
    assert len(rows) == 60
    for d in rows:
        assert check_text(d.prompt, d.text).outcome == "pass", d.text
    working = next(d.text for d in rows if d.prompt.skill == "gsm8k")
    assert "<<" not in working and working.splitlines()[-1].startswith("Answer: ")


def test_training_rows_that_overlap_a_test_problem_are_left_out_and_counted(profile, tmp_path, capsys):
    lines = Path(profile.data.benchmarks.gsm8k_train).read_text().splitlines()
    leaked = json.loads(lines[1])
    (tmp_path / "test.jsonl").write_text(json.dumps(leaked) + "\n")
    spoiled = override(profile, f"data.benchmarks.gsm8k_test={tmp_path / 'test.jsonl'}")
    tests = material.tests(spoiled)
    chosen = material.asked(spoiled, 1000, 0, "all", tests)
    assert leaked["question"] not in {p.text for p in chosen}
    said = capsys.readouterr().err
    assert "gsm8k: " in said and "overlap a test problem" in said


def test_the_first_batch_is_the_open_set(profile):
    pairs = material.first_pairs(override(profile, "reward.pairs=20"))
    assert len(pairs) == 20 and {p.prompt.split for p in pairs} == {"train"}
    assert all(p.chosen != p.rejected for p in pairs)


def test_no_test_problems_is_said_in_one_line(profile, tmp_path):
    rows = [json.loads(line) for line in Path(profile.data.benchmarks.mbpp).read_text().splitlines()]
    kept = [r for r in rows if r["task_id"] > 510]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    with pytest.raises(ValueError, match="mbpp: no test problems"):
        material.tests(override(profile, f"data.benchmarks.mbpp={tmp_path / 'mbpp.jsonl'}"))
