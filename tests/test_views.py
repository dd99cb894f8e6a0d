"""views and page: on a run that is made up, from a seed, and says so."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from llama3_lab.course import page, views
from llama3_lab.pipeline import reports
from llama3_lab.records import (
    SKILLS,
    STRENGTHS,
    Agreement,
    BestOfK,
    Comparison,
    Curve,
    FunnelRow,
    HealthCheck,
    PairCounts,
    PromptScore,
    Rate,
    RoundReport,
    RunReport,
    SampleAnswer,
)

HOSTILE = '<script>alert("x")</script> & </pre>'


class World:
    """Draws a made-up run: abilities rise from stage to stage, and nothing in it was measured."""

    def __init__(self, seed: int = 0, per_skill: int = 200) -> None:
        self.rng = np.random.default_rng(seed)
        self.level = {s: self.rng.integers(1, 4, per_skill) for s in SKILLS}
        self.luck = {s: self.rng.normal(0, 0.9, per_skill) for s in SKILLS}

    def rows(self, ability: float, ended: float = 1.0) -> list[PromptScore]:
        out = []
        for j, skill in enumerate(SKILLS):
            for i, (level, luck) in enumerate(zip(self.level[skill], self.luck[skill], strict=True)):
                p = 1 / (1 + np.exp(-(ability + 0.3 * j - 0.6 * level + luck)))
                hits = self.rng.random(4) < p
                greedy = float(self.rng.random() < min(1, p + 0.08))
                out.append(PromptScore(f"{skill}-{i}", skill, int(level), greedy, float(hits.mean()),
                                       float(hits.any()), float(2 * p), ended, float(24 + 4 * level)))
        return out

    def picks(self) -> list[BestOfK]:
        ks, out = (1, 2, 4, 8, 16), []
        for skill in SKILLS:
            right = self.rng.random((200, 16)) < 1 / (1 + np.exp(-(self.luck[skill] + 0.4)))[:, None]
            noise, open_skill = self.rng.normal(size=right.shape), skill == "conversation"
            outlier = 3.0 * (self.rng.random(right.shape) < 0.12) * ~right * (not open_skill)
            liked = 1.5 if open_skill else 0.6
            scores = {"checker": right * 1.0, "reward model": liked * right + noise + outlier,
                      "implicit reward": 1.4 * right + noise, "log-probability": 0.9 * right + noise,
                      "random": 0.0 * noise}
            for judge, score in scores.items():
                if not (open_skill and judge == "checker"):
                    both = zip(score.tolist(), right.tolist(), strict=True)
                    drawn = [list(zip(s, r, strict=True)) for s, r in both]
                    out.append(reports.best_of_k_curve(judge, skill, ks, drawn))
            if not open_skill:
                keys = [[("right" if r else f"wrong {i % 5}", r) for i, r in enumerate(row)]
                        for row in right.tolist()]
                out.append(reports.majority_vote(skill, ks, keys))
        return out


def made_up_round(world: World, n: int) -> tuple[RoundReport, dict[str, list[PromptScore]]]:
    names = {"sft random": -0.1 + 0.1 * n, "sft": 0.25 + 0.25 * n, "dpo": 0.6 + 0.28 * n,
             "average": 0.64 + 0.28 * n}
    rows = {f"round {n} {k}": world.rows(ability, 0.99) for k, ability in names.items()}
    evaluations = tuple(reports.evaluate(k, n, "test", r, 4) for k, r in rows.items())
    funnel = []
    for skill in SKILLS:
        for level in (1, 2, 3):
            checked = int(skill != "conversation")
            passed = checked * (400 - 70 * level + 30 * n)
            funnel.append(FunnelRow(skill, level, 67, 1072, 1060, 1050 * checked, passed, 60 * checked, 60))
    steps = tuple(range(1, 61))
    curves = []
    for stage, first, last in (("reward", 0.69, 0.35), ("sft", 2.1, 0.5), ("dpo run 1", 0.7, 0.4),
                               ("dpo run 2", 0.69, 0.4)):
        noise = world.rng.normal(0, 0.02, 60)
        fall = last + (first - last) * np.exp(-np.arange(60) / 15) + noise
        curves.append(Curve(f"round {n} {stage}", "loss", steps, tuple(fall.tolist())))
        if stage != "sft":
            rise = 1.5 * (1 - fall / first)
            curves.append(Curve(f"round {n} {stage}", "margin", steps, tuple(rise.tolist())))
    health = (HealthCheck(f"round {n} dpo", "first loss near ln 2", "PASS", 0.7, "0.700 is close to 0.693"),
              HealthCheck(f"round {n} dpo", "length drift", "WARN" if n == 2 else "PASS", 1.31,
                          f"answers grew by 31 %; look at the longest ones {HOSTILE if n == 2 else ''}"))
    shares = [reports.rate([1.0] * (55 + 6 * i + 3 * n) + [0.0] * (45 - 6 * i)) for i in range(4)]
    agreement = tuple(Agreement(n, skill, strength, share) for skill in ("arithmetic", "conversation")
                      for strength, share in zip(STRENGTHS, shares, strict=True))
    seconds = (("reward", 31.0), ("sample", 44.2), ("sft", 40.1), ("dpo", 38.0), ("evaluate", 22.5))
    return RoundReport(n, tuple(funnel), PairCounts(800, 120, 410, 530, 390, 96), (), evaluations, agreement,
                       tuple(curves), health, seconds, 210_000 + n), rows


def made_up_run(seed: int = 0, n_rounds: int = 3) -> RunReport:
    world = World(seed)
    rows = {"base": world.rows(-0.6, 0.0), "base in chat format": world.rows(-1.6, 0.02),
            "first policy": world.rows(0.1)}
    start = tuple(reports.evaluate(k, 0, "test", r, 4) for k, r in rows.items())
    rounds = []
    for n in range(1, n_rounds + 1):
        report, more = made_up_round(world, n)
        rounds.append(report)
        rows |= more
    asked = []
    for n in range(1, n_rounds + 1):
        asked += [(f"SFT on winners against random, round {n}", f"round {n} sft", f"round {n} sft random"),
                  (f"DPO adds to SFT, round {n}", f"round {n} dpo", f"round {n} sft")]
    asked += [("averaging adds to DPO", f"round {n_rounds} average", f"round {n_rounds} dpo"),
              ("last round against the first", f"round {n_rounds} average", "round 1 average")]
    family = [reports.compare(name, rows[a], rows[b], metric, "all", (a, b))
              for name, a, b in asked for metric in ("sampled", "greedy")]
    after = "7+5=12\n12-3=9\nAnswer: 9"
    samples = tuple(SampleAnswer(f"test-{i}", SKILLS[i % 4], 1 + i % 3, "Ann has 7 pens, gets 5, loses 3.",
                                 "7+5=13\n13-3=10\nAnswer: 10", "fail", after if i else HOSTILE, "pass")
                    for i in range(10))
    first = (Curve("first policy sft", "loss", (1, 2, 3, 4), (3.0, 2.0, 1.5, 1.3)),)
    name = f"made-up run {HOSTILE}"
    return RunReport(name, "tiny", "ab" * 32, "paper", seed, n_rounds, start, tuple(rounds),
                     tuple(reports.holm(family)), tuple(world.picks()), samples, (), first, 531.0, 2.31,
                     (("python", "3.11"), ("torch", "x.y"), ("device", "cpu")))


@pytest.fixture(scope="module")
def run() -> RunReport:
    return made_up_run()


FIGURES = (views.figure_chain, views.figure_pass_rates, views.figure_best_of_k, views.figure_training_curves)
TWINS = (views.describe_chain, views.describe_pass_rates, views.describe_best_of_k,
         views.describe_training_curves)


def empty(run: RunReport) -> RunReport:
    return replace(run, start=(), rounds=(), comparisons=(), best_of_k=(), samples=(), health=(), curves=())


def test_the_chain_draws_the_rates_of_the_policy_and_leaves_controls_off_the_line(run):
    ax = views.figure_chain(run).axes[0]
    policy = [s for e in views.stages(run) if (s := views.score(e)) and "random" not in e.stage]
    drawn = [list(c.lines[0].get_ydata()) for c in ax.containers]
    for metric in ("sampled", "greedy"):
        assert [getattr(s, metric).value for s in policy] in drawn
    controls = [c for c in ax.containers if len(c.lines[0].get_ydata()) == 3]
    for c in controls:  # beside the SFT of its own round: stages 3, 6 and 9 of the chain
        assert np.allclose(c.lines[0].get_xdata(), [3, 6, 9], atol=0.45)
        assert c.lines[0].get_linestyle() == "None"
    assert len(controls) == 2


def test_colour_is_never_alone(run):
    for draw in FIGURES:
        for ax in draw(run).axes:
            marks = [c.lines[0] for c in ax.containers if hasattr(c, "lines")]
            looks = [(m.get_marker(), m.get_linestyle(), m.get_markerfacecolor() == "#ffffff") for m in marks]
            assert len(looks) == len(set(looks))
            rounds = {(x.get_label(), x.get_linestyle()) for x in ax.lines if "round" in x.get_label()}
            assert len({line for _, line in rounds}) == len({name for name, _ in rounds}) == len(rounds)


def test_twins_hold_every_rate_and_are_the_same_each_time(run):
    for twin in TWINS:
        assert twin(run) == twin(made_up_run())
    for e in views.stages(run):
        s = views.score(e)
        assert f"{e.stage}" in views.describe_chain(run) and str(s.sampled) in views.describe_chain(run)
        for skill in SKILLS:
            assert f"- {e.stage}: sampled {views.score(e, skill).sampled}" in views.describe_pass_rates(run)
    funnel = views.describe_funnel(run.rounds[0])
    assert "- arithmetic: 3,216 candidates → 3,180 finished → 3,150 decided → 870 passed" in funnel


def test_curves_of_one_kind_share_a_panel_however_their_stage_is_written(run):
    stages = ("round1-dpo-1", "round1-dpo-2", "round2-dpo-1", "round 3 dpo run 2", "first")
    curves = tuple(Curve(stage, "preference loss", (1, 2), (0.7, 0.5)) for stage in stages)
    made = replace(empty(run), curves=curves)
    assert {k: len(v) for k, v in views.curves_by_kind(made).items()} == {
        ("dpo", "preference loss"): 4, ("first", "preference loss"): 1}
    (legend,) = views.figure_training_curves(made).legends
    assert [t.get_text() for t in legend.get_texts()] == ["round 1", "round 2", "round 3", "ln 2"]


@pytest.mark.parametrize("stage", ["round 1 sft on random", "round1-control", "round 2 sft random"])
def test_a_control_is_known_by_its_name(stage):
    assert views.is_control(stage) and not views.is_control("round 1 sft")


def test_svg_is_the_same_each_time(run):
    assert views.to_svg(views.figure_chain(run)) == views.to_svg(views.figure_chain(run))


def test_a_notebook_can_show_a_figure(run):
    assert views.figure_funnel(run.rounds[0])._repr_png_().startswith(b"\x89PNG")


def test_table_fits_the_terminal_and_holds_warnings_and_doubts(run):
    table = views.table_stages(run)
    assert max(map(len, table.split("\n"))) <= 100
    assert "WARN round 2 dpo: length drift" in table and "better*" in table and views.HOLM_NOTE in table
    long = replace(run, comparisons=tuple(replace(c, name=c.name * 4) for c in run.comparisons))
    assert max(map(len, views.table_stages(long).split("\n"))) <= 100


def test_a_gain_that_does_not_outlive_holm_is_starred():
    c = Comparison("x", "a", "b", "sampled", "all", 0.05, 0.01, 0.09, 0.02, 0.06, 600, "better")
    assert views.comparison_cells(c) == ("x", "sampled all", "+0.050 [+0.010, +0.090]", "0.060", "better*")
    assert views.comparison_cells(replace(c, p_holm=0.04))[-1] == "better"
    assert views.comparison_cells(replace(c, p_holm=0.0004))[3] == "<0.001"
    assert views.comparison_cells(replace(c, verdict="inconclusive", p_holm=1.0))[-1] == "inconclusive"


def test_falling_below_random_is_found_and_weighed(run):
    def curve(judge: str, *values: float) -> BestOfK:
        return BestOfK("programs", judge, (1, 4, 16), tuple(Rate(v, 100, v - 0.1, v + 0.1) for v in values))

    judged = (curve("random", 0.5, 0.5, 0.5), curve("checker", 0.5, 0.8, 0.9),
              curve("reward model", 0.5, 0.45, 0.3), curve("log-probability", 0.5, 0.6, 0.48))
    made = replace(run, best_of_k=judged)
    assert views.below_random(made) == {("programs", "reward model"): ((4, 16), (16,)),
                                        ("programs", "log-probability"): ((16,), ())}
    first, second = views.notes_best_of_k(made)
    assert "k = 4, 16: 0.30 [0.20, 0.40] at k = 16" in first and "whole interval is below" in first
    assert "still holds random's rate" in second
    assert "No judge falls below random" in views.describe_best_of_k(replace(run, best_of_k=judged[:2]))


def test_words_name_what_was_not_shown(run):
    c = Comparison("DPO adds", "a", "b", "greedy", "all", 0.01, -0.03, 0.05, 0.6, 0.6, 600, "inconclusive")
    worse = replace(c, name="averaging", difference=-0.1, low=-0.2, high=-0.05, p_holm=0.01, verdict="worse")
    words = " ".join(page.verdict_words(replace(run, comparisons=(c, worse))))
    assert "worse in 1 of 2: averaging" in words and "inconclusive in 1 of 2: DPO adds" in words
    assert "better in" not in words and "1 health check warned" in words
    good = [replace(c, metric=m, difference=d, p_holm=0.01, verdict="better")
            for m, d in (("greedy", 0.02), ("sampled", 0.05), ("sampled", 0.04), ("quality", 0.9))]
    words = " ".join(page.verdict_words(replace(run, comparisons=tuple(good))))
    assert "better in 4 of 4 (rates by +0.020 to +0.050 and quality, in logits, by +0.900 to +0.900)" in words
    assert "no gain is claimed" in " ".join(page.verdict_words(empty(run)))


class Reader(HTMLParser):
    """Checks that tags nest, and gathers ids, links and tags."""

    VOID = ("meta", "br", "hr", "img", "link", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self.note(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def note(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.links += [value] if name in ("href", "xlink:href", "src") else []
            assert not name.startswith("on"), (tag, name)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("of", [lambda r: r, empty, lambda r: replace(r, rounds=(), best_of_k=())])
def test_page_is_one_sound_document_that_asks_for_nothing(run, of):
    start = time.process_time()  # the bound is on work, not on who else uses the machine
    html = page.render_page(of(run))
    assert time.process_time() - start < 5 and len(html.encode()) < 3e6
    reader = Reader()
    reader.feed(html)
    assert not reader.open and "script" not in reader.tags and "link" not in reader.tags
    assert len(reader.ids) == len(set(reader.ids))
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(reader.ids)


def test_page_escapes_and_describes(run):
    html = page.render_page(run)
    assert HOSTILE not in html and html.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp;") >= 4
    assert html.count('role="img"') == html.count("<desc") == len(FIGURES) + len(run.rounds)
    assert "&lt;|eot_id|&gt;" in html and "prefers-color-scheme:dark" in html
    for color in views.COLORS.values():  # nothing drawn keeps a colour of the light theme in the dark
        assert html.count(color) == 1
    assert set(page.DARK) == set(views.COLORS)


def contrast(a: str, b: str) -> float:
    def light(color: str) -> float:
        parts = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [views.COLORS, page.DARK])
def test_text_and_marks_stand_out_on_both_themes(theme):
    for name in set(theme) - {"rule", "band", "plate"}:
        for ground in ("plate", "band"):
            assert contrast(theme[name], theme[ground]) >= 4, (name, ground)
    assert contrast(theme["ink"], theme["plate"]) >= 12 and contrast(theme["muted"], theme["plate"]) >= 4.5


def test_reports_need_no_torch():
    code = "import sys, llama3_lab.course.page, llama3_lab.pipeline.reports; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
