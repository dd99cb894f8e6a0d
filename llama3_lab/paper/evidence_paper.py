"""Evidence from the paper's own figures on pre-training, its cost, and what is told of it."""

from __future__ import annotations

import math

from llama3_lab.paper.architecture import SIZES, llama3
from llama3_lab.paper.evidence import CARDS, PAPER, Evidence, Says
from llama3_lab.paper.facts import fact, facts, number, numbers, plain
from llama3_lab.paper.scale import gpu_hours, six_nd

AT_HOME = 24e9  # bytes: the larger graphics cards that people have at home
HUNDREDS, WEEK = 500, 7  # of C02: GPUs and days
BATCHES = (100, 1000, 10_000)  # examples: what a batch of SFT might hold, as the paper does not say


def sizes_from_table_3() -> Evidence:
    """R04: do the names of the models fall out of table 3?"""
    counted = {size: llama3(size).parameters() for size in SIZES}
    off = max(abs(count / number(f"size.{size}") - 1) for size, count in counted.items())
    told = ", ".join(f"{size.upper()} has {count:,}" for size, count in counted.items())
    text = f"Counted from table 3, {told} parameters; the names are at most {off:.1%} off."
    return Evidence("supports" if off < 0.02 else "contradicts", PAPER, text, off, n=len(SIZES))


def clear_wins_in_table_2() -> Evidence:
    """R07: on how many of table 2's benchmarks is a difference larger than chance? Unpaired normal intervals, 95 %."""
    ours, questions = numbers("table2.llama_405b"), numbers("table2.questions")
    won, lost, total = 0, 0, 0
    for rival in ("gpt4o", "claude35"):
        for mine, theirs, n in zip(ours, numbers(f"table2.{rival}"), questions, strict=True):
            p, q = mine / 100, theirs / 100
            reach = 1.96 * math.sqrt(p * (1 - p) / n + q * (1 - q) / n)
            won, lost, total = won + (p - q > reach), lost + (q - p > reach), total + 1
    text = (f"Of {total} comparisons with GPT-4o and Claude 3.5 Sonnet, the 405B clearly wins {won} and clearly loses "
            f"{lost}; {total - won - lost} are within chance. It keeps up if none is lost, and does not if most are. "
            "The numbers of questions are the benchmarks' own, second hand.")  # fmt: skip
    says: Says = "supports" if lost == 0 else "contradicts" if lost > total / 2 else "inconclusive"
    return Evidence(says, PAPER, text, float(won - lost), n=total)


def six_n_d() -> Evidence:
    """P01: do 6 FLOPs a parameter and token give the printed budget?"""
    flops = six_nd(number("size.405b"), number("tokens.405b"))
    ratio = flops / number("flops.405b")
    text = (f"6 · {plain(number('size.405b'))} parameters · {plain(number('tokens.405b'))} tokens = {flops:.2e} FLOPs, "
            f"{ratio:.3f} times the budget that is printed.")  # fmt: skip
    return Evidence("supports" if abs(ratio - 1) < 0.05 else "contradicts", PAPER, text, ratio)


def multilingual_tokens() -> Evidence:
    """P02: would the multilingual share alone do to train a model of the smallest size?"""
    tokens = number("mix.multilingual") / 100 * number("tokens.corpus")
    rule = number("chinchilla.tokens_per_parameter")
    largest, share = tokens / rule, tokens / number("tokens.llama2")
    enough = largest >= number("size.8b")
    text = (f"{fact('mix.multilingual').value} % of the corpus are {plain(tokens)} tokens, {share:.0%} of all that "
            f"Llama 2 was trained on. By the rule of {rule:g} tokens a parameter they alone would do for a model of "
            f"{plain(largest)}: "
            + ("no mere trace." if enough else "not even for the smallest of the three."))  # fmt: skip
    return Evidence("supports" if enough else "inconclusive", PAPER, text, tokens)


def mix_adds_up() -> Evidence:
    """P03: do the printed shares leave anything over, and how much do they tell?"""
    shares = [number(k) for k in facts() if k.startswith("mix.")]
    left = 100 - sum(shares)
    text = (f"{len(shares)} shares are printed; {left:g} % is left over. As they have to add up, that is "
            f"{len(shares) - 1} free numbers about {plain(number('tokens.corpus'))} tokens.")  # fmt: skip
    return Evidence("supports" if abs(left) <= 0.5 * len(shares) else "contradicts", PAPER, text, left, n=len(shares))


def tokens_against_the_law() -> Evidence:
    """P04: did the 405B get more tokens than Meta's own scaling law asks for?"""
    tokens = number("tokens.405b") / number("law.forecast.tokens")
    size = number("size.405b") / number("law.forecast.parameters")
    text = (f"The 405B got {tokens:.2f} times the tokens and has {size:.2f} times the parameters of the optimum that "
            f"Meta's law gives for its budget. {'Fewer' if tokens < 1 else 'More'} tokens than that optimum; far past "
            "it would be several times as many.")  # fmt: skip
    says: Says = "contradicts" if tokens < 1.1 else "inconclusive" if tokens < 2 else "supports"
    return Evidence(says, PAPER, text, tokens)


def tokens_per_parameter() -> Evidence:
    """P05: tokens a parameter, for the three models, the law's optimum, and the rule of thumb."""
    law = number("law.forecast.tokens") / number("law.forecast.parameters")
    each = {size: number(f"tokens.{size}") / number(f"size.{size}") for size in SIZES}
    rule, past = number("chinchilla.tokens_per_parameter"), each["405b"] / law
    told = ", ".join(f"{size.upper()} {r:,.0f} ({r / law:.1f} times)" for size, r in each.items())
    text = (f"Tokens a parameter, and times the law's optimum of {law:.1f}: {told}. Against the rule of thumb of "
            f"{rule:.0f}, the 405B has {each['405b'] / rule:.1f} times as many; the two yardsticks differ by "
            f"{law / rule:.1f}.")  # fmt: skip
    return Evidence("contradicts" if past < 1.1 else "supports", PAPER, text, past, n=len(each))


def gpu_hours_reconciled() -> Evidence:
    """C01: do the paper's FLOPs, speed and effective time give the card's GPU hours?"""
    busy = number("training.effective_share") / 100
    each = sorted(gpu_hours(number("flops.405b"), number(f"table4.row{r}.tflops"), busy) for r in (1, 2, 3))
    hours = gpu_hours(number("flops.405b"), number("table4.row2.tflops"), busy)
    card = number("gpu_hours.405b")
    text = (f"{plain(number('flops.405b'))} FLOPs at {fact('table4.row2.tflops').value} TFLOPs a GPU, {busy:.0%} of "
            f"the time effective, take {plain(hours)} hours ({plain(each[0])} to {plain(each[-1])} at the speeds of "
            f"table 4's other rows); the card says {plain(card)}. FLOPs and speed are the paper's, the hours are not.")
    return Evidence("supports" if abs(hours / card - 1) < 0.1 else "contradicts", CARDS, text, hours / card)


def sft_hours_by_batch() -> Evidence:
    """C02: would the printed SFT steps take weeks on hundreds of GPUs, for any batch that one may suppose?"""
    steps = numbers("sft.steps")[1]
    flops = six_nd(number("size.405b"), number("table7.total.tokens") * steps)
    hours = gpu_hours(flops, number("table4.row2.tflops"))
    days = {batch: hours * batch / HUNDREDS / 24 for batch in BATCHES}
    told = ", ".join(f"{d:.1f} days with {b:,}" for b, d in days.items())
    text = (f"{steps:,.0f} steps of SFT on the 405B, at pre-training's speed on {HUNDREDS} GPUs, would take {told} "
            "examples a batch. No batch size is printed, and it decides.")  # fmt: skip
    long = [d >= WEEK for d in days.values()]
    says: Says = "supports" if all(long) else "inconclusive" if any(long) else "contradicts"
    return Evidence(says, PAPER, text, days[BATCHES[1]], n=len(days))


def weights_in_memory() -> Evidence:
    """C07: do the weights fit on a card that people have at home? Weights only, without cache."""
    small, large = number("parameters.8b") * 2, number("parameters.70b") / 2
    flagship = number("parameters.405b") * 2
    node = number("inference.gpus_per_node") * number("cluster.gpu_memory") * 1e9
    text = (f"A larger card at home has {AT_HOME / 1e9:.0f} GB. Weights of the 8B in 16 bits: {small / 1e9:.1f} GB; of "
            f"the 70B in 4 bits: {large / 1e9:.1f} GB, {math.ceil(large / AT_HOME)} such cards, or a few layers at a "
            f"time. (The same arithmetic puts the 405B in 16 bits at {flagship / 1e9:.0f} GB, "
            f"{math.ceil(flagship / node)} nodes; §6.1 says {fact('inference.bf16_nodes').value}.)")  # fmt: skip
    says: Says = "supports" if large < AT_HOME else "inconclusive" if large < 2 * AT_HOME else "contradicts"
    return Evidence(says if small < AT_HOME else "contradicts", PAPER, text, large / AT_HOME)


def hyperparameters_published() -> Evidence:
    """K02: how many settings of post-training are missing, and is what changes between rounds among them?"""
    there, missing = len(fact("post_training.published").value), len(fact("post_training.missing").value)
    early, last = numbers("sampling.multilingual_temperature"), number("sampling.multilingual_temperature_last")
    shifts = set(early) != {last}
    text = (f"{there} of {there + missing} settings and counts are printed, {missing} are not. "
            + (f"One that changes between rounds is printed: multilingual sampling has a temperature of {early[0]:g} "
               f"to {early[1]:g} early, {last:g} in the last round. So to change is no reason to be kept back."
               if shifts else "None that changes between rounds is printed."))  # fmt: skip
    says: Says = "contradicts" if not missing else "inconclusive" if shifts else "supports"
    return Evidence(says, PAPER, text, there / (there + missing), n=there + missing)


def figures_on_infrastructure() -> Evidence:
    """K04: how many figures on network, storage and scheduling have we read in the paper? It prints at least these."""
    found = [f for f in facts().values() if f.where.startswith("§3.3") or f.where in ("Table 4", "Table 5")]
    values = sum(len(f.value) if isinstance(f.value, tuple) else 1 for f in found)
    network = [f for f in found if f.key.startswith(("cluster.", "storage.", "scheduler"))]
    text = (f"{values} figures of §3.3 stand in our facts, {len(network)} of them on cluster, network, storage and "
            "scheduling; the paper has more.")  # fmt: skip
    return Evidence("contradicts" if len(network) >= 5 else "inconclusive", PAPER, text, float(len(network)), n=values)


ALL = (sizes_from_table_3, clear_wins_in_table_2, six_n_d, multilingual_tokens, mix_adds_up, tokens_against_the_law,
       tokens_per_parameter, gpu_hours_reconciled, sft_hours_by_batch, weights_in_memory, hyperparameters_published,
       figures_on_infrastructure)  # fmt: skip
