"""FLOPs are those that torch counts; hours, energy and money follow; the paper's figures are computed from its own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_lab.paper import scale
from llama3_lab.paper.architecture import Architecture, llama3
from llama3_lab.paper.facts import fact

SMALL = Architecture(layers=2, width=24, ffn=40, heads=4, kv_heads=2, head_dim=6, vocabulary=50)
MACHINE = scale.Machine(gpus=8, peak_tflops=100, mfu=0.4, effective=0.9, watts=500, price=2.0)


def counted(architecture: Architecture, row: int, rows: int, backward: bool) -> int:
    """What torch's counter counts on a real model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llama3_lab.pipeline.pretraining import build

    model = build(architecture, row)
    model.set_attn_implementation("eager")  # as matrices; the fused kernels are counted by rules of their own
    ids = torch.zeros(rows, row, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        out = model(input_ids=ids).logits.sum()
        if backward:
            out.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("change", [{}, {"tied": True}, {"layers": 3, "kv_heads": 1}, {"head_dim": 8, "ffn": 30}])
@pytest.mark.parametrize(("row", "rows"), [(16, 1), (9, 3)])
def test_torch_counts_the_same_flops(change, row, rows):
    a = replace(SMALL, **change)
    assert counted(a, row, rows, backward=False) == rows * scale.forward_flops(a, row, causal=False)
    assert counted(a, row, rows, backward=True) == rows * scale.training_flops(a, row, causal=False)


def test_a_forward_pass_counted_by_hand():
    a = Architecture(layers=1, width=2, ffn=3, heads=1, kv_heads=1, head_dim=2, vocabulary=5)
    # Weights met: q, k, v, o 4 each; 3·2·3; output 10: 44. Pairs of 3 tokens: 9, or 6 that are causal; 4·2 each.
    assert scale.forward_flops(a, 3, causal=False) == 2 * 44 * 3 + 8 * 9
    assert scale.forward_flops(a, 3) == 2 * 44 * 3 + 8 * 6
    assert scale.training_flops(a, 3) == 3 * (2 * 44 * 3 + 8 * 6)


def test_a_row_written_token_by_token_from_a_cache_costs_the_causal_row():
    assert sum(scale.decode_flops(SMALL, n) for n in range(1, 33)) == scale.forward_flops(SMALL, 32)


def test_6nd_misses_the_embedding_one_way_and_attention_the_other():
    a, row = llama3("405b"), 8192
    estimate = scale.six_nd(a.parameters(), row)
    assert scale.training_flops(a, row) > estimate > 6 * a.matrix_parameters() * row
    unseen = 6 * (a.parameters() - a.matrix_parameters()) * row
    attention = 3 * scale.attention_flops(a, row)
    assert scale.training_flops(a, row) == estimate - unseen + attention
    assert unseen == 6 * row * (a.vocabulary * a.width + (2 * a.layers + 1) * a.width)


def test_the_papers_flops_are_6nd_and_its_forecast_costs_more():
    flops = fact("flops.405b").value
    assert scale.six_nd(llama3("405b").parameters(), fact("tokens.405b").value) == pytest.approx(flops, rel=0.005)
    forecast = scale.six_nd(fact("law.forecast.parameters").value, fact("law.forecast.tokens").value)
    assert 1.04 < forecast / fact("law.forecast.flops").value < 1.06


def test_3_8e25_flops_are_reconciled_with_the_cards_gpu_hours():
    flops, hours, tflops = fact("flops.405b").value, fact("gpu_hours.405b").value, fact("table4.row2.tflops").value
    ideal = scale.gpu_hours(flops, tflops)
    billed = scale.gpu_hours(flops, tflops, fact("training.effective_share").value / 100)
    assert ideal < billed < hours
    assert billed == pytest.approx(hours, rel=0.06)  # within six per cent, from three figures of another source
    assert scale.achieved_tflops(flops, hours) == pytest.approx(tflops * ideal / hours)


def test_mfu_of_table_4_fits_its_rounded_tflops_and_not_the_rounded_ones_as_printed():
    peak = fact("h100.peak_tflops").value
    recomputed = [round(100 * scale.mfu(row.tflops, peak)) for row in scale.table4()]
    printed = [round(100 * row.mfu) for row in scale.table4()]
    assert [a == b for a, b in zip(recomputed, printed, strict=True)] == [True, False, True]
    for row in scale.table4():
        low, high = row.mfu_range(peak)
        assert low < row.mfu + 0.005 and row.mfu - 0.005 < high, "no TFLOPs that round to the printed ones would do"


def test_only_a_dp_of_8_makes_row_3_of_table_4_add_up():
    *_, third = rows = scale.table4()
    assert all(row.product == row.gpus for row in rows)
    assert all(round(row.tokens / 1e6) in (16, 17) for row in rows)
    later = replace(third, dp=fact("table4.row3.dp_later").value)
    assert later.product * 2 == later.gpus and later.tokens * 2 == third.tokens


def test_a_bill_worked_by_hand():
    # 3.6e18 FLOPs at 40 TFLOPs are 25 GPU-hours; at 90 % of the time, 27.8.
    bill = scale.bill(3.6e18, MACHINE)
    assert bill.gpu_hours == pytest.approx(25 / 0.9)
    assert bill.days == pytest.approx(25 / 0.9 / 8 / 24)
    assert bill.mwh == pytest.approx(25 / 0.9 * 500 / 1e6)
    assert bill.cost == pytest.approx(50 / 0.9)
    assert scale.bill(3.6e18, replace(MACHINE, overhead=1.5)).mwh == pytest.approx(1.5 * bill.mwh)


def test_metas_machine_is_the_papers():
    machine = scale.meta_machine(price=2.0)
    assert machine.gpus == fact("table4.row2.gpus").value and machine.watts == fact("cluster.gpu_watts").value
    bill = scale.bill(fact("flops.405b").value, machine)
    assert bill.gpu_hours == pytest.approx(scale.gpu_hours(3.8e25, 400, 0.9))
    assert 70 < bill.days < 80


@pytest.mark.parametrize(
    ("call", "words"),
    [(lambda: scale.forward_flops(SMALL, 0), "a row of 0 tokens"),
     (lambda: scale.decode_flops(SMALL, 0), "context of 0"),
     (lambda: scale.mfu(1200, 989), "between 0 and its peak"), (lambda: scale.mfu(-1, 989), "between 0 and its peak"),
     (lambda: scale.gpu_hours(1e20, 0), "above 0"), (lambda: scale.gpu_hours(1e20, 4, 1.1), r"share in \(0, 1]"),
     (lambda: scale.achieved_tflops(1e20, 0), "more than 0"), (lambda: scale.bill(-1.0, MACHINE), "-1.0 FLOPs"),
     (lambda: scale.bill(float("nan"), MACHINE), "nan FLOPs"), (lambda: replace(MACHINE, gpus=0), "gpus is 0"),
     (lambda: replace(MACHINE, mfu=41), "mfu is 41; it is a share"), (lambda: replace(MACHINE, price=-1), "price -1")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


SHAPES = st.builds(
    lambda layers, width, ffn, k, share, e, v: Architecture(layers, width, ffn, k * share, k, e, v),
    *(st.integers(1, 60) for _ in range(7)),
)  # fmt: skip
ROWS = st.integers(1, 300)
BIG = st.floats(1e6, 1e27)


@given(SHAPES, ROWS, st.sampled_from(("layers", "width", "ffn", "head_dim", "vocabulary")), st.integers(1, 9))
def test_flops_rise_with_every_number(a, row, name, more):
    bigger = replace(a, **{name: getattr(a, name) + more})
    assert scale.training_flops(bigger, row) > scale.training_flops(a, row)
    assert scale.training_flops(replace(a, heads=2 * a.heads), row) > scale.training_flops(a, row)
    # A longer row costs more a token too: attention.
    assert scale.training_flops(a, row + more) * row > scale.training_flops(a, row) * (row + more)


@given(SHAPES, ROWS)
def test_causal_attention_costs_between_half_and_all_of_full_attention(a, row):
    full, causal = scale.attention_flops(a, row, causal=False), scale.attention_flops(a, row)
    assert full / 2 < causal <= full
    assert scale.training_flops(a, row) == 3 * scale.forward_flops(a, row)


@given(SHAPES, ROWS, st.integers(1, 10_000))
def test_a_run_costs_its_rows(a, row, rows):
    assert scale.run_flops(a, rows * row, row) == pytest.approx(rows * scale.training_flops(a, row))


@given(SHAPES, ROWS, BIG, st.floats(1.01, 10))
def test_a_budget_buys_the_tokens_that_cost_it(a, row, flops, times):
    tokens = scale.run_tokens(a, flops, row)
    assert scale.run_flops(a, tokens, row) == pytest.approx(flops)
    assert scale.run_tokens(a, flops * times, row) == pytest.approx(tokens * times)
    assert scale.run_tokens(a, flops, 2 * row) < tokens


@given(BIG, st.floats(0.1, 1e4), st.floats(0.01, 1.0))
def test_units_cancel_hours_times_rate_are_the_flops(flops, tflops, effective):
    hours = scale.gpu_hours(flops, tflops, effective)
    assert hours * 3600 * tflops * 1e12 * effective == pytest.approx(flops)
    assert scale.achieved_tflops(flops, hours) == pytest.approx(tflops * effective)


@given(BIG, st.integers(1, 10**5), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(1, 2000), st.floats(0, 100))
def test_a_bill_holds_together(flops, gpus, share, effective, watts, price):
    machine = scale.Machine(gpus, 989.5, share, effective, watts, price)
    bill = scale.bill(flops, machine)
    assert bill.days * 24 * gpus == pytest.approx(bill.gpu_hours)
    assert bill.mwh * 1e6 == pytest.approx(bill.gpu_hours * watts)
    assert bill.cost == pytest.approx(bill.gpu_hours * price)
    twice = scale.bill(2 * flops, machine)
    assert twice.cost == pytest.approx(2 * bill.cost) and twice.mwh == pytest.approx(2 * bill.mwh)
    assert scale.bill(flops, replace(machine, gpus=2 * gpus)).gpu_hours == pytest.approx(bill.gpu_hours)
