"""The paper's figures: each has its place, none is typed twice, and a notebook that quotes one quotes it right."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import yaml

from llama3_lab import places, profiles
from llama3_lab.paper import facts as module
from llama3_lab.paper.facts import FILE, Fact, fact, facts, number, numbers, plain

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d[\d_]*(?:\.\d+)?)")
YEAR = re.compile(r"(19|20)\d\d")
DIGITS = 4  # figures with fewer significant digits are too common to be traced
# In the notebooks' prose: numbers of our own with four significant digits and more, and what they are.
OWN: dict[str, str] = {}


def digits(text: str) -> str:
    """The significant digits of a number as written: "16.55" and "1,655,000" both give "1655"."""
    return re.sub(r"[,_.]", "", text).strip("0")


def distinctive() -> dict[str, str]:
    """The significant digits of all traceable figures, and whose they are. Powers of two belong to everybody."""
    found = {}
    for key, f in facts().items():
        for v in f.value if isinstance(f.value, tuple) else (f.value,):
            written = digits(f"{v:.15g}".split("e")[0]) if isinstance(v, int | float) else ""
            if len(written) >= DIGITS and not (v == int(v) and int(v) & (int(v) - 1) == 0):
                found[written] = key
    return found


def strays(code: str) -> list[str]:
    """The paper's distinctive figures in a text of code, its docstrings and comments included."""
    return [f"{m[0]} is {known[digits(m[0])]}" for known in [distinctive()] for m in NUMBER.finditer(code)
            if digits(m[0]) in known]  # fmt: skip


def unknown(prose: str) -> list[str]:
    """Numbers in prose, of four significant digits and more, that are neither facts nor ours nor years."""
    known = set(distinctive()) | {digits(plain(f.value)) for f in facts().values() if isinstance(f.value, int | float)}
    known |= {digits(f"{v:.15g}".split("e")[0]) for f in facts().values() if isinstance(f.value, tuple)
              for v in f.value if isinstance(v, int | float)} | {digits(o) for o in OWN}  # fmt: skip
    return [m[0] for m in NUMBER.finditer(prose)
            if len(digits(m[0])) >= DIGITS and digits(m[0]) not in known and not YEAR.fullmatch(m[0])]  # fmt: skip


def cells(path: Path, kind: str) -> str:
    return "\n\n".join(c.source for c in jupytext.read(path).cells if c.cell_type == kind)


NOTEBOOKS = sorted((ROOT / "notebooks" / "src").glob("*.py"))
MODULES = sorted((ROOT / "llama3_lab").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[p.relative_to(ROOT).as_posix() for p in MODULES])
def test_no_module_types_a_figure_of_the_paper(path):
    assert strays(path.read_text()) == [], f"read it: fact(...).value, from {FILE.as_posix()}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_no_cell_types_a_figure_and_prose_quotes_it_right(path):
    assert strays(cells(path, "code")) == [], f"read it: fact(...).value, from {FILE.as_posix()}"
    assert unknown(cells(path, "markdown")) == [], "no fact of the paper; misquoted? A number of our own goes into OWN"


def test_a_stray_and_a_misquotation_would_be_found(tmp_path):
    source = tmp_path / "x.py"
    tokens, hours = (f"{number(k) / 1e12:g}" for k in ("law.forecast.tokens", "gpu_hours.405b"))
    source.write_text(f"# %% [markdown]\n# It says {tokens}T tokens, and {tokens}1T.\n\n# %%\nbudget = {tokens}e12\n")
    assert strays(cells(source, "code")) == [f"{tokens} is law.forecast.tokens"]
    assert unknown(cells(source, "markdown")) == [f"{tokens}1"]
    assert strays(f'"""About {float(hours) * 1e6:.2f}M hours."""') == [f"{float(hours) * 1e6:.2f} is gpu_hours.405b"]
    assert strays("x = 128256 + 1") and strays("x = 128_256") and not strays("x = 4096, 0.1, 99")
    assert unknown("in 2024, 12,345 rows, 0.1 and 4,096") == ["12,345"]


def test_traceable_figures_are_there():
    known = distinctive()
    assert len(known) >= 50
    assert {"1655", "3084", "128256", "8030261248", "381356"} <= set(known)
    assert "4096" not in known and "93" not in known


def test_every_fact_has_its_place_and_how_it_was_checked():
    assert len(facts()) >= 250
    for f in facts().values():
        assert f.where and f.checked in ("text", "card", "computed", "second hand"), f.key
        assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", f.key), f.key
        values = f.value if isinstance(f.value, tuple) else (f.value,)
        assert values and all(isinstance(v, int | float | str) and not isinstance(v, bool) for v in values), f.key
        for v in values:  # YAML reads 1e5 as a text, and "no" as false
            assert not (isinstance(v, str) and re.fullmatch(r"[-+]?[\d.,]+([eE][-+]?\d+)?", v)), f"{f.key}: a text"


def test_where_names_a_place():
    place = re.compile(r"§\d|Table \d|Figure \d|card|code|licence|README|page", re.I)
    for f in facts().values():
        if f.checked in ("text", "card"):
            assert place.search(f.where), f"{f.key}: {f.where}"


def test_no_key_is_written_twice_even_in_one_section():
    seen = []
    for section in yaml.compose((places.project() / FILE).read_text()).value:
        for name, value in section.value:
            if name.value == "facts":
                seen += [key.value for key, _ in value.value]
    assert sorted(seen) == sorted(set(seen)) and set(seen) == set(facts())


def test_columns_of_a_table_are_as_long_as_its_rows():
    for table, rows in (("table5", "causes"), ("table6", "datasets"), ("table7", "datasets"), ("table25", "languages"),
                        ("table26", "categories"), ("table27", "capabilities"), ("table28", "sets"),
                        ("table2", "benchmarks"), ("llama33", "benchmarks")):  # fmt: skip
        n = len(fact(f"{table}.{rows}").value)
        for key, f in facts().items():
            if key.startswith(f"{table}.") and isinstance(f.value, tuple):
                assert len(f.value) == n, f"{key} has {len(f.value)} values, {table} has {n} rows"


def test_an_unknown_key_names_its_neighbours():
    with pytest.raises(ValueError, match=r"no fact 'dpo\.bta'.*did you mean dpo\.beta") as one:
        fact("dpo.bta")
    assert "\n" not in str(one.value)
    with pytest.raises(ValueError, match="architecture"):
        fact("architecture.xyzzy.qqqqqqqq")
    with pytest.raises(ValueError, match="facts.yaml lists them"):
        fact("0")


def test_number_and_numbers_refuse_what_is_none():
    assert number("dpo.beta") == 0.1 and numbers("sampling.k") == (10, 30)
    with pytest.raises(ValueError, match="not one number"):
        number("sampling.k")
    with pytest.raises(ValueError, match="not a list of numbers"):
        numbers("dpo.beta")
    with pytest.raises(ValueError, match="not one number"):
        number("scheduler")


@pytest.mark.parametrize(("value", "text"), [(1.5e13, "15T"), (2_250_000, "2.25M"), (3e25, "3e25"), (1e-5, "1e-5"),
                                             (12_345, "12,345"), (9000, "9000"), (0.1, "0.1"), (24.0, "24"),
                                             (-86, "-86"), (7e9, "7B"), ("x", "x"), ((1, "b"), "1, b"),
                                             (0, "0")])  # fmt: skip
def test_a_figure_is_written_as_one_would(value, text):
    assert plain(value) == text
    assert str(Fact("k", value, "GPUs", "§1", "text")) == f"{text} GPUs"


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A function that puts another text in the place of facts.yaml and reads it."""
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(places, "project", lambda: tmp_path)
    module.facts.cache_clear()
    yield lambda text: (path.write_text(text), module.facts.cache_clear(), facts())[2]
    module.facts.cache_clear()


def test_a_damaged_file_costs_one_line(other):
    with pytest.raises(ValueError, match="facts.yaml is missing"):
        facts()
    with pytest.raises(ValueError, match="facts.yaml is damaged") as one:
        other("- where: §1\n  facts: [")
    assert "\n" not in str(one.value)
    section = "- where: §1\n  checked: text\n  facts: {a.b: 1}\n"
    assert other(section)["a.b"].value == 1
    with pytest.raises(ValueError, match="a.b stands there twice"):
        other(section * 2)
    with pytest.raises(ValueError, match="checked is 'guessed'"):
        other(section.replace("text", "guessed"))


def test_tiny_takes_over_what_it_says_it_does():
    assert number("dpo.beta") == profiles.TINY.dpo.beta == profiles.COURSE.dpo.beta
    assert number("dpo.nll_weight") == profiles.TINY.dpo.nll_weight
    low, high = numbers("sampling.k")
    assert low <= profiles.TINY.sampling.k <= high
    assert profiles.TINY.reward.min_strength in fact("reward.pairs_used").value


def test_reading_the_paper_needs_no_torch_and_little_time():
    code = (
        "import sys, time; t = time.process_time(); import llama3_lab.paper.facts as f; f.facts();"
        "print(time.process_time() - t, sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]" and float(seconds) < 0.5
