"""`llama3-lab claims`: the ledger of the field report's claims, with verdicts, and what was found about them."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama3_lab.paper.claims import Claim
    from llama3_lab.paper.evidence import Evidence

SPAN = 26  # columns of id and verdict
FOOT = (
    "A verdict is about the words of the paper and its cards. What follows “says” was computed; in brackets, what it "
    "is evidence of: a small run or a simulation says nothing about Meta's model. `llama3-lab claims A03` opens one "
    "claim, "
    "simulations too; --evidence RUN adds what a run showed."
)


def add(commands: Any) -> None:
    """Define the sub-command. commands: what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser("claims", help="what a field report says about the paper, and what is true of it")
    parser.add_argument("ids", nargs="*", metavar="ID",
                        help="claims to open, e.g. A03: all their evidence, simulations too")  # fmt: skip
    parser.add_argument("--verdict", action="append", default=[], metavar="NAME[,NAME]",
                        help="only claims with this verdict, e.g. wrong; may be repeated")  # fmt: skip
    parser.add_argument("--evidence", type=Path, metavar="RUN",
                        help="add what a run showed: its folder, or its report.json")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(do=show)


def show(args: argparse.Namespace) -> int:
    """Print the ledger; ValueError, one line, for an unknown claim or verdict, or a report that cannot be read."""
    from llama3_lab.course.latest import read_report
    from llama3_lab.paper import claims as ledger
    from llama3_lab.paper.evidence import gather

    verdicts = [re.sub(r"[ -]", "_", v.strip().lower()) for given in args.verdict for v in given.split(",")]
    opened = [ledger.claim(id) for id in args.ids]
    found = ledger.of_verdict(opened or ledger.claims(), verdicts)
    report = read_report(args.evidence) if args.evidence else None
    rows = [(claim, gather(claim, report, simulate=bool(opened))) for claim in found]
    counts = ledger.counts(found)
    if args.json:
        text = json.dumps(as_json(rows, counts), ensure_ascii=False, indent=1)
    else:
        text = as_text(rows, counts, shutil.get_terminal_size((80, 24)).columns)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `llama3-lab claims | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def as_json(rows: Sequence[tuple[Claim, Sequence[Evidence]]], counts: dict[Any, int]) -> dict[str, Any]:
    """Return the ledger for programs: {"claims": [...], "counts": {verdict: n}}; evidence as its own fields."""
    from dataclasses import asdict

    return {"claims": [{**asdict(claim), "evidence": [asdict(e) for e in found]} for claim, found in rows],
            "counts": dict(counts)}  # fmt: skip


def as_text(rows: Sequence[tuple[Claim, Sequence[Evidence]]], counts: dict[Any, int], width: int) -> str:
    """Return the ledger for people, no line longer than `width` columns (at least 50), and the counts below it."""
    width = max(width, 50)
    lines: list[str] = []
    for claim, found in rows:
        head = f"{claim.id:<5}{claim.verdict.replace('_', ' '):<{SPAN - 5}}"
        body = [f"{claim.claim} ({claim.report})", f"{claim.where}: {claim.figure}."]
        body += [f"says “{e.says}” [{e.about}]: {e.text}" for e in found]
        for text in body:
            lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * SPAN,
                                   break_on_hyphens=False)  # fmt: skip
            head = " " * SPAN
        lines.append("")
    lines += [*textwrap.wrap(FOOT, width), ""]
    lines += [f"{verdict.replace('_', ' '):<{SPAN - 5}}{n:>3}" for verdict, n in counts.items() if n]
    return "\n".join([*lines, f"{'together':<{SPAN - 5}}{sum(counts.values()):>3}"])
