"""Evidence from the paper's own figures on post-training, data and safety: its tables, added up and multiplied out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llama3_lab.paper.evidence import CARDS, PAPER, Evidence, Says
from llama3_lab.paper.facts import fact, number, numbers, plain

COLUMNS = {"table6": ("turns", "tokens", "prompt", "response"), "table7": ("turns", "tokens", "context", "response")}


def weighted_mean(table: str, column: str) -> float:
    """Return the mean of a column over a table's rows, weighted by the printed shares. table: "table6" or "table7"."""
    shares, values = numbers(f"{table}.share"), numbers(f"{table}.{column}")
    return sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)


def independent(input_vr: float, output_vr: float) -> float:
    """Return the change of violations, in %, if two guards missed independently. Both changes in %, −100 to 0."""
    return -100 * (1 - (1 + input_vr / 100) * (1 + output_vr / 100))


def order_of_the_round() -> Evidence:
    """T02: where do reward model and SFT stand in the paper's order?"""
    order: Sequence[str] = fact("loop.order").value
    at, sft = order.index("reward model") + 1, order.index("SFT") + 1
    text = f"In figure 7 the reward model is step {at} of {len(order)} and SFT step {sft}."
    return Evidence("contradicts" if at < sft else "supports", PAPER, text, float(at - sft), n=len(order))


def ten_million_in_the_printed_steps() -> Evidence:
    """T07: how large would a batch be, if ten million examples went through the printed steps once?"""
    examples, steps = number("cards.human_examples"), numbers("sft.steps")
    batch = examples / steps[1]
    tokens = batch * number("table7.total.tokens")
    text = (f"{plain(examples)} examples in {steps[0]:,.0f} to {steps[1]:,.0f} steps are {batch:,.0f} to "
            f"{examples / steps[0]:,.0f} a step, some {plain(float(f'{tokens:.2g}'))} tokens; pre-training's largest "
            f"batch has {plain(number('recipe.batch3'))}. No batch size of SFT is printed: arithmetic can only rule "
            "out what is absurd.")  # fmt: skip
    return Evidence("contradicts" if tokens > number("recipe.batch3") else "inconclusive", CARDS, text, batch)


def synthetic_code_by_source() -> Evidence:
    """S01: do the kinds of synthetic code fit into their total, and how does synthetic compare with human data?"""
    told, total = number("code.execution_feedback") + number("code.backtranslation"), number("code.synthetic")
    synthetic, human = number("cards.synthetic_examples"), number("cards.human_examples")
    share = synthetic / (synthetic + human)
    text = (f"Execution feedback and backtranslation are {plain(told)} of over {plain(total)} synthetic examples for "
            f"code, {told / total:.0%}; translation between languages has no number of its own. Cards count over "
            f"{plain(synthetic)} synthetic examples, and for April's models over {plain(human)} annotated by people.")
    says: Says = "contradicts" if share < 0.1 else "supports" if share > 1 / 3 and told <= total else "inconclusive"
    return Evidence(says, CARDS, text, told / total)


def tables_6_and_7_describe() -> Evidence:
    """A01: are tables 6 and 7 ablations, or rows of one mix that average to its totals?"""
    off = {(t, c): weighted_mean(t, c) / number(f"{t}.total.{c}") - 1 for t, cs in COLUMNS.items() for c in cs}
    worst = max(abs(o) for o in off.values())
    fits = worst < 0.03
    text = (f"Weighted by their shares, the rows give back {'each' if fits else 'not all'} of {len(off)} totals, the "
            f"worst {worst:.1%} off. "
            + ("They are parts of one mix, not mixes that were tried against each other." if fits
               else "So they need not be parts of one mix."))  # fmt: skip
    return Evidence("contradicts" if fits else "inconclusive", PAPER, text, worst, n=len(off))


def annealing_gains() -> Evidence:
    """A02: do the printed numbers on data quality in pre-training show a gain at both sizes?"""
    gains = number("annealing.gsm8k_gain"), number("annealing.math_gain")
    flagship = fact("annealing.gain_405b").value
    text = (f"{gains[0]:+g} % and {gains[1]:+g} % on the 8B, {flagship} on the 405B. The question was whether good "
            "data help late in training; there is no column in which quantity could have won.")  # fmt: skip
    small, large = min(gains) > 0, flagship != "negligible"
    says: Says = "supports" if small and large else "inconclusive" if small or large else "contradicts"
    return Evidence(says, PAPER, text, gains[0], n=len(gains))


def how_small_the_guards_are() -> Evidence:
    """G02: how large is Llama Guard 3 beside the other guard and the models it guards?"""
    guard, prompt_guard = number("parameters.8b"), number("prompt_guard.backbone")
    times = guard / prompt_guard
    text = (f"Llama Guard 3 has the parameters of the 8B, {plain(guard)}: {times:.0f} times Prompt Guard's backbone, "
            f"as many as the smallest model that it guards, and {guard / number('parameters.405b'):.0%} of the 405B.")
    return Evidence("contradicts" if times > 10 else "supports", PAPER, text, times)


def mean_reduction_of_violations() -> Evidence:
    """G03: does the printed average follow from table 25?"""
    full = numbers("table25.full_vr")
    mean, printed = sum(full) / len(full), number("guard.violations")
    text = (f"Mean over {len(full)} languages in table 25: {mean:.1f} %, from {max(full):g} to {min(full):g}; the text "
            f"prints {printed:g} %.")  # fmt: skip
    return Evidence("supports" if abs(mean - printed) < 1 else "contradicts", PAPER, text, mean, n=len(full))


def rates_that_can_be_had() -> Evidence:
    """G07: do the printed rates agree among themselves, so that misses can be had from them?"""
    columns = [numbers(f"table27.{c}") + numbers(f"table27.int8.{c}") for c in ("precision", "recall", "f1")]
    fits = sum(f1_fits(*row) for row in zip(*columns, strict=True))
    misses = [1 - r for r in numbers("table27.recall")]
    told = ", ".join(f"{name} {m:.3f} and {f:.3f}" for name, m, f in
                     zip(fact("table27.capabilities").value, misses, numbers("table27.fpr"), strict=True))  # fmt: skip
    text = (f"For the guard: F1 follows from precision and recall in {fits} of {len(columns[0])} rows of table 27, so "
            f"misses (1 − recall) can be had; with false alarms they are {told}. For the model itself tables 25 and 26 "
            f"print changes only: {fact('table25.full_vr').value[0]} % of an unknown rate stays unknown.")  # fmt: skip
    says: Says = "supports" if fits == len(columns[0]) else "contradicts"
    return Evidence(says, "the paper's own figures on the guard", text, misses[0], n=len(columns[0]))


def f1_fits(precision: float, recall: float, f1: float) -> bool:
    """Tell whether an F1 follows from precision and recall, all three printed to three decimals."""
    low, high = (2 * (precision + e) * (recall + e) / (precision + recall + 2 * e) for e in (-0.0005, 0.0005))
    return low - 0.0005 <= f1 <= high + 0.0005


def layers_against_independence() -> Evidence:
    """G08: do two guards together do as well as if they missed different things?"""
    rows = list(zip(*(numbers(f"table25.{c}") for c in ("input_vr", "output_vr", "full_vr")), strict=True))
    weaker = sum(full > independent(a, b) for a, b, full in rows)
    better = sum(full < min(a, b) for a, b, full in rows)
    a, b, full = rows[0]
    text = (f"English: {a:g} % and {b:g} % alone would make {independent(a, b):.0f} % if they missed independently; "
            f"together they have {full:g} %. In {weaker} of {len(rows)} languages the pair does worse than independent "
            f"guards would, and in {better} better than either alone.")  # fmt: skip
    says: Says = "contradicts" if weaker == len(rows) else "supports" if weaker == 0 else "inconclusive"
    return Evidence(says, PAPER, text, full - independent(a, b), n=len(rows))


def what_each_layer_costs() -> Evidence:
    """G09: does a second guard add anything in every language, and what does it cost?"""
    out, full = numbers("table25.output_vr"), numbers("table25.full_vr")
    out_frr, full_frr = numbers("table25.output_frr"), numbers("table25.full_frr")
    adds = [o - f for o, f in zip(out, full, strict=True)]
    costs = [f - o for o, f in zip(out_frr, full_frr, strict=True)]
    text = (f"The input guard on top of the output guard takes away {adds[0]:g} more points of violations in English "
            f"and adds {costs[0]:g} points of false refusals; over {len(adds)} languages, {sum(adds) / len(adds):.0f} "
            f"for {sum(costs) / len(costs):.0f}. The report leaves the price out.")  # fmt: skip
    says: Says = "supports" if min(adds) > 0 else "contradicts" if max(adds) <= 0 else "inconclusive"
    return Evidence(says, PAPER, text, adds[0], n=len(adds))


def scores_of_llama_33() -> Evidence:
    """N03: did the card's scores go up from 3.1 to 3.3, by a sign test over the benchmarks?"""
    steps = [b - a for a, b in zip(numbers("llama33.before"), numbers("llama33.after"), strict=True)]
    up, down = sum(s > 0 for s in steps), sum(s < 0 for s in steps)
    p = sign_test(up, down)
    text = (f"{up} of {len(steps)} scores rose, {down} fell, {len(steps) - up - down} stayed; "
            f"{sum(steps) / len(steps):+.1f} points on average; sign test p = {p:.2f}. Whatever it were, the card "
            "names no cause, so the loop cannot be the one that is shown.")  # fmt: skip
    says: Says = "inconclusive" if p >= 0.05 else "supports" if up > down else "contradicts"
    return Evidence(says, "a model card", text, sum(steps) / len(steps), n=len(steps))


def sign_test(up: int, down: int) -> float:
    """Return the two-sided p of a sign test: how often a fair coin falls at least as unevenly. Ties are left out."""
    n, most = up + down, max(up, down)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n)


ALL = (order_of_the_round, ten_million_in_the_printed_steps, synthetic_code_by_source, tables_6_and_7_describe,
       annealing_gains, how_small_the_guards_are, mean_reduction_of_violations, rates_that_can_be_had,
       layers_against_independence, what_each_layer_costs, scores_of_llama_33)  # fmt: skip
