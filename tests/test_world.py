"""The world's laws: right answers pass, splits never meet, seeds repeat, raters follow Bradley–Terry."""

import math
import re
from collections import Counter
from random import Random

import pytest

from llama3_lab.pipeline.prompts import LEVELS, draw_prompts, find_leaks, held_out, load_prompts, refuse_leaks
from llama3_lab.pipeline.verdicts import check_text
from llama3_lab.records import CHECKABLE, SKILLS, Check, Prompt
from llama3_lab.store import write_records
from llama3_lab.world import arithmetic, conversation, orderings, programs
from llama3_lab.world.annotators import NOISE, annotate, strength
from llama3_lab.world.corpus import HEADINGS, documents, ideal, make_prompt, write


@pytest.mark.parametrize("skill", CHECKABLE)
@pytest.mark.parametrize("level", LEVELS)
def test_ideal_answers_pass_their_checker(skill, level):
    rng = Random(0)
    for _ in range(40):
        prompt = make_prompt(rng, skill, level, "train")
        verdict = check_text(prompt, ideal(prompt))
        assert verdict.outcome == "pass", (prompt.text, ideal(prompt), verdict)


@pytest.mark.parametrize("skill", CHECKABLE)
def test_authors_are_sometimes_wrong_and_sometimes_right(skill):
    rng = Random(1)
    outcomes = []
    for i in range(300):
        prompt = make_prompt(rng, skill, 1 + i % 3, "train")
        outcomes.append(check_text(prompt, write(prompt, rng)).outcome == "pass")
    assert 0.25 < sum(outcomes) / len(outcomes) < 0.75


def test_open_answers_are_best_when_complete_brief_and_polite():
    prompt = Prompt(
        "p",
        "conversation",
        "Describe the fox: colour, food.",
        "train",
        2,
        Check("rubric", "Sure! It is red. It eats mice.", ("It is red.", "It eats mice.")),
    )
    quality = conversation.quality
    assert quality(prompt, "Sure! It is red. It eats mice.") == conversation.PERFECT
    assert quality(prompt, "Gladly! It eats mice. It is red.") == conversation.PERFECT
    assert quality(prompt, "It is red. It eats mice.") == pytest.approx(3.0)  # not polite
    assert quality(prompt, "Sure! It is red.") == pytest.approx(2.5)  # half of what was asked
    assert quality(prompt, "Sure! It is red. It eats mice. So it goes.") == pytest.approx(3.25)  # filler
    assert quality(prompt, "Oh no. It is red. It eats mice.") == pytest.approx(2.0)  # rude
    assert quality(prompt, "Sure! It is red. It is red. It eats mice.") == pytest.approx(3.25)  # repeats
    assert quality(prompt, "") == 0.0


def _combination(prompt: Prompt) -> tuple:
    words = prompt.text.replace(",", "").replace(".", "").replace("?", "").split()
    if prompt.skill == "arithmetic":
        return tuple(w for w in words if w in arithmetic.VERBS)
    if prompt.skill == "orderings":
        return tuple(sorted({w for w in words if w in orderings.NAMES}))
    if prompt.skill == "programs":
        steps = prompt.text[len("Write f(xs): ") : -1].split(", ")
        return tuple(s.rsplit(" ", 1)[0] if s[-1].isdigit() else s for s in steps)
    animal, asked = prompt.text.rstrip(".").split(": ")
    return (animal.split()[-1], *sorted(asked.split(", ")))


@pytest.mark.parametrize("skill", SKILLS)
def test_no_combination_is_in_two_splits(skill):
    rng = Random(2)
    seen: dict[tuple, str] = {}
    for i in range(900):
        split = ("train", "validation", "test")[i % 3]
        prompt = make_prompt(rng, skill, 1 + i % 3, split)
        assert seen.setdefault(_combination(prompt), split) == split


def test_corpus_holds_no_held_out_question():
    lines = {line for d in documents(5000, seed=3) for line in d.split("\n\n")}
    for split in ("validation", "test"):
        assert not lines & {p.text for p in held_out(100, split)}


def test_a_document_has_one_of_the_headings_and_the_base_format_is_the_commonest():
    found = Counter()
    for document in documents(4000, seed=4):
        for above_question, above_answer in HEADINGS:
            start = re.escape(above_question).replace(r"\{n\}", r"\d+").replace(r"\{m\}", r"\d")
            if re.match(f"{start}\n\n[^\n]+\n\n{re.escape(above_answer)}\n\n.", document):
                found[above_question] += 1
    assert sum(found.values()) == 4000 and found.most_common(1)[0][0] == "Q:"
    for (above_question, _), share in HEADINGS.items():
        assert abs(found[above_question] / 4000 - share) < 0.03


def test_corpus_and_prompts_repeat_with_their_seed_and_change_with_it():
    assert list(documents(50, 5)) == list(documents(50, 5)) != list(documents(50, 6))
    assert draw_prompts(12, "train", 1, "r") == draw_prompts(12, "train", 1, "r")
    assert draw_prompts(12, "train", 1, "r") != draw_prompts(12, "train", 2, "r")


def test_levels_get_harder_by_construction():
    rng = Random(4)
    steps = [len(make_prompt(rng, "arithmetic", level, "train").check.items) for level in LEVELS]
    names = [len(make_prompt(rng, "orderings", level, "train").check.items) for level in LEVELS]
    lines = [make_prompt(rng, "programs", level, "train").check.answer.count("\n") for level in LEVELS]
    assert steps == names == lines == [2, 3, 4]


def test_a_flawed_program_fails_where_the_boundary_is_tested():
    rng = Random(5)
    prompt = next(p for p in (programs.make(rng, 1, "train") for _ in range(2000)) if "keep above" in p.text)
    wrong = prompt.check.answer.replace(" > ", " >= ")
    assert check_text(prompt, wrong).outcome == "fail"


def test_drawn_splits_pass_the_leak_check_and_planted_leaks_do_not(tmp_path):
    test = held_out(60, "test")
    train = draw_prompts(60, "train", 0, "round1", avoid=test)
    refuse_leaks(train, test)
    stolen = next(t for t in test if t.skill == "arithmetic" and t.level == 3)
    copy = Prompt("stolen", stolen.skill, stolen.text.upper(), "train", 3, stolen.check)
    with pytest.raises(ValueError, match="'stolen' overlaps test prompt .*the same words"):
        refuse_leaks([*train, copy], test)
    longer = Prompt("longer", stolen.skill, "Please: " + stolen.text + " Tell me.", "train", 3, stolen.check)
    assert [why for _, t, why in find_leaks([longer], test) if t.id == stolen.id] != []


def test_prompt_files_name_their_mistakes(tmp_path):
    good = draw_prompts(2, "train", 0, "mine")
    path = tmp_path / "prompts.jsonl"
    write_records(path, good)
    assert load_prompts(path) == good
    write_records(path, [*good, good[0]])
    with pytest.raises(ValueError, match=r"prompts.jsonl:9: id .* line"):
        load_prompts(path)
    write_records(path, held_out(1, "test"))
    with pytest.raises(ValueError, match=r'prompts.jsonl:1: split is "test"'):
        load_prompts(path)
    with pytest.raises(ValueError, match=r"missing.jsonl"):
        load_prompts(tmp_path / "missing.jsonl")


def test_raters_follow_bradley_terry():
    prompt = make_prompt(Random(0), "conversation", 1, "train")
    rng, n, gap = Random(0), 4000, 0.9
    wins = sum(annotate(prompt, ("a", "b"), (gap, 0.0), rng).chosen == "a" for _ in range(n))
    expected = 1 / (1 + math.exp(-gap / NOISE))
    assert wins / n == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


def test_strength_has_four_levels_in_order():
    assert [strength(x) for x in (0.0, 0.8, -1.6, 9.0)] == [
        "marginally better", "slightly better", "better", "significantly better"]  # fmt: skip
