"""Where the paper does not agree with itself, or with its cards: computed from the printed figures, not told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llama3_lab.paper.evidence_tables import weighted_mean
from llama3_lab.paper.facts import fact, number, numbers
from llama3_lab.paper.scale import mfu, six_nd, table4


@dataclass(frozen=True)
class Inconsistency:
    """One figure that does not follow from others.

    printed: the figure as it stands; computed: the same from other printed figures; both in `unit`. note: what a
    careful reader may conclude, and what not.
    """

    where: str
    what: str
    printed: float
    computed: float
    unit: str
    note: str

    @property
    def ratio(self) -> float:
        """Printed over computed; 1 where they agree."""
        return self.printed / self.computed


def inconsistencies() -> tuple[Inconsistency, ...]:
    """Return all of them, in the paper's order."""
    return tuple(row for find in _FINDERS for row in find())


def law_tokens(coefficients: str, flops: float) -> float:
    """Return the tokens that N*(C) = A·C^α gives for a budget in FLOPs. coefficients: "text" or "legend"."""
    return number(f"law.{coefficients}.a") * flops ** number(f"law.{coefficients}.alpha")


def _scaling_law() -> Iterator[Inconsistency]:
    budget, forecast = number("law.forecast.flops"), number("law.forecast.tokens")
    yield Inconsistency("§3.2.1", "tokens at the optimum, by the text's rounded coefficients", forecast,
                        law_tokens("text", budget), "tokens",
                        "two digits of an exponent are not enough at this budget; not an error of the law")  # fmt: skip
    yield Inconsistency("§3.2.1, Figure 3", "tokens at the optimum, by the legend's coefficients", forecast,
                        law_tokens("legend", budget), "tokens", "a third digit closes nearly all of the gap")
    yield Inconsistency("§3.2.1", "budget of the optimum, as 6 FLOPs a parameter and token", budget,
                        six_nd(number("law.forecast.parameters"), forecast), "FLOPs",
                        "so FLOPs were not counted as 6ND exactly, or one of the three is rounded")  # fmt: skip


def _recipe() -> Iterator[Inconsistency]:
    batch = number("recipe.batch2")
    as_sequences = batch * number("recipe.batch2_length")
    yield Inconsistency("§3.4.1", f"tokens in the second batch, if it were {fact('recipe.batch2_printed_unit').value}",
                        batch, as_sequences, "tokens",
                        "the batches before and after it are in tokens, and so must this one be")  # fmt: skip
    one = number("recipe.batch3")
    tokens = number("recipe.annealing_tokens")
    yield Inconsistency("§3.4.3", "tokens of the whole annealing, against those of one step", tokens, one, "tokens",
                        f"so it would take {tokens / one:g} steps, too few for a learning rate to fall linearly to "
                        f"zero; "
                        "that billions are meant is a guess")  # fmt: skip


def _table_4() -> Iterator[Inconsistency]:
    row = table4()[2]
    later = number("table4.row3.dp_later")
    yield Inconsistency(
        "Table 4, row 3", "groups of data parallelism, as later copies print them", later,
        row.gpus / (row.tp * row.cp * row.pp), "groups",
        "an early copy prints the number that fits GPUs and tokens a batch",
    )  # fmt: skip
    yield Inconsistency(
        "Table 4, row 3", "tokens a batch, with that number of groups", number("table4.row3.tokens"),
        later * row.batch * row.row, "tokens", "half the batch is missing: the same misprint, seen from the other side",
    )  # fmt: skip
    for n, each in enumerate(table4(), 1):
        computed, printed = 100 * mfu(each.tflops, number("h100.peak_tflops")), 100 * each.mfu
        if abs(computed - printed) > 0.5:
            yield Inconsistency(
                f"Table 4, row {n}", "utilisation, from TFLOPs and the GPU's peak", printed, computed, "%",
                "the TFLOPs are rounded; a few more of them give what is printed",
            )  # fmt: skip


def _table_5() -> Iterator[Inconsistency]:
    counts, shares, total = numbers("table5.counts"), numbers("table5.shares"), number("interruptions.unexpected")
    yield Inconsistency(
        "Table 5, row 1", f"share of “{fact('table5.causes').value[0]}”", shares[0], 100 * counts[0] / total, "%",
        "the counts add up to the total, so it is the share that is off",
    )  # fmt: skip
    on_gpus = sum(c for c, k in zip(counts, fact("table5.categories").value, strict=True) if k == "GPU")
    yield Inconsistency(
        "§3.3.4", "share of GPU troubles", number("interruptions.gpu_share"), 100 * on_gpus / total, "%",
        "it follows from the wrong share in row 1",
    )  # fmt: skip
    yield Inconsistency("Table 5", "sum of all shares", sum(shares), 100 * sum(counts) / total, "%",
                        "what is missing is missing in row 1")  # fmt: skip


def _table_7() -> Iterator[Inconsistency]:
    yield Inconsistency(
        "Table 7, total", "tokens an example, from the rows and their shares", number("table7.total.tokens"),
        weighted_mean("table7", "tokens"), "tokens/example", "shares are rounded: no more than that",
    )  # fmt: skip


def _table_28() -> Iterator[Inconsistency]:
    at = fact("table28.sets").value.index("indirect injections")
    yield Inconsistency(
        "Table 28", "AUC on indirect injections, against the model card", numbers("table28.auc")[at],
        number("prompt_guard.card_auc_indirect"), "AUC", "one of the two is a slip; nothing says which",
    )  # fmt: skip


_FINDERS: tuple[Callable[[], Iterator[Inconsistency]], ...] = (
    _scaling_law, _table_4, _table_5, _recipe, _table_7, _table_28,
)  # fmt: skip
