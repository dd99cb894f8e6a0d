"""The field report's claims, one by one: data/paper/claims.yaml as records, with our verdicts.

A verdict is about the words of the paper and of its cards. What a computation or a run of this course has to say
to a claim is `evidence.py`'s, and never changes a verdict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from llama3_lab.paper.facts import fact, plain, read_yaml

Verdict = Literal["confirmed", "confirmed_elsewhere", "imprecise", "wrong", "not_found", "unverified", "opinion"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FILE = Path("data") / "paper" / "claims.yaml"
SECTIONS = (  # of the field report, in its order
    "Introduction", "What was released", "Pretraining at curriculum scale", "The full post-training pipeline",
    "Synthetic data via rejection sampling", "Llama Guard and the safety stack",
    "Ablations on data quality vs quantity", "The recipe in curriculum language",
    "Reproducibility status", "What's still confidential", "What's changed since",
    "What this teaches you", "Further reading",
)  # fmt: skip
_FACT = re.compile(r"\{fact:([\w.]+)(?:\[(\d+)\])?\}")


@dataclass(frozen=True)
class Claim:
    """One claim of the field report, in our words.

    id: a letter for the subject and two digits. report: the section that makes the claim. where: the place in the
    paper, or on a card, that speaks of it. figure: what stands there. evidence: names of functions in evidence.py.
    """

    id: str
    claim: str
    report: str
    where: str
    verdict: Verdict
    figure: str
    evidence: tuple[str, ...] = ()


@cache
def claims() -> tuple[Claim, ...]:
    """Return all claims in the report's order of subjects, figures filled in.

    Raises:
        ValueError: if the file is missing or damaged, an id comes twice, or a figure names no fact.
    """
    found = []
    for row in read_yaml(FILE):
        if row["verdict"] not in VERDICTS:
            raise ValueError(f"{FILE.as_posix()}: {row['id']}: {_no_verdict(row['verdict'])}")
        texts = {name: fill(str(row[name])) for name in ("claim", "report", "where", "figure")}
        found.append(Claim(id=row["id"], verdict=row["verdict"], evidence=tuple(row.get("evidence", ())), **texts))
    ids = Counter(c.id for c in found)
    if twice := [i for i, n in ids.items() if n > 1]:
        raise ValueError(f"{FILE.as_posix()}: {twice[0]} stands there twice; keep one")
    return tuple(found)


def claim(id: str) -> Claim:
    """Return the claim of that id; small letters do.

    Raises:
        ValueError: if there is none.
    """
    found = {c.id: c for c in claims()}
    if id.upper() not in found:
        same = [i for i in found if i[0] == id[:1].upper()]
        raise ValueError(f"no claim {id!r}; there is {', '.join(same) or 'R01 to B04'}")
    return found[id.upper()]


def fill(text: str) -> str:
    """Return the text with each {fact:key} and {fact:key[0]} replaced by that figure of the paper.

    Raises:
        ValueError: if there is no such fact, or its list has no such place.
    """

    def figure(match: re.Match[str]) -> str:
        value = fact(match[1]).value
        if match[2] is None:
            return plain(value)
        if not isinstance(value, tuple) or int(match[2]) >= len(value):
            raise ValueError(f"{match[0]}: the fact has no such place")
        return plain(value[int(match[2])])

    return " ".join(_FACT.sub(figure, text).split())


def of_verdict(found: Iterable[Claim], verdicts: Sequence[str]) -> list[Claim]:
    """Return the claims with one of these verdicts, in order; all where none is named.

    Raises:
        ValueError: if a verdict is none of VERDICTS; the message lists them.
    """
    for verdict in verdicts:
        if verdict not in VERDICTS:
            raise ValueError(_no_verdict(verdict))
    return [c for c in found if not verdicts or c.verdict in verdicts]


def counts(found: Iterable[Claim]) -> dict[Verdict, int]:
    """Return how many claims have each verdict; verdicts without any count 0."""
    by = Counter(c.verdict for c in found)
    return {verdict: by[verdict] for verdict in VERDICTS}


def _no_verdict(verdict: object) -> str:
    return f"unknown verdict {verdict!r}; there is: {', '.join(VERDICTS)}"
