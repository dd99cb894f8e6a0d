"""Evidence: what a computation, a simulation or a run has to say to a claim, and what it is evidence of.

Three sources, kept apart by `Evidence.about`: the paper's own figures (`evidence_paper`, `evidence_tables`), a run of
our small world (`evidence_runs`), and simulations (`evidence_toys`). Only the first speaks about Meta's model. A small
run can show that an effect exists in principle, and a simulation that an argument holds together; neither shows that
it happened at Meta, and where a claim is about what Meta did, they say "cannot be tested here": such a function only
shows how large the thing is that the claim is about (`SHOWING`). Every other one can come out more than one way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, get_args

from llama3_lab.paper.claims import Claim
from llama3_lab.records import RunReport

Says = Literal["supports", "contradicts", "inconclusive", "cannot be tested here"]
SAYS: tuple[Says, ...] = get_args(Says)
Source = Literal["paper", "run", "simulation"]
PAPER, CARDS = "the paper's own figures", "figures of the paper and of model cards"
SIMULATION = "a simulation with made-up numbers"
SHOWING = frozenset({"what_a_round_report_holds", "strict_filter_loses_hard_prompts", "graded_by_reward_or_by_checker",
                     "best_of_k_without_threshold", "lucky_chains", "checked_chains"})  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What was found about a claim.

    says: about the claim as it is worded. about: what this is evidence of. value: the figure that decides, in the
    unit that `text` gives; low, high: its 95 % interval, where chance had a part; n: how many rows, prompts or
    draws it comes from.
    """

    says: Says
    about: str
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.says not in SAYS:
            raise ValueError(f"evidence says {self.says!r}; it may say {', '.join(SAYS)}")
        if not self.about or not self.text:
            raise ValueError("evidence needs what it is about, and a text")
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends; give low and high, or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must not be the greater one")


@cache
def functions(source: Source) -> Mapping[str, Callable[..., Evidence]]:
    """Return the evidence functions of a source by name. Those of "run" take a RunReport, the others nothing."""
    from llama3_lab.paper import evidence_paper, evidence_runs, evidence_tables, evidence_toys

    of: dict[Source, tuple[Callable[..., Evidence], ...]] = {
        "paper": (*evidence_paper.ALL, *evidence_tables.ALL), "run": evidence_runs.ALL, "simulation": evidence_toys.ALL,
    }  # fmt: skip
    return MappingProxyType({f.__name__: f for f in of[source]})


def source_of(name: str) -> Source:
    """Return which source an evidence function belongs to.

    Raises:
        ValueError: if there is no function of that name.
    """
    for source in get_args(Source):
        if name in functions(source):
            return source
    raise ValueError(f"no evidence function {name!r}; claims.yaml may name those in llama3_lab/paper/evidence_*.py")


def gather(claim: Claim, report: RunReport | None = None, simulate: bool = False) -> list[Evidence]:
    """Return all evidence on a claim: from the paper, from the run where one is given, from simulations if asked."""
    out = []
    for name in claim.evidence:
        source = source_of(name)
        if source == "run" and report is not None:
            out.append(functions(source)[name](report))
        elif source == "paper" or (source == "simulation" and simulate):
            out.append(functions(source)[name]())
    return out
