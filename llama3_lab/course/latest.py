"""read_report(), latest_run(): what a run showed, from a path, or of the learner's own newest run. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from llama3_lab import places
from llama3_lab.profiles import COURSE
from llama3_lab.records import Comparison, Evaluation, PairCounts, PromptScore, RoundReport, RunReport
from llama3_lab.store import StoreError, from_json, read_records, read_text

_SCORES = re.compile(r"scores-(.+)-(chat|base)\.jsonl")


def read_report(place: Path) -> RunReport:
    """Return the report of a run. place: the run's folder, or a report.json, or one of data/runs/.

    Raises:
        ValueError: one line, if there is nothing there, or no report, or a damaged one.
    """
    path = place / "report.json" if place.is_dir() else place
    if not path.exists():
        finish = f"finish the run: llama3-lab run --out {place}" if place.is_dir() else "name a run's folder"
        raise ValueError(f"{path}: there is no such file; {finish}")
    try:
        return from_json(RunReport, json.loads(read_text(path)))
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: no report of a run ({reason}); run the same `llama3-lab run` again to write it "
                         "anew") from error  # fmt: skip


def latest_run(folder: Path | None = None) -> RunReport | None:
    """Return what the newest run in `folder` (places.runs()) showed, or None where there is none to read.

    A finished run has its report.json. The notebooks' shared run has none; for it, what notebooks 03 to 08 have
    measured is compared here. A damaged run is passed over: a lesson goes on without it.
    """
    root = folder or places.runs()
    found = [*root.glob("*/report.json"), *root.glob(f"{COURSE.name}-*/scores-first-chat.jsonl")]
    for path in sorted(found, key=lambda p: (p.stat().st_mtime, p.as_posix()), reverse=True):
        try:
            return read_report(path) if path.name == "report.json" else course_report(path.parent)
        except ValueError:
            continue
    return None


def course_report(folder: Path) -> RunReport:
    """Return what the notebooks' shared run has measured so far, as a report; what it has not measured stays empty.

    Raises:
        ValueError: if a file is damaged, or the first policy was never measured.
    """
    named = {(m[1], m[2]): p for p in folder.glob("scores-*.jsonl") if (m := _SCORES.fullmatch(p.name))}
    if ("first", "chat") not in named:
        raise ValueError(f"{folder}: the first policy was never measured; run notebook 03")
    rows = {key: read_records(path, PromptScore) for key, path in named.items()}
    last = max((int(m[1]) for name, _ in rows if (m := re.fullmatch(r"round(\d+)-policy", name))), default=0)
    start = tuple(_evaluations(rows, 0, (("base", "base", "base, own format"), ("base", "chat", "base, chat format"),
                                         ("first", "chat", "first policy"))))  # fmt: skip
    rounds = tuple(
        RoundReport(n, (), PairCounts(0, 0, 0, 0, 0, 0), (), tuple(_evaluations(rows, n, (
            (f"round{n}-sft", "chat", f"round {n} sft"), (f"round{n}-control", "chat", f"round {n} sft on random"),
            (f"round{n}-policy", "chat", f"round {n} policy")))), (), (), (), (), 0)
        for n in range(1, last + 1)
    )  # fmt: skip
    return RunReport(folder.name, COURSE.name, "", COURSE.order, COURSE.seed, last, start, rounds,
                     tuple(_comparisons(rows, last)), (), (), (), (), 0.0, 0.0)  # fmt: skip


def _evaluations(rows: dict[tuple[str, str], list[PromptScore]], n: int,
                 stages: tuple[tuple[str, str, str], ...]) -> Iterator[Evaluation]:
    from llama3_lab.pipeline import reports  # statsmodels, which takes a second

    plan = COURSE.evaluation
    for name, style, stage in stages:
        if of := rows.get((name, style)):
            samples = plan.base_samples if style == "base" else plan.samples
            yield reports.evaluate(stage, n, plan.split, of, samples)


def _comparisons(rows: dict[tuple[str, str], list[PromptScore]], last: int) -> list[Comparison]:
    """Return the same comparisons as a run's report makes, where both sides were measured, corrected as one family."""
    from llama3_lab.pipeline import reports

    wanted = [(f"last round over {what}", f"round{last}-policy", b)
              for what, b in (("round 1", "round1-policy"), ("the first policy", "first")) if last > 1 or b == "first"]
    for n in range(1, last + 1):
        wanted.append((f"round {n}: SFT on selected over SFT on random", f"round{n}-sft", f"round{n}-control"))
        wanted.append((f"round {n}: DPO over its start", f"round{n}-policy", f"round{n}-sft"))
    return reports.holm([reports.compare(name, rows[a, "chat"], rows[b, "chat"], "sampled", "all", (a, b))
                         for name, a, b in wanted if (a, "chat") in rows and (b, "chat") in rows])  # fmt: skip
