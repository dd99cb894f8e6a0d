"""Parabolas find their minimum and say where they have none; the law goes through them; the record is as it says."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_lab.paper import isoflop, power_law
from llama3_lab.paper.facts import fact
from llama3_lab.paper.isoflop import fit_parabola
from llama3_lab.paper.power_law import PowerLaw, fit_law, paper_law
from llama3_lab.paper.scale import training_flops
from llama3_lab.paper.surface import Surface
from llama3_lab.store import read_records

RUNS = Path(__file__).parents[1] / "data" / "runs"
SIZES = np.logspace(4, 6, 7)


def curve(at: float, bend: float = 0.05, noise: float = 0.0, seed: int = 0):
    exact = 0.8 + bend * np.log(SIZES / at) ** 2
    return exact + noise * np.random.default_rng(seed).standard_normal(len(exact))


# -- the paper's law


def test_seven_thousandths_of_an_exponent_are_a_factor_of_one_and_a_half():
    flops = fact("law.forecast.flops").value
    text, legend = (paper_law(where).at(flops) for where in power_law.LAWS)
    assert 1.5 < legend / text < 1.6
    printed = fact("law.forecast.tokens").value
    assert abs(legend / printed - 1) < 0.02 < abs(text / printed - 1)
    exact = power_law.exponent_for(paper_law("legend"), flops, printed)
    assert round(exact, 3) == fact("law.legend.alpha").value
    assert PowerLaw(exact, fact("law.legend.a").value).at(flops) == pytest.approx(printed)


def test_another_place_is_refused():
    with pytest.raises(ValueError, match="no law in 'abstract'; it does in text, legend"):
        paper_law("abstract")


@given(st.floats(0.1, 1), st.floats(0.01, 10), st.floats(1e10, 1e26), st.floats(1.01, 100))
def test_a_power_law_multiplies_by_the_same_factor(alpha, a, x, times):
    law = PowerLaw(alpha, a)
    assert law.at(x * times) / law.at(x) == pytest.approx(times**alpha)
    assert power_law.exponent_for(law, x, law.at(x)) == pytest.approx(alpha)


# -- parabolas


@given(st.floats(3e4, 3e5), st.floats(0.01, 1))
def test_an_exact_parabola_comes_back(at, bend):
    found, minima = fit_parabola(1e12, SIZES, curve(at, bend), draws=20)
    assert found.at == pytest.approx(at, rel=1e-4)
    assert found.bottom == pytest.approx(0.8, rel=1e-6) and found.bend == pytest.approx(bend, rel=1e-4)
    assert found.bracketed and found.verdict() == "bracketed"
    assert minima == pytest.approx(at, rel=1e-4)
    assert found.loss(2 * at) == pytest.approx(0.8 + bend * math.log(2) ** 2)


def test_the_interval_of_the_minimum_covers_it_about_as_often_as_it_says():
    # 200 fits of 21 points each; at 95 % right, fewer than 176 would be a rare accident, and 100 % is possible.
    sizes, held = np.repeat(SIZES, 3), 0
    for seed in range(200):
        noise = 0.02 * np.random.default_rng(seed).standard_normal(len(sizes))
        found, _ = fit_parabola(1e12, sizes, 0.8 + 0.05 * np.log(sizes / 1e5) ** 2 + noise, draws=200, seed=seed)
        held += found.low <= 1e5 <= found.high
    assert held >= 176


@pytest.mark.parametrize(
    ("at", "bend", "words"),
    [(1.2e3, 0.05, "not bracketed: smaller sizes are missing"),
     (1.2e7, 0.05, "not bracketed: larger sizes are missing"),
     (1e5, -0.05, "no minimum: the curve bends the wrong way")],
)  # fmt: skip
def test_a_minimum_outside_the_sizes_tried_is_not_called_one(at, bend, words):
    found, _ = fit_parabola(1e12, SIZES, curve(at, bend, 0.002))
    assert not found.bracketed
    assert found.verdict() == words


def test_noise_that_drowns_the_bend_leaves_no_bracket():
    found, minima = fit_parabola(1e12, SIZES, curve(1e5, 0.001, 0.05, seed=2))
    assert not found.bracketed
    assert not found.bend > 0 or (found.low < SIZES[0] or found.high > SIZES[-1])
    assert len(minima) == 1000


@pytest.mark.parametrize(
    ("sizes", "losses", "words"),
    [([1, 2, 3], [1, 2, 3], "3 sizes"), ([1, 1, 2, 2], [1, 2, 3, 4], r"\(2 different\)"),
     ([1, 2, 3, 4], [1, 2, 3], "3 losses"), ([1, 2, 3, -4], [1, 2, 3, 4], "a size of -4"),
     ([1, 2, 3, 4], [1, 2, 3, math.nan], "a loss of nan")],
)  # fmt: skip
def test_cells_that_make_no_parabola_are_refused(sizes, losses, words):
    with pytest.raises(ValueError, match=words):
        fit_parabola(1e12, sizes, losses)


def cell(budget: float, width: int, seed: int, loss: float) -> isoflop.Cell:
    tokens = 10**6 // width
    return isoflop.Cell("grid", budget, width, 2, 2, 100 * width, int(budget), tokens, seed, 0.01, loss, 0.1, 1.0)


def test_each_budget_has_its_own_parabola_and_two_axes_share_their_draws():
    rng, widths = np.random.default_rng(0), (8, 12, 16, 24, 32)
    cells = [cell(b, w, s, 0.8 + 0.1 * math.log(w / at) ** 2 + 0.01 * rng.standard_normal())
             for b, at in ((3e11, 20), (1e11, 14)) for w in widths for s in (0, 1)]  # fmt: skip
    one, two = (isoflop.parabolas(cells, x, draws=50) for x in (lambda c: c.parameters, lambda c: c.parameters**2))
    assert list(one) == list(two) == [1e11, 3e11]
    for budget, (found, minima) in one.items():
        own = [c for c in cells if c.budget == budget]
        assert found == fit_parabola(budget, [c.parameters for c in own], [c.loss for c in own], 50)[0]
        assert two[budget][1] == pytest.approx(minima**2), "draw by draw the same runs"


def test_the_spread_over_seeds_is_pooled_over_what_is_otherwise_alike():
    cells = [cell(1e11, 8, 0, 1.0), cell(1e11, 8, 1, 1.2), cell(1e11, 16, 0, 5.0), cell(1e11, 16, 1, 5.4),
             cell(2e11, 8, 0, 9.0)]  # fmt: skip
    spread, degrees = isoflop.seed_spread(cells)
    assert degrees == 2 and spread == pytest.approx(math.sqrt((0.02 + 0.08) / 2))
    with pytest.raises(ValueError, match="no two cells differ by the seed only"):
        isoflop.seed_spread(cells[::2])


# -- the law through the minima


def test_the_law_goes_through_exact_minima_and_its_interval_widens_far_away():
    budgets = np.array([1e11, 3e11, 1e12, 3e12])
    values = 0.3 * budgets**0.55
    draws = values[:, None] * np.exp(0.05 * np.random.default_rng(0).standard_normal((4, 500)))
    found = fit_law(budgets, values, draws)
    assert (found.law.alpha, found.law.a) == (pytest.approx(0.55), pytest.approx(0.3))
    assert found.alpha_low < 0.55 < found.alpha_high
    near, far = found.at(6e11), found.at(3.8e25)
    assert near[0] == pytest.approx(0.3 * 6e11**0.55)
    assert math.log(far[2] / far[1]) > 10 * math.log(near[2] / near[1])


def test_draws_without_a_minimum_are_left_out_and_keep_their_place():
    budgets, values = [1e11, 1e12, 1e13], [1e5, 3e5, 9e5]
    draws = np.array([[1e5, np.inf, 1e5], [3e5, 3e5, 3e5], [9e5, 9e5, 0.0]])
    found = fit_law(budgets, values, draws)
    assert found.alpha_low == found.alpha_high == pytest.approx(found.law.alpha)
    assert np.isfinite(found.draws).tolist() == [[True, False, False]] * 2
    with pytest.raises(ValueError, match="none of the 2 draws has a minimum at every budget"):
        fit_law(budgets, values, draws[:, 1:])
    assert math.isnan(fit_law(budgets, values).alpha_low)


def test_two_budgets_make_no_law():
    with pytest.raises(ValueError, match="2 budgets and 2 values"):
        fit_law([1e11, 1e12], [1, 2])


def test_the_law_through_parabolas_is_the_law_of_their_minima():
    fitted = [fit_parabola(b, SIZES, curve(0.3 * b**0.5, noise=0.002, seed=int(b / 1e10)), draws=200)
              for b in (1e11, 3e11, 1e12)]  # fmt: skip
    found = isoflop.law_through(fitted)
    assert found.law == fit_law([p.budget for p, _ in fitted], [p.at for p, _ in fitted]).law
    assert found.alpha_low < 0.5 < found.alpha_high < found.alpha_low + 0.2
    assert isoflop.law_through(fitted[::-1]).law.alpha == pytest.approx(found.law.alpha)
    bent, _ = fit_parabola(3e12, SIZES, curve(1e5, -0.05), draws=20)
    with pytest.raises(ValueError, match=r"no minimum at 3e\+12 FLOPs; leave such budgets out"):
        isoflop.law_through([*fitted, (bent, None)])


def test_parabolas_on_a_known_surface_find_its_exponent():
    surface, budgets = Surface(1.8, 480.0, 2000.0, 0.35, 0.35), [1e18, 1e19, 1e20, 1e21]
    tops = []
    for budget in budgets:
        sizes = surface.optimum(budget)[0] * np.logspace(-0.5, 0.5, 7)
        tops.append(fit_parabola(budget, sizes, [surface.loss(n, budget / 6 / n) for n in sizes], draws=5)[0].at)
    assert fit_law(budgets, tops).law.alpha == pytest.approx(0.5, abs=0.005)


# -- the recorded experiment


def recorded(phase: str):
    return [c for c in read_records(RUNS / "isoflop.jsonl", isoflop.Cell) if c.phase == phase]


def test_the_record_holds_enough_budgets_and_sizes_made_in_about_ten_minutes():
    grid = recorded("grid")
    budgets = sorted({c.budget for c in grid})
    assert len(budgets) >= 4
    for budget in budgets:
        assert len({c.parameters for c in grid if c.budget == budget}) >= 4
    conditions = {c.phase: c for c in read_records(RUNS / "isoflop-conditions.jsonl", isoflop.Conditions)}["grid"]
    assert conditions.seconds < 15 * 60 and conditions.workers == 2
    assert conditions.cpu_seconds == pytest.approx(sum(c.seconds for c in [*grid, *recorded("exam")]), abs=1)


def test_every_recorded_minimum_is_bracketed_in_parameters_and_in_tokens():
    for size in (lambda c: c.parameters, lambda c: c.tokens):
        assert all(found.bracketed for found, _ in isoflop.parabolas(recorded("grid"), size).values())


def test_neither_the_tuning_nor_the_exam_shares_a_seed_with_the_grid_and_the_exam_is_dearer():
    grid, exam, tuning = (recorded(phase) for phase in ("grid", "exam", "tuning"))
    seeds = [{c.seed for c in cells} for cells in (grid, exam, tuning)]
    assert all(seeds) and sum(map(len, seeds)) == len(set.union(*seeds))
    assert min(c.budget for c in exam) > 2 * max(c.budget for c in grid)
    assert min(c.parameters for c in grid) <= min(c.parameters for c in exam)


def test_every_recorded_cell_spent_its_budget_counted_exactly():
    from llama3_lab.pipeline.pretraining import Recipe, small_llama

    for c in [*recorded("grid"), *recorded("exam")]:
        a = small_llama(c.width, c.layers, c.heads)
        assert c.parameters == a.parameters()
        assert c.flops == c.tokens // 128 * training_flops(a, 128)
        assert abs(c.flops / c.budget - 1) < 0.05
        assert c.learning_rate == pytest.approx(Recipe().peak(a))


# -- the training itself


def test_a_tiny_model_learns_within_its_budget_and_the_same_way_twice():
    import torch

    from llama3_lab.pipeline.pretraining import Recipe, pretrain, share_at, small_llama, text_rows

    a, how = small_llama(16, 1, 2), Recipe(row=32, rows=4)
    held_out = text_rows(16, 32, seed=7)
    assert held_out.shape == (16, 33) and torch.equal(held_out[1:, 0], held_out[:-1, -1])
    budget = 40 * how.rows * training_flops(a, how.row)
    first, second = pretrain(a, budget, how, held_out), pretrain(a, budget, how, held_out)
    assert first.steps == 40 and first.tokens == 40 * 4 * 32 and first.flops == budget
    assert first.losses == second.losses and len(first.losses) == 16
    assert first.loss < 0.9 * math.log(a.vocabulary) < pretrain(a, 1.0, how, held_out).loss * 1.1
    assert pretrain(a, budget, replace(how, seed=1), held_out).losses != first.losses
    shares = [share_at(step, 40, how) for step in range(40)]
    assert max(shares) == pytest.approx(1, abs=0.01) and shares[0] < 0.3 and shares[-1] == pytest.approx(0.1, abs=0.01)


def test_held_out_text_is_not_trained_on():
    from llama3_lab.world.corpus import documents

    trained = {text for seed in (1000, 1001, 1002) for text in documents(2000, seed)}
    fresh = list(documents(300, 7))
    assert sum(text in trained for text in fresh) / len(fresh) < 0.05


def test_one_thread_is_for_a_while_only_even_if_something_fails():
    import torch

    from llama3_lab.pipeline.pretraining import one_thread

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="mine"), one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError("mine")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
