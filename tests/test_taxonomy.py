"""Hazard categories: the published names under their two schemes, kept apart, and what a code may be."""

from __future__ import annotations

import pytest

from llama3_lab.safety.taxonomy import (
    LLAMA_GUARD_3,
    LLAMA_GUARD_3_1B,
    SCHEMES,
    TOY,
    TOY_CODES,
    Category,
    by_code,
    categories,
)

# Code, the model card's name, the prompt's name; written out from the card and from the prompt code.
PUBLISHED = (
    ("S1", "Violent Crimes", "Violent Crimes"),
    ("S2", "Non-Violent Crimes", "Non-Violent Crimes"),
    ("S3", "Sex-Related Crimes", "Sex Crimes"),
    ("S4", "Child Sexual Exploitation", "Child Exploitation"),
    ("S5", "Defamation", "Defamation"),
    ("S6", "Specialized Advice", "Specialized Advice"),
    ("S7", "Privacy", "Privacy"),
    ("S8", "Intellectual Property", "Intellectual Property"),
    ("S9", "Indiscriminate Weapons", "Indiscriminate Weapons"),
    ("S10", "Hate", "Hate"),
    ("S11", "Suicide & Self-Harm", "Self-Harm"),
    ("S12", "Sexual Content", "Sexual Content"),
    ("S13", "Elections", "Elections"),
    ("S14", "Code Interpreter Abuse", "Code Interpreter Abuse"),
)


def test_the_fourteen_categories_are_the_published_ones() -> None:
    assert tuple((c.code, c.name, c.prompt_name) for c in LLAMA_GUARD_3) == PUBLISHED


def test_card_and_prompt_differ_in_three_names_only() -> None:
    assert [c.code for c in LLAMA_GUARD_3 if c.name != c.prompt_name] == ["S3", "S4", "S11"]


def test_the_1b_guard_has_no_code_interpreter_abuse() -> None:
    assert LLAMA_GUARD_3[:13] == LLAMA_GUARD_3_1B
    assert "S14" not in {c.code for c in LLAMA_GUARD_3_1B}


def test_the_small_world_has_eight_of_them_in_order() -> None:
    assert tuple(c.code for c in TOY) == TOY_CODES == ("S1", "S2", "S5", "S6", "S7", "S8", "S10", "S13")
    assert set(TOY) < set(LLAMA_GUARD_3_1B)
    assert all(c.name == c.prompt_name for c in TOY), "none of the three that have two names"


def test_schemes_by_name() -> None:
    assert set(SCHEMES) == {"8B", "1B", "toy"}
    assert categories("8B") == LLAMA_GUARD_3 and categories("1B") == LLAMA_GUARD_3_1B and categories("toy") == TOY
    for wrong in ("", "8b", "2", "Llama-Guard-3-8B"):
        with pytest.raises(ValueError, match="unknown scheme .*; there is: 8B, 1B, toy"):
            categories(wrong)


def test_by_code_keeps_the_order_that_was_asked_for() -> None:
    assert [c.name for c in by_code(("S10", "S1"), LLAMA_GUARD_3)] == ["Hate", "Violent Crimes"]
    assert by_code((), LLAMA_GUARD_3) == ()
    assert by_code([c.code for c in TOY], LLAMA_GUARD_3) == TOY


def test_by_code_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="category 'S14' is not one of S1, S2"):
        by_code(("S1", "S14"), LLAMA_GUARD_3_1B)
    with pytest.raises(ValueError, match="category codes S1, S1: one stands there twice"):
        by_code(("S1", "S1"), LLAMA_GUARD_3)


@pytest.mark.parametrize("code", ["S15", "S99", "S1"])
def test_a_custom_category_has_a_code_of_its_own(code: str) -> None:
    assert Category(code, "Spoiling a film", "Spoilers").prompt_name == "Spoilers"


@pytest.mark.parametrize("code", ["", "S", "S0", "S01", "S100", "s1", "1", "S1 ", "S1,S2", "S1\n", "Ｓ1", "S१", "safe"])
def test_a_code_is_s_and_a_number(code: str) -> None:
    with pytest.raises(ValueError, match="category code .*: write S and a number from 1 to 99"):
        Category(code, "Name", "Name")


@pytest.mark.parametrize("name", ["", " ", "\t", "two\nlines", "<END CONVERSATION>", "a < b"])
def test_a_name_is_one_line_that_cannot_forge_a_marker(name: str) -> None:
    for one in ((name, "Fine"), ("Fine", name)):
        with pytest.raises(ValueError, match="category S15: name .* must be one line of text without '<'"):
            Category("S15", *one)
