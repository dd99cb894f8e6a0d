"""The figures of the lesson on rejection sampling say what they are given, in pictures and in words."""

import re

import pytest

from llama3_lab.course.figures import rejection_sampling as figures
from llama3_lab.course.views import describe
from llama3_lab.pipeline.reports import compare, rate
from llama3_lab.records import BestOfK, Candidate, Check, Judged, Prompt, PromptScore, Verdict


def prompt(n: int, skill: str = "arithmetic", level: int = 1) -> Prompt:
    return Prompt(f"p{n}", skill, f"Ask {n}.", "train", level, Check("number", "1"))


def judged(p: Prompt, outcome: str = "pass") -> Judged:
    return Judged(Candidate(p, "Answer: 1", "first", 1.0, 0, 3, True, -1.0), Verdict(outcome, "number", ""), 0.0)


def rows(values: list[float]) -> list[PromptScore]:
    return [PromptScore(f"p{i}", "arithmetic", 1, v, v, v, v, 1.0, 3.0) for i, v in enumerate(values)]


PROMPTS = [prompt(0), prompt(1, level=2), prompt(2, level=3), prompt(3, level=3), prompt(4, "conversation", 3)]
HALF, ALL = rate([0.0, 1.0] * 10), rate([1.0] * 20)
CURVE = BestOfK("orderings", "any right", (1, 4), (rate([0.25] * 9 + [0.5]), rate([0.5] * 9 + [1.0])))
FIGURES = {
    "rules": figures.figure_rules({"both": {"arithmetic": (HALF, ALL), "conversation": (ALL, HALF)},
                                   "strict": {"arithmetic": (HALF, HALF), "conversation": (ALL, ALL)}}),
    "pass@K": figures.figure_pass_at_k({"by skill": [CURVE], "by level": [CURVE, CURVE]}),
    "levels": figures.figure_levels({"both": [ALL, HALF], "strict": [HALF, HALF]}),
    "temperature": figures.figure_temperature({0.5: (HALF, rate([1.0] * 20, 16), 3.5), 1.3: (HALF, ALL, 8.0)}),
    "differences": figures.figure_differences([
        compare("a over b", rows([1.0] * 9 + [0.5]), rows([0.0] * 9 + [0.5]), "sampled", "arithmetic"),
        compare("b over a", rows([0.0] * 9 + [0.5]), rows([1.0] * 9 + [0.5]), "sampled", "arithmetic"),
        compare("a over a", rows([0.0, 0.5] * 5), rows([0.5, 0.0] * 5), "sampled", "arithmetic")]),
}  # fmt: skip
SAID = {
    "rules": ["both", "strict", "conversation 1.00 [0.84, 1.00]; 0.50 [0.30, 0.70]"],
    "pass@K": ["by level", "orderings (n=10): K=1 0.28", "K=4 0.55"],
    "levels": ["both: level 1 1.00 [0.84, 1.00]; level 2 0.50 [0.30, 0.70]", "keep an answer"],
    "temperature": ["0.5: pass@1 0.50 [0.30, 0.70]; pass@16 1.00", "3.5 different answers", "n=20"],
    "differences": ["a over b (sampled, arithmetic): +0.900", "better", "worse", "inconclusive", "n=10"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_and_its_twin_says_the_same(name):
    figure = FIGURES[name]
    assert figure._repr_png_().startswith(b"\x89PNG")
    for words in SAID[name]:
        assert words in describe(figure)


def test_colour_is_never_alone():
    looks = [(marker, str(line)) for _, marker, line in figures.LOOKS]
    assert len(set(looks)) == len(looks)
    assert {line.get_marker() for line in FIGURES["differences"].axes[0].lines} >= {">", "<", "o"}


def test_the_intervals_of_a_twin_are_those_of_the_rates():
    numbers = re.findall(r"\d\.\d\d", figures.describe_levels({"x": [HALF]}))
    assert numbers == [f"{v:.2f}" for v in (HALF.value, HALF.low, HALF.high)]


def test_covered_has_one_row_a_prompt_and_counts_a_prompt_once():
    kept = [judged(PROMPTS[0]), judged(PROMPTS[0]), judged(PROMPTS[3], "fail")]
    found = figures.covered(PROMPTS, kept)
    assert [r.prompt_id for r in found] == [p.id for p in PROMPTS]
    assert [r.at_k for r in found] == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_by_level_leaves_the_open_skill_out():
    one, two, three = figures.by_level(PROMPTS, [judged(p) for p in (PROMPTS[0], PROMPTS[3], PROMPTS[4])])
    assert [(r.value, r.n) for r in (one, two, three)] == [(1.0, 1), (0.0, 1), (0.5, 2)]
