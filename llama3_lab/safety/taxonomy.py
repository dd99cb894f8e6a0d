"""Hazard categories, as published, in both naming schemes, which are not to be mixed.

The model card of Llama Guard 3 and the prompt that the model was trained on name three categories differently ("Child
Sexual Exploitation" and "Child Exploitation"). A guard must be asked with the prompt's names; people are shown the
card's. Llama Guard 2 numbers its categories another way. Source: the model cards and the published prompt code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

CODE = re.compile(r"S[1-9][0-9]?")


@dataclass(frozen=True)
class Category:
    """code: "S1" … "S99". name: as the model card has it. prompt_name: as the prompt has it."""

    code: str
    name: str
    prompt_name: str

    def __post_init__(self) -> None:
        if not CODE.fullmatch(self.code):
            raise ValueError(f"category code {self.code!r}: write S and a number from 1 to 99, e.g. S15")
        for name in (self.name, self.prompt_name):
            if not name.strip() or not name.isprintable() or "<" in name:
                raise ValueError(f"category {self.code}: name {name!r} must be one line of text without '<'")


def _same(code: str, name: str) -> Category:
    return Category(code, name, name)


LLAMA_GUARD_3 = (
    _same("S1", "Violent Crimes"),
    _same("S2", "Non-Violent Crimes"),
    Category("S3", "Sex-Related Crimes", "Sex Crimes"),
    Category("S4", "Child Sexual Exploitation", "Child Exploitation"),
    _same("S5", "Defamation"),
    _same("S6", "Specialized Advice"),
    _same("S7", "Privacy"),
    _same("S8", "Intellectual Property"),
    _same("S9", "Indiscriminate Weapons"),
    _same("S10", "Hate"),
    Category("S11", "Suicide & Self-Harm", "Self-Harm"),
    _same("S12", "Sexual Content"),
    _same("S13", "Elections"),
    _same("S14", "Code Interpreter Abuse"),
)
LLAMA_GUARD_3_1B = LLAMA_GUARD_3[:13]  # its card has no S14
TOY_CODES = ("S1", "S2", "S5", "S6", "S7", "S8", "S10", "S13")
TOY = tuple(c for c in LLAMA_GUARD_3 if c.code in TOY_CODES)  # what the small world has requests for
SCHEMES = {"8B": LLAMA_GUARD_3, "1B": LLAMA_GUARD_3_1B, "toy": TOY}


def categories(scheme: str) -> tuple[Category, ...]:
    """Return the categories of a scheme: "8B", "1B", or "toy", the small world's eight.

    Raises:
        ValueError: if there is no such scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; there is: {', '.join(SCHEMES)}")
    return SCHEMES[scheme]


def by_code(codes: Sequence[str], known: Sequence[Category]) -> tuple[Category, ...]:
    """Return the categories of these codes, in their order.

    Raises:
        ValueError: for a code that is not among the known ones, or stands there twice.
    """
    table = {c.code: c for c in known}
    if len(set(codes)) != len(codes):
        raise ValueError(f"category codes {', '.join(codes)}: one stands there twice")
    for code in codes:
        if code not in table:
            raise ValueError(f"category {code!r} is not one of {', '.join(table)}")
    return tuple(table[code] for code in codes)
