"""Evidence from the paper's figures and from runs: by hand where it is arithmetic, else by turning the input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab.paper import evidence, evidence_paper, evidence_runs, evidence_tables
from llama3_lab.paper.claims import claims
from llama3_lab.paper.evidence import SAYS, Evidence, functions, gather, source_of
from llama3_lab.paper.facts import Fact, fact, facts, number
from llama3_lab.paper.inconsistencies import inconsistencies, law_tokens
from llama3_lab.records import RunReport
from llama3_lab.store import from_json

RUNS = sorted((Path(__file__).parents[1] / "data" / "runs").glob("tiny-*.json"))


@pytest.fixture(scope="module")
def report() -> RunReport:
    return from_json(RunReport, json.loads(RUNS[0].read_text()))


@pytest.fixture
def change(monkeypatch):
    """A function that gives facts other values, for one test: what would the evidence say then?"""

    def to(**values):
        other = dict(facts())
        for key, value in values.items():
            key = key.replace("__", ".")
            other[key] = replace(other[key], value=value)
        monkeypatch.setattr("llama3_lab.paper.facts.facts", lambda: other)

    return to


# -- the record, and the register


@pytest.mark.parametrize(("fields", "words"), [
    ({"says": "proves"}, "it may say supports"), ({"about": ""}, "what it is about"), ({"text": ""}, "a text"),
    ({"low": 1.0}, "two ends"), ({"low": 2.0, "high": 1.0}, "low must not be the greater"),
])  # fmt: skip
def test_evidence_is_whole_or_refused(fields, words):
    fine = {"says": "supports", "about": "a simulation", "text": "x"}
    assert Evidence(**fine, low=1.0, high=2.0).n is None
    with pytest.raises(ValueError, match=words):
        Evidence(**{**fine, **fields})


def test_every_function_serves_a_claim_and_says_which():
    named = {n: c.id for c in claims() for n in c.evidence}
    there = {name: f for source in ("paper", "run", "simulation") for name, f in functions(source).items()}
    assert set(named) == set(there) and len(there) >= 30
    for name, f in there.items():
        assert f.__doc__.startswith(f"{named[name]}: "), f"{name}: the docstring begins with its claim"
    with pytest.raises(ValueError, match="no evidence function 'nothing'"):
        source_of("nothing")


def test_what_is_found_says_what_it_is_about(report):
    for c in claims():
        for e in gather(c, report, simulate=True):
            assert e.says in SAYS and e.text.endswith((".", ")"))
        assert [e for e in gather(c) if "small world" in e.about or e.about == evidence.SIMULATION] == []
        toys = [e for e in gather(c, report, simulate=True) if e not in gather(c)]
        assert all("small world" in e.about or e.about == evidence.SIMULATION for e in toys)


# -- from the paper's figures, by hand


def test_sizes_follow_from_table_3(change):
    found = evidence_paper.sizes_from_table_3()
    assert found.says == "supports" and f"{fact('parameters.8b').value:,}" in found.text
    change(architecture__8b__layers=40)
    assert evidence_paper.sizes_from_table_3().says == "contradicts"


def test_clear_wins_are_larger_than_chance(change):
    found = evidence_paper.clear_wins_in_table_2()
    assert found.n == 12 and found.value < 0
    change(table2__questions=(4,) * 6)  # so few questions decide nothing
    assert "clearly wins 0 and clearly loses 0; 12 are within chance" in evidence_paper.clear_wins_in_table_2().text


def test_six_n_d():
    assert evidence_paper.six_n_d().value == pytest.approx(6 * 405 * 15.6 / 38_000)


def test_multilingual_tokens_and_the_mix():
    found = evidence_paper.multilingual_tokens()
    assert found.value == pytest.approx(0.08 * 15e12) and "a model of 60B: no mere trace" in found.text
    assert evidence_paper.mix_adds_up().value == 0 and "3 free numbers" in evidence_paper.mix_adds_up().text


def test_the_405b_lies_beside_the_optimum_and_the_others_far_past():
    assert evidence_paper.tokens_against_the_law().value == pytest.approx(1560 / 1655)
    found = evidence_paper.tokens_per_parameter()
    assert found.value == pytest.approx((15.6e12 / 405e9) / (16.55e12 / 402e9))
    assert "405B has 1.9 times" in found.text  # 38.5 of 20


def test_gpu_hours_come_out_near_the_cards():
    hours = 3.8e25 / 400e12 / 3600 / 0.9
    assert evidence_paper.gpu_hours_reconciled().value == pytest.approx(hours / number("gpu_hours.405b"))


def test_sft_needs_a_batch_size():
    flops = 6 * 405e9 * number("table7.total.tokens") * 9000 * 1000
    found = evidence_paper.sft_hours_by_batch()
    assert found.value == pytest.approx(flops / 400e12 / 86_400 / 500)


def test_weights_in_memory():
    assert evidence_paper.weights_in_memory().value == pytest.approx(number("parameters.70b") / 2 / 24e9)
    assert "2 nodes; §6.1 says 2" in evidence_paper.weights_in_memory().text


def test_settings_and_infrastructure_are_counted():
    found = evidence_paper.hyperparameters_published()
    assert found.value * found.n == len(fact("post_training.published").value)
    assert "0.2 to 1 early, 0.6 in the last round" in found.text
    found = evidence_paper.figures_on_infrastructure()
    assert found.value == sum(k.startswith(("cluster.", "storage.", "scheduler")) for k in facts()) < found.n


def test_infrastructure_of_which_nothing_is_told_would_be_a_closed_book(monkeypatch):
    few = {k: f for k, f in facts().items() if not k.startswith(("cluster.", "storage."))}
    monkeypatch.setattr(evidence_paper, "facts", lambda: few)
    assert evidence_paper.figures_on_infrastructure().says == "inconclusive"


def test_the_order_of_a_round():
    assert evidence_tables.order_of_the_round().value == -2  # first against third


def test_batches_of_ten_million():
    found = evidence_tables.ten_million_in_the_printed_steps()
    assert found.value == pytest.approx(1e7 / 9000) and "some 940,000 tokens" in found.text  # 1111 · 846


def test_synthetic_code_adds_up():
    assert evidence_tables.synthetic_code_by_source().value == pytest.approx(2.2 / 2.7)


def test_tables_6_and_7_average_to_their_totals():
    found = evidence_tables.tables_6_and_7_describe()
    assert found.n == 8 and found.value < 0.02
    shares, tokens = fact("table6.share").value, fact("table6.tokens").value
    by_hand = (shares[0] * tokens[0] + shares[1] * tokens[1] + shares[2] * tokens[2] + shares[3] * tokens[3]) / 100
    assert evidence_tables.weighted_mean("table6", "tokens") == pytest.approx(by_hand)
    assert by_hand == pytest.approx(number("table6.total.tokens"), abs=0.1)


def test_annealing_has_no_column_for_quantity():
    found = evidence_tables.annealing_gains()
    assert found.value == number("annealing.gsm8k_gain") and found.text.startswith("+24 % and +6.4 % on the 8B")


def test_the_guard_is_no_small_model():
    assert evidence_tables.how_small_the_guards_are().value == pytest.approx(number("parameters.8b") / 86e6)


def test_the_mean_over_the_languages():
    assert evidence_tables.mean_reduction_of_violations().value == -(86 + 59 + 77 + 71 + 48 + 65 + 60 + 51) / 8


def test_misses_are_one_less_recall_and_f1_follows():
    found = evidence_tables.rates_that_can_be_had()
    assert found.value == pytest.approx(1 - fact("table27.recall").value[0]) and "in 6 of 6 rows" in found.text
    assert "Multilingual 0.195 and 0.033" in found.text
    assert evidence_tables.f1_fits(0.5, 0.5, 0.5) and evidence_tables.f1_fits(0.5, 0.5, 0.5009)
    assert not evidence_tables.f1_fits(0.5, 0.5, 0.502) and not evidence_tables.f1_fits(1.0, 0.0, 0.5)


def test_a_sign_test_by_hand():
    assert evidence_tables.sign_test(6, 1) == pytest.approx(2 * (7 + 1) / 128)
    assert evidence_tables.sign_test(1, 6) == evidence_tables.sign_test(6, 1)
    assert evidence_tables.sign_test(3, 3) == 1 and evidence_tables.sign_test(8, 0) == pytest.approx(2 / 256)


def test_independent_guards_would_do_better_than_table_25():
    assert evidence_tables.independent(-76, -75) == pytest.approx(-94)
    assert evidence_tables.independent(0, -40) == pytest.approx(-40)
    found = evidence_tables.layers_against_independence()
    assert found.value == pytest.approx(8) and found.n == 8 and "In 8 of 8 languages the pair does worse" in found.text


def test_a_layer_has_a_price():
    found = evidence_tables.what_each_layer_costs()
    assert found.value == 86 - 75 and "77 points of false refusals" in found.text


def test_scores_of_llama_33():
    found = evidence_tables.scores_of_llama_33()
    assert found.text.startswith("6 of 8 scores rose, 1 fell, 1 stayed")
    assert found.value == pytest.approx((0 + 2.5 + 4.6 + 2.5 + 7.9 + 9 - 0.2 + 4.2) / 8)


# What each function says of the printed figures, and of others: one that says the same whatever is printed is none.
OTHERS = {
    "sizes_from_table_3": ("supports", {"architecture__8b__layers": 40}, "contradicts"),
    "clear_wins_in_table_2": ("inconclusive", {"table2__questions": (4,) * 6}, "supports"),
    "six_n_d": ("supports", {"tokens__405b": 1e13}, "contradicts"),
    "multilingual_tokens": ("supports", {"mix__multilingual": 1}, "inconclusive"),
    "mix_adds_up": ("supports", {"mix__code": 7}, "contradicts"),
    "tokens_against_the_law": ("contradicts", {"tokens__405b": 8e13}, "supports"),
    "tokens_per_parameter": ("contradicts", {"tokens__405b": 8e13}, "supports"),
    "gpu_hours_reconciled": ("supports", {"gpu_hours__405b": 6e7}, "contradicts"),
    "sft_hours_by_batch": ("inconclusive", {"sft__steps": (850, 900)}, "contradicts"),
    "weights_in_memory": ("inconclusive", {"parameters__70b": 4e10}, "supports"),
    "hyperparameters_published": ("inconclusive", {"post_training__missing": ()}, "contradicts"),
    "order_of_the_round": ("contradicts", {"loop__order": ("SFT", "reward model", "DPO")}, "supports"),
    "ten_million_in_the_printed_steps": ("inconclusive", {"cards__human_examples": 1e9}, "contradicts"),
    "synthetic_code_by_source": ("supports", {"cards__synthetic_examples": 1e6}, "contradicts"),
    "tables_6_and_7_describe": ("contradicts", {"table6__share": (25, 25, 25, 25)}, "inconclusive"),
    "annealing_gains": ("inconclusive", {"annealing__gain_405b": "as large"}, "supports"),
    "how_small_the_guards_are": ("contradicts", {"parameters__8b": 1e8}, "supports"),
    "mean_reduction_of_violations": ("supports", {"guard__violations": -80}, "contradicts"),
    "rates_that_can_be_had": ("supports", {"table27__f1": (0.939, 0.9, 0.825)}, "contradicts"),
    "layers_against_independence": ("contradicts", {"table25__full_vr": (-99,) * 8}, "supports"),
    "what_each_layer_costs": ("supports", {"table25__full_vr": (0,) * 8}, "contradicts"),
    "scores_of_llama_33": ("inconclusive", {"llama33__after": (99.0,) * 8}, "supports"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_evidence_from_the_paper_follows_the_printed_figures(change, name):
    before, others, after = OTHERS[name]
    assert functions("paper")[name]().says == before
    change(**others)
    assert functions("paper")[name]().says == after != before


def test_every_function_of_the_paper_can_come_out_another_way():
    assert set(functions("paper")) == {*OTHERS, "figures_on_infrastructure"}  # the last one has a test of its own


@pytest.mark.parametrize(("name", "values", "says"), [
    ("clear_wins_in_table_2", {"table2__llama_405b": (10,) * 6}, "contradicts"),
    ("tokens_against_the_law", {"tokens__405b": 2.5e13}, "inconclusive"),
    ("sft_hours_by_batch", {"sft__steps": (8e5, 9e5)}, "supports"),
    ("weights_in_memory", {"parameters__8b": 2e10}, "contradicts"),
    ("weights_in_memory", {"parameters__70b": 2e11}, "contradicts"),
    ("hyperparameters_published", {"sampling__multilingual_temperature": (0.6, 0.6)}, "supports"),
    ("synthetic_code_by_source", {"code__synthetic": 1e6}, "inconclusive"),
    ("annealing_gains", {"annealing__gsm8k_gain": -1}, "contradicts"),
    ("layers_against_independence", {"table25__full_vr": (-86, *(-99,) * 7)}, "inconclusive"),
    ("what_each_layer_costs", {"table25__full_vr": (-86, *(0,) * 7)}, "inconclusive"),
    ("scores_of_llama_33", {"llama33__after": (1.0,) * 8}, "contradicts"),
])  # fmt: skip
def test_and_a_third_way(change, name, values, says):
    change(**values)
    assert functions("paper")[name]().says == says


def test_thirty_functions_decide_and_a_few_only_show():
    there = {name for source in ("paper", "run", "simulation") for name in functions(source)}
    assert there > evidence.SHOWING and len(there - evidence.SHOWING) >= 30


# -- inside the paper


def test_inconsistencies_are_computed():
    rows = {(r.where, r.what.split(",")[0]): r for r in inconsistencies()}
    assert len(rows) == len(inconsistencies()) >= 10

    def of(where, what):
        return next(r for (w, t), r in rows.items() if w == where and t.startswith(what))

    assert law_tokens("text", 1.0) == number("law.text.a")
    assert of("§3.2.1", "tokens at the optimum").computed == pytest.approx(0.29 * 3.8e25**0.53)
    assert 1.5 < of("§3.2.1", "tokens at the optimum").ratio < 1.7
    assert of("§3.2.1, Figure 3", "tokens").ratio == pytest.approx(1, abs=0.02)
    assert of("Table 4, row 3", "groups").computed == 16_384 / (8 * 16 * 16) == 2 * number("table4.row3.dp_later")
    assert of("Table 5, row 1", "share").computed == pytest.approx(100 * 148 / 419)
    assert of("§3.3.4", "share").computed == pytest.approx(100 * 268 / 419)
    assert of("Table 5", "sum").printed == pytest.approx(94.9) and of("Table 5", "sum").computed == 100
    assert of("§3.4.3", "tokens").ratio == 2.5
    assert of("§3.4.1", "tokens").computed == 8e6 * number("recipe.batch2_length")
    assert of("Table 28", "AUC").printed - of("Table 28", "AUC").computed == pytest.approx(0.03)
    assert of("Table 7, total", "tokens").computed == pytest.approx(847.1, abs=0.1)
    assert all(r.printed != r.computed and r.note and r.unit for r in rows.values())


def test_a_paper_without_slips_would_show_fewer(change):
    before = len(inconsistencies())
    change(table4__row2__tflops=405)
    assert len(inconsistencies()) == before - 1


# -- from runs


@pytest.mark.parametrize("path", RUNS, ids=[p.stem for p in RUNS])
def test_a_recorded_run_speaks_to_its_claims(path):
    run = from_json(RunReport, json.loads(path.read_text()))
    for name, f in functions("run").items():
        found = f(run)
        assert run.name in found.about, name
        assert found.n and (found.value is None or found.low is None or found.low <= found.value <= found.high), name
    assert evidence_runs.selected_against_lot(run).says == "supports"
    assert evidence_runs.format_before_skill(run).says == "supports"


def test_a_run_without_something_says_so(report):
    bare = replace(report, start=(), rounds=(), comparisons=(), best_of_k=())
    for name, f in functions("run").items():
        assert f(bare).says == "cannot be tested here", name
        assert "This run has no" in f(bare).text
    one = replace(report, n_rounds=1)
    assert evidence_runs.gain_after_round_one(one).says == "cannot be tested here"
    assert evidence_runs.skill_before_the_later_rounds(one).says == "cannot be tested here"


def turned(report: RunReport, words: str, **fields) -> RunReport:
    """The report with other figures in all comparisons whose name holds `words`."""
    return replace(report, comparisons=tuple(
        replace(c, **fields) if words in c.name else c for c in report.comparisons))  # fmt: skip


@pytest.mark.parametrize(("function", "words"), [
    ("what_dpo_adds", "DPO over"), ("gain_after_round_one", "last round over"),
    ("selected_against_lot", "selected over"),
])  # fmt: skip
def test_what_a_comparison_says_follows_its_interval_and_its_correction(report, function, words):
    f = getattr(evidence_runs, function)
    better = {"difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.001}
    worse = {"difference": -0.1, "low": -0.15, "high": -0.05, "p_holm": 0.001}
    assert f(turned(report, words, **better)).says == "supports"
    assert f(turned(report, words, **worse)).says == "contradicts"
    assert f(turned(report, words, **{**better, "p_holm": 0.2})).says == "inconclusive"
    assert f(turned(report, words, **{**better, "low": -0.01})).says == "inconclusive"
    found = f(turned(report, words, **better))
    assert (found.value, found.low, found.high) == (0.1, 0.05, 0.15) and "+0.100 [+0.050, +0.150]" in found.text


def with_rates(report: RunReport, stage: str, **rates) -> RunReport:
    """The report with other rates, of width 0.04, for one stage's whole."""

    def other(e):
        if e.stage != stage:
            return e
        new = {k: replace(getattr(e.scores[0], k), value=v, low=v - 0.02, high=v + 0.02) for k, v in rates.items()}
        return replace(e, scores=tuple(replace(s, **new) if (s.skill, s.level) == ("all", 0) else s for s in e.scores))

    return replace(report, start=tuple(map(other, report.start)),
                   rounds=tuple(replace(r, evaluations=tuple(map(other, r.evaluations))) for r in report.rounds))


def test_format_and_skill_are_told_apart(report):
    base = with_rates(with_rates(report, "base, own format", sampled=0.4), "base, chat format", ended=0.1)
    says = {}
    for skill in (0.4, 0.425, 0.6):
        for ended in (0.1, 0.9):
            after = with_rates(base, "first policy", sampled=skill, ended=ended)
            says[skill, ended] = evidence_runs.format_before_skill(after).says
    assert says == {(0.4, 0.1): "inconclusive", (0.4, 0.9): "supports", (0.425, 0.1): "inconclusive",
                    (0.425, 0.9): "inconclusive",  # a gain of 0.025 ± 0.028 may be none, and may be one
                    (0.6, 0.1): "contradicts", (0.6, 0.9): "contradicts"}  # fmt: skip


def test_where_the_gain_was_made(report):
    run = with_rates(with_rates(report, "first policy", sampled=0.4), "round 3 policy", sampled=0.8)
    found = {at: evidence_runs.skill_before_the_later_rounds(with_rates(run, "round 1 policy", sampled=at))
             for at in (0.41, 0.6, 0.7)}  # fmt: skip
    assert {at: e.says for at, e in found.items()} == {0.41: "supports", 0.6: "inconclusive", 0.7: "contradicts"}
    assert found[0.7].value == pytest.approx(0.3 - 0.1)
    assert found[0.7].high - found[0.7].value == pytest.approx(0.02 * (4 + 1 + 1) ** 0.5)


def test_the_weakest_round_decides_what_dpo_adds(report):
    one, *others = [c for c in report.comparisons if "DPO over" in c.name and (c.metric, c.skill) == ("sampled", "all")]
    weak = replace(one, difference=0.001, low=-0.01, high=0.012, p_holm=0.9)
    strong = [replace(c, difference=0.1, low=0.05, high=0.15, p_holm=0.001) for c in others]
    found = evidence_runs.what_dpo_adds(replace(report, comparisons=(*strong, weak)))
    assert (found.says, found.value, found.high) == ("inconclusive", 0.001, 0.012)


def test_what_lot_brings_is_held_against_the_first_policy(report):
    run = with_rates(with_rates(report, "first policy", sampled=0.4), "round 1 sft on random", sampled=0.45)
    assert "they bring +0.050 [+0.022, +0.078] over the model" in evidence_runs.selected_against_lot(run).text


def test_the_filter_is_counted_by_level(report):
    first = replace(report.rounds[0], funnel=tuple(replace(f, solved=f.prompts if f.level == 1 else 0, selected=0)
                                                  for f in report.rounds[0].funnel))  # fmt: skip
    found = evidence_runs.strict_filter_loses_hard_prompts(replace(report, rounds=(first,)))
    assert found.value == 1.0 and "level 1 100%, level 2 0%, level 3 0%" in found.text


def test_a_round_report_tells_its_volumes(report):
    found = evidence_runs.what_a_round_report_holds(report)
    assert found.n == report.n_rounds and f"{report.rounds[0].pairs.dpo} pairs" in found.text


def test_graders_are_compared_at_the_largest_k(report):
    found = evidence_runs.graded_by_reward_or_by_checker(report)
    at = {(b.skill, b.judge): b.rates[-1].value for b in report.best_of_k}
    assert found.value == max(at[s, "checker"] - at[s, "reward model"] for s in ("arithmetic", "programs", "orderings"))


def test_the_implicit_reward_is_held_against_chance(report):
    def lifted(by):
        return replace(report, best_of_k=tuple(
            replace(b, rates=tuple(replace(r, value=r.value + by, low=r.low + by, high=r.high + by) for r in b.rates))
            if b.judge == "implicit reward" else b for b in report.best_of_k))  # fmt: skip

    assert [evidence_runs.implicit_reward_as_judge(lifted(by)).says for by in (1, -1)] == ["supports", "contradicts"]


def test_facts_can_be_changed_for_a_test(change):
    change(rounds=7)
    assert isinstance(fact("rounds"), Fact) and number("rounds") == 7
