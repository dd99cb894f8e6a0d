"""Figures and tables of the audit: each has its facts as text; every claim has its row, which opens to its source."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from llama3_lab.course import latest
from llama3_lab.course.figures import audit as figures
from llama3_lab.course.latest import course_report, latest_run, read_report
from llama3_lab.course.views import describe
from llama3_lab.course.widgets import explore
from llama3_lab.paper import evidence_runs
from llama3_lab.paper.claims import SECTIONS, VERDICTS, claim, claims
from llama3_lab.paper.evidence import SIMULATION, Evidence, gather
from llama3_lab.paper.inconsistencies import inconsistencies
from llama3_lab.records import PromptScore
from llama3_lab.store import write_records

RUN = Path(__file__).parents[1] / "data" / "runs" / "tiny-paper-seed0.json"
PAIRS = [figures.Pair("English", -76, -75, -86, -94), figures.Pair("Thai", -43, -39, -51, -65.2)]
DUELS = {"wrong by chance": [(0.05, 0.04, 0.06), (-0.1, -0.12, -0.08)], "slanted": [(-0.2, -0.3, -0.1)] * 2}


@pytest.fixture(scope="module")
def found():
    return {c.id: gather(c, read_report(RUN)) for c in claims()}


@pytest.mark.parametrize(("draw", "tell", "data"), [
    (figures.figure_verdicts, figures.describe_verdicts, (claims(),)),
    (figures.figure_inconsistencies, figures.describe_inconsistencies, (inconsistencies(),)),
    (figures.figure_guards, figures.describe_guards, (PAIRS,)),
    (figures.figure_duel, figures.describe_duel, ([0.0, 0.4], DUELS)),
])  # fmt: skip
def test_a_figure_draws_and_carries_its_twin(draw, tell, data):
    figure = draw(*data)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert describe(figure) == tell(*data)
    assert len(tell(*data).splitlines()) > 1 and max(map(len, tell(*data).splitlines())) <= 130


def test_twins_hold_the_numbers():
    told = figures.describe_guards(PAIRS)
    assert "- English: input guard -76, output guard -75, both -86; if they missed independently -94" in told
    told = figures.describe_duel([0.0, 0.4], DUELS)
    assert "- 40% of labels wrong: -10.0 [-12.0, -8.0]" in told
    told = figures.describe_inconsistencies(inconsistencies())
    assert told.count("\n- ") == len(inconsistencies()) and "ratio 2.5;" in told
    told = figures.describe_verdicts(claims())
    numbers = [int(word) for line in told.splitlines()[1:] for word in line.split(": ", 1)[1].split() if word.isdigit()]
    assert sum(numbers) == len(claims())


def test_the_table_has_a_row_for_every_claim_and_opens_its_evidence(found):
    rows = figures.table_claims(claims(), found).splitlines()[2:]
    assert [r.split(" | ")[0].strip("| ") for r in rows] == [c.id for c in claims()]
    for row, c in zip(rows, claims(), strict=True):
        assert row.replace("\\|", "").count("|") == 6, c.id
        assert f"**{figures.worded(c.verdict)}**" in row
        assert row.count("<details><summary>") == row.count("</summary>") == row.count("</details>") == len(found[c.id])


def test_letters_that_mean_something_in_markdown_or_html_are_escaped():
    odd = replace(claim("R01"), claim="a | b ~c~ <d> *e* f_g $h")
    page = figures.page_claims([odd], {}, None)
    assert "a \\| b \\~c\\~ &lt;d> \\*e\\* f\\_g \\$h" in page.markdown
    assert "a | b ~c~ &lt;d&gt; *e* f_g $h" in page.html and odd.claim in page.text


def flat(found, order, of=None):
    return [c for _, group in figures.ordered(of or claims(), found, order) for c in group]


@pytest.mark.parametrize("order", figures.ORDERS)
def test_every_order_keeps_every_claim(found, order):
    assert sorted(c.id for c in flat(found, order)) == sorted(c.id for c in claims())
    page = figures.page_claims(claims(), found, None, "", order)
    assert page.text.startswith(f"69 of 69 claims, all verdicts, {order}\n")
    ids = re.findall(r"^([A-Z]\d\d)  ", page.text, re.M)
    assert ids == re.findall(r"<summary><span>([A-Z]\d\d)</span>", page.html) == [c.id for c in flat(found, order)]


def test_orders_sort_as_they_say(found):
    assert flat(found, "by number") == list(claims())
    by = [c.verdict for c in flat(found, "by verdict")]
    assert by == sorted(by, key=VERDICTS.index)
    sections = [heading for heading, _ in figures.ordered(claims(), found, "by section")]
    assert sections == list(SECTIONS) and {c.report for c in claims()} == set(SECTIONS)
    for heading, group in figures.ordered(claims(), found, "by section"):
        assert {c.report for c in group} == {heading}
    groups = dict(figures.ordered(claims(), found, "by evidence"))
    names = list(groups)
    assert names[0] == "contradicts" and names[-1] == "nothing computed"
    for heading, group in groups.items():
        says = [{e.says for e in found[c.id]} for c in group]
        assert all(heading in s if heading != "nothing computed" else not s for s in says)
        assert heading == "contradicts" or not any("contradicts" in s for s in says)
    with pytest.raises(ValueError, match="unknown order 'by luck'; there is by number"):
        figures.ordered(claims(), found, "by luck")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_filter_keeps_one_verdict_in_any_order(found, verdict):
    wanted = [c.id for c in claims() if c.verdict == verdict]
    for order in figures.ORDERS:
        page = figures.page_claims(claims(), found, None, verdict, order)
        ids = re.findall(r"^([A-Z]\d\d)  ", page.text, re.M)
        assert sorted(ids) == sorted(wanted) == sorted(re.findall(r"<summary><span>([A-Z]\d\d)<", page.html))
        assert page.text.startswith(f"{len(wanted)} of 69 claims, {figures.worded(verdict)}, {order}")
    with pytest.raises(ValueError, match="unknown verdict 'rong'"):
        figures.page_claims(claims(), found, None, "rong")


def opened(id: str, found, own) -> str:
    """What the row of one claim opens to, as text."""
    html = figures.page_claims([claim(id)], found, own).html
    return re.sub(r"<[^>]+>", " | ", html.split("<dl>")[1])


def test_a_row_opens_to_its_source_and_evidence_and_the_readers_own_run(found):
    told = opened("T12", found, None)
    assert escape(claim("T12").where) in told and escape(claim("T12").figure) in told
    assert "your own run | " in told and "none found" in told and told.count("computed |") == len(found["T12"]) == 2
    own = {"T12": [Evidence("inconclusive", "our small world (run mine)", "Too few prompts.")]}
    told = opened("T12", found, own)
    assert "your own run |  | inconclusive. About our small world (run mine). Too few prompts." in told
    assert "none found" not in told and told.index("computed |") < told.index("your own run |")
    bare = opened("R01", {}, None)
    assert "nothing; this one is decided by reading" in bare and "your own run" not in bare
    toy = opened("A03", {"A03": [Evidence("inconclusive", SIMULATION, "x.")]}, own)
    assert SIMULATION in toy and "your own run" not in toy


def test_every_row_opens_to_something_of_its_own(found):
    told = [opened(c.id, found, {}) for c in claims()]
    assert len(set(told)) == len(told)
    for c, text in zip(claims(), told, strict=True):
        assert all(escape(e.text) in text and escape(e.about) in text for e in found[c.id])


def test_two_sliders_filter_and_sort_together(found):
    filters = [("all", ""), *((figures.worded(v), v) for v in VERDICTS)]
    box = explore("show", filters, lambda v, o: figures.page_claims(claims(), found, None, v, o),
                  more={"sort": figures.ORDERS})  # fmt: skip
    seen = set()
    for box.controls[0].index in range(len(filters)):
        for box.controls[1].index in range(len(figures.ORDERS)):
            verdict, order = filters[box.controls[0].index][0], figures.ORDERS[box.controls[1].index]
            assert f"{'all verdicts' if verdict == 'all' else verdict}, {order}" in box.text.value
            seen.add(box.text.value)
    assert len(seen) == len(filters) * len(figures.ORDERS)
    bundle = box._repr_mimebundle_()
    assert bundle["text/markdown"] == figures.table_claims(claims(), found)
    assert "slider “sort”: by number, by section, by verdict, by evidence; moves" in bundle["text/plain"]


def test_two_runs_stand_beside_each_other():
    one, two = Evidence("supports", "our small world", "A."), Evidence("inconclusive", "our small world", "B.")
    assert figures.beside("what_dpo_adds", one, two).splitlines() == ["what dpo adds", "  recorded: supports. A.",
                                                                      "  yours:    inconclusive. B."]  # fmt: skip
    assert figures.beside("x", one, None).endswith("yours:    no run found")


# -- the reader's own run


def test_the_newest_whole_run_is_found(tmp_path):
    assert latest_run(tmp_path) is None
    for i, name in enumerate(("old", "new", "broken")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "report.json"
        path.write_text("{" if name == "broken" else RUN.read_text().replace("tiny-paper-seed0", name, 1))
        os.utime(path, (1000 + i, 1000 + i))
    assert latest_run(tmp_path).name == "new"
    shutil.rmtree(tmp_path / "new")
    assert latest_run(tmp_path).name == "old"


def rows(right: int, of: int = 40) -> list[PromptScore]:
    """Scores of `of` checkable prompts, of which the first `right` are answered rightly."""
    return [PromptScore(f"p{i}", "arithmetic", 1, float(i < right), 0.8 * (i < right) + 0.1 * (i % 2), float(i < right),
                        1.0, 1.0, 9.0) for i in range(of)]  # fmt: skip


def test_the_shared_run_of_the_notebooks_is_read_from_its_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(latest.places, "runs", lambda: tmp_path)
    folder = tmp_path / "course-0123abcd"
    with pytest.raises(ValueError, match="run notebook 03"):
        course_report(folder)
    for name, right in (("first-chat", 10), ("base-base", 11), ("base-chat", 0)):
        write_records(folder / f"scores-{name}.jsonl", rows(right))
    early = latest_run()
    assert early.name == folder.name and early.n_rounds == 0 and early.rounds == ()
    assert evidence_runs.what_dpo_adds(early).says == "cannot be tested here"
    for name, right in (("round1-sft", 28), ("round1-control", 11), ("round1-policy", 30), ("round2-policy", 36)):
        write_records(folder / f"scores-{name}-chat.jsonl", rows(right))
    run = latest_run()
    assert run.n_rounds == 2 and [e.stage for e in run.rounds[0].evaluations][-1] == "round 1 policy"
    assert evidence_runs.selected_against_lot(run).says == "supports"
    found = evidence_runs.selected_against_lot(run)
    assert found.value == pytest.approx(0.8 * (28 - 11) / 40) and found.n == 40
    assert evidence_runs.skill_before_the_later_rounds(run).value == pytest.approx(0.8 * (30 - 10 - (36 - 30)) / 40)
    for f in evidence_runs.ALL:
        assert run.name in f(run).about
