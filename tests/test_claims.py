"""The ledger of claims: all 69 are there, each with a verdict and a place, and `llama3-lab claims` shows it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from llama3_lab import cli, places
from llama3_lab.commands import claims as command
from llama3_lab.paper import claims as module
from llama3_lab.paper.claims import FILE, VERDICTS, claim, claims, counts, fill, of_verdict
from llama3_lab.paper.evidence import gather, source_of
from llama3_lab.paper.facts import fact, facts

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "data" / "runs" / "tiny-paper-seed0.json"
SUBJECTS = {"R": 7, "P": 5, "T": 13, "S": 9, "A": 5, "G": 9, "D": 1, "C": 7, "K": 4, "N": 5, "B": 4}


def test_all_claims_are_there():
    wanted = [f"{letter}{i:02}" for letter, n in SUBJECTS.items() for i in range(1, n + 1)]
    assert [c.id for c in claims()] == wanted and len(wanted) == 69


def test_each_has_a_verdict_and_all_verdicts_but_opinion_a_place():
    for c in claims():
        assert c.verdict in VERDICTS and c.claim and c.report and c.figure, c.id
        if c.verdict != "opinion":
            assert re.search(r"§\d|Table|card|README|paper|page|document|repositories", c.where), f"{c.id}: {c.where}"
        if c.verdict == "confirmed":
            assert re.search(r"§\d|Table|page", c.where), f"{c.id} is confirmed by the paper; where?"
        if c.verdict == "confirmed_elsewhere":
            assert re.search(r"card|README|repositories", c.where), f"{c.id} is confirmed elsewhere; where?"
    assert sum(counts(claims()).values()) == 69 and all(counts(claims()).values())


def test_at_least_thirty_have_evidence_that_can_be_computed():
    assert sum(bool(c.evidence) for c in claims()) >= 30
    for c in claims():
        for name in c.evidence:
            assert source_of(name) in ("paper", "run", "simulation")


def test_figures_come_from_the_facts():
    written = (places.project() / FILE).read_text()
    keys = re.findall(r"\{fact:([\w.]+)", re.sub(r"^#.*", "", written, flags=re.M))
    assert len(keys) >= 50 and set(keys) <= set(facts())
    assert fill("{fact:rounds} rounds, K {fact:sampling.k[1]}") == f"{fact('rounds').value} rounds, K 30"
    assert not any("{" in c.figure + c.claim for c in claims())
    with pytest.raises(ValueError, match="no fact 'no.such'"):
        fill("{fact:no.such}")
    for wrong in ("{fact:sampling.k[2]}", "{fact:rounds[0]}"):
        with pytest.raises(ValueError, match="has no such place"):
            fill(wrong)


def test_a_claim_is_found_by_its_id():
    assert claim("a03").id == "A03"
    with pytest.raises(ValueError, match="no claim 'A77'; there is A01, A02"):
        claim("A77")
    with pytest.raises(ValueError, match="R01 to B04"):
        claim("")


def test_verdicts_filter_and_count():
    wrong = of_verdict(claims(), ["wrong"])
    assert wrong and {c.verdict for c in wrong} == {"wrong"} and len(wrong) == counts(claims())["wrong"]
    both = of_verdict(claims(), ["wrong", "opinion"])
    assert [c.id for c in both] == [c.id for c in claims() if c.verdict in ("wrong", "opinion")]
    assert of_verdict(claims(), []) == list(claims())
    with pytest.raises(ValueError, match="unknown verdict 'rong'; there is: confirmed, "):
        of_verdict(claims(), ["rong"])


def test_a_damaged_ledger_costs_one_line(tmp_path, monkeypatch):
    row = {"id": "X01", "claim": "c", "report": "r", "where": "w", "verdict": "wrong", "figure": "f"}

    def read(*rows):
        monkeypatch.setattr(module, "read_yaml", lambda _: list(rows))
        claims.cache_clear()
        return claims()

    try:
        assert read(row)[0].evidence == ()
        with pytest.raises(ValueError, match="X01 stands there twice"):
            read(row, row)
        with pytest.raises(ValueError, match="X01: unknown verdict 'maybe'"):
            read({**row, "verdict": "maybe"})
    finally:
        claims.cache_clear()


# -- the command


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(["claims", *args])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_ledger_is_printed_whole_and_no_line_is_too_wide(capsys, monkeypatch):
    for columns, most in (("80", 80), ("120", 120), ("20", 50)):
        monkeypatch.setenv("COLUMNS", columns)
        code, out, _ = run(capsys)
        assert code == 0 and max(map(len, out.splitlines())) <= most
        assert re.findall(r"^([A-Z]\d\d) ", out, re.M) == [c.id for c in claims()]
    assert out.splitlines()[-1].split() == ["together", "69"]
    for verdict, n in counts(claims()).items():
        assert re.search(rf"^{verdict.replace('_', ' ')} +{n}$", out, re.M)


def test_verdict_columns_are_aligned(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = run(capsys)
    for c in claims():
        line = next(ln for ln in out.splitlines() if ln.startswith(f"{c.id} "))
        assert line[5:].startswith(c.verdict.replace("_", " ")) and line[command.SPAN - 1] == " " != line[command.SPAN]


@pytest.mark.parametrize("args", [("--verdict", "wrong,not_found"), ("--verdict", "wrong", "--verdict", "Not found"),
                                  ("--verdict", "not-found, wrong")])  # fmt: skip
def test_verdicts_may_be_listed_or_repeated(capsys, args):
    _, out, _ = run(capsys, *args)
    assert re.findall(r"^([A-Z]\d\d) ", out, re.M) == [c.id for c in of_verdict(claims(), ["wrong", "not_found"])]


@pytest.mark.parametrize(("args", "words"), [
    (("--verdict", "rong"), "unknown verdict 'rong'; there is: confirmed, "),
    (("--verdict", ""), "unknown verdict ''"),
    (("Z99",), "no claim 'Z99'"),
    (("--evidence", "/no/such/run"), "there is no such file; name a run's folder"),
    (("--evidence", "EMPTY"), "there is no such file; finish the run"),
    (("--evidence", "BROKEN"), "no report of a run"),
    (("--evidence", "LIST"), "no report of a run"),
])  # fmt: skip
def test_a_mistake_costs_one_line(capsys, tmp_path, args, words):
    (tmp_path / "BROKEN").write_text('{"name": ')
    (tmp_path / "LIST").write_text("[1, 2]")
    (tmp_path / "EMPTY").mkdir()
    args = [str(tmp_path / a) if a.isupper() and len(a) > 3 else a for a in args]
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err


def test_a_run_adds_what_it_showed(capsys, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "report.json").write_bytes(RUN.read_bytes())
    plain = run(capsys, "--json")[1]
    for place in (RUN, folder, folder / "report.json"):
        found = json.loads(run(capsys, "--json", "--evidence", str(place))[1])
        more = {c["id"] for c, before in zip(found["claims"], json.loads(plain)["claims"], strict=True)
                if len(c["evidence"]) > len(before["evidence"])}  # fmt: skip
        assert {"T10", "T11", "T12", "T13"} <= more
        about = {e["about"] for c in found["claims"] if c["id"] in more for e in c["evidence"]}
        assert any("our small world (run tiny-paper-seed0" in a for a in about)
    assert "our small world" in run(capsys, "--evidence", str(RUN))[1]


def test_an_opened_claim_shows_its_simulations(capsys):
    assert "simulation with made-up numbers" not in " ".join(run(capsys, "--verdict", "not_found")[1].split())
    out = run(capsys, "A03", "g08")[1]
    assert " ".join(out.split()).count("simulation with made-up numbers") == 2
    assert re.findall(r"^([A-Z]\d\d) ", out, re.M) == ["A03", "G08"]


def test_json_holds_the_whole_ledger(capsys):
    found = json.loads(run(capsys, "--json")[1])
    assert [c["id"] for c in found["claims"]] == [c.id for c in claims()]
    assert found["counts"] == counts(claims())
    for c, row in zip(claims(), found["claims"], strict=True):
        assert [e["says"] for e in row["evidence"]] == [e.says for e in gather(c)]
        assert (row["claim"], row["figure"], row["evidence"] == []) == (c.claim, c.figure, not gather(c))


def test_it_takes_under_a_second_and_no_torch():
    code = ("import sys; from llama3_lab.cli import main; code = main(['claims', '--evidence', sys.argv[1]]);"
            "print(code, sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))")  # fmt: skip
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        command_line = [sys.executable, "-c", code, str(RUN)]
        done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begun)
        assert done.stdout.splitlines()[-1] == "0 []"
    assert min(seconds) < 1.0


def test_a_reader_who_has_seen_enough_is_no_error():
    pipe = f"{sys.executable} -m llama3_lab.cli claims | head -1"
    done = subprocess.run(pipe, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("R01") and done.stderr == ""


def test_sections_are_those_of_the_report_in_its_order():
    report = ROOT.parent / "shared" / "paper" / "field_report.txt"
    if not report.is_file():
        pytest.skip("the field report is not beside this checkout")
    text = report.read_text().replace("’", "'")
    at = [text.index(f"{section}\n") for section in module.SECTIONS[1:]]  # the introduction has no heading
    assert at == sorted(at)


def test_no_claim_repeats_its_text():
    texts = [c.claim for c in claims()]
    assert len(set(texts)) == len(texts)
    rows = yaml.safe_load((places.project() / FILE).read_text())
    fields = {"id", "claim", "report", "where", "verdict", "figure"}
    assert {frozenset(r) - {"evidence"} for r in rows} == {frozenset(fields)}
