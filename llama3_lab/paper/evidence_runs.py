"""Evidence from a run of this course: a RunReport in, and what it says about a claim, for our small world only."""

from __future__ import annotations

from collections.abc import Sequence

from llama3_lab.paper.evidence import Evidence, Says
from llama3_lab.records import CHECKABLE, BestOfK, Comparison, Evaluation, Rate, RunReport, SkillScore

SURE = 0.05  # p after Holm's correction
NO_SKILL = 0.05  # a gain in right answers below this is none worth speaking of


def _about(report: RunReport) -> str:
    return f"our small world (run {report.name}, profile {report.profile}, seed {report.seed})"


def _untested(report: RunReport, missing: str) -> Evidence:
    return Evidence("cannot be tested here", _about(report), f"This run has no {missing}.")


def _whole(evaluation: Evaluation | None) -> SkillScore | None:
    return next((s for s in evaluation.scores if (s.skill, s.level) == ("all", 0)), None) if evaluation else None


def _stage(report: RunReport, name: str) -> SkillScore | None:
    stages = (*report.start, *(e for r in report.rounds for e in r.evaluations))
    return _whole(next((e for e in stages if e.stage == name), None))


def _compared(report: RunReport, words: str, metric: str = "sampled") -> list[Comparison]:
    return [c for c in report.comparisons if words in c.name and (c.metric, c.skill) == (metric, "all")]


def _told(c: Comparison) -> str:
    p = "p < 0.001" if c.p_holm < 0.001 else f"p = {c.p_holm:.3f}"
    return f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], n={c.n}, {p}"


def _on_the_whole(found: Sequence[Comparison]) -> Says:
    """Return what several comparisons say together: all of them sure and one way, or nothing."""
    if all(c.low > 0 and c.p_holm < SURE for c in found):
        return "supports"
    return "contradicts" if all(c.high < 0 and c.p_holm < SURE for c in found) else "inconclusive"


def _rates(report: RunReport, skill: str, judge: str) -> BestOfK | None:
    return next((b for b in report.best_of_k if (b.skill, b.judge) == (skill, judge)), None)


def _as_evidence(says: Says, report: RunReport, text: str, c: Comparison) -> Evidence:
    return Evidence(says, _about(report), text, c.difference, c.low, c.high, c.n)


def what_a_round_report_holds(report: RunReport) -> Evidence:
    """T04: volume and effect of each round, as a report would have to print them."""
    rounds = [r for r in report.rounds if r.funnel]
    if not rounds:
        return _untested(report, "round with its counts")
    lines = []
    for r in rounds:
        policy = _stage(report, f"round {r.round} policy")
        counts = (f"{sum(f.candidates for f in r.funnel):,} candidates, {sum(f.selected for f in r.funnel)} "
                  f"demonstrations, {r.pairs.dpo} pairs")  # fmt: skip
        lines.append(f"round {r.round}: {counts}" + (f", right {policy.sampled}" if policy else ""))
    text = f"What such numbers look like: {'; '.join(lines)}. The paper has no such line for any round."
    return Evidence("cannot be tested here", _about(report), text, n=len(rounds))


def what_dpo_adds(report: RunReport) -> Evidence:
    """T10: does DPO add to the SFT that it starts from, round by round? All rounds must agree."""
    found = _compared(report, "DPO over its start")
    if not found:
        return _untested(report, "comparison of DPO with its start")
    rounds = "; ".join(f"{c.name.split(':')[0]} {_told(c)}" for c in found)
    sure = sum(c.low > 0 and c.p_holm < SURE for c in found)
    text = f"Right answers, DPO less the SFT it starts from: {rounds}. Surely better in {sure} of {len(found)} rounds."
    weakest = min(found, key=lambda c: abs(c.difference))
    return _as_evidence(_on_the_whole(found), report, text, weakest)


def gain_after_round_one(report: RunReport) -> Evidence:
    """T11: is there anything to gain after round one?"""
    found = _compared(report, "last round over round 1")
    if not found or report.n_rounds < 2:
        return _untested(report, "second round to compare with the first")
    text = f"Right answers, last round less round one: {_told(found[0])}."
    return _as_evidence(_on_the_whole(found), report, text, found[0])


def format_before_skill(report: RunReport) -> Evidence:
    """T12: does the first finetuning teach the format, and no skill worth speaking of?

    No skill: the whole interval of the gain in right answers lies below NO_SKILL; not merely "no difference seen".
    """
    own, chat, first = (_stage(report, s) for s in ("base, own format", "base, chat format", "first policy"))
    if own is None or chat is None or first is None:
        return _untested(report, "measurement of the base and of the first policy")
    gain, low, high = _sum((1, first.sampled), (-1, own.sampled))
    formatted = first.ended.low > chat.ended.high
    text = (f"Chat format kept: {chat.ended} before the first finetuning, {first.ended} after it. Right answers, each "
            f"in the format it knows: {own.sampled} before, {first.sampled} after, a gain of {gain:+.3f} "
            f"[{low:+.3f}, {high:+.3f}].")  # fmt: skip
    says: Says = "contradicts" if low > 0 else "supports" if formatted and high < NO_SKILL else "inconclusive"
    return Evidence(says, _about(report), text, gain, low, high, first.sampled.n)


def skill_before_the_later_rounds(report: RunReport) -> Evidence:
    """T12: is more of the gain in right answers made in round one, or in all later rounds together?"""
    names = ("first policy", "round 1 policy", f"round {report.n_rounds} policy")
    first, one, last = (_stage(report, name) for name in names)
    if first is None or one is None or last is None or report.n_rounds < 2:
        return _untested(report, "second round")
    early, late = one.sampled.value - first.sampled.value, last.sampled.value - one.sampled.value
    more, low, high = _sum((2, one.sampled), (-1, first.sampled), (-1, last.sampled))
    text = (f"Right answers: first policy {first.sampled}, round one {one.sampled}, round {report.n_rounds} "
            f"{last.sampled}. Round one made {early:+.3f} and what came after it {late:+.3f}: {more:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] more.")  # fmt: skip
    says: Says = "contradicts" if low > 0 else "supports" if high < 0 else "inconclusive"
    return Evidence(says, _about(report), text, more, low, high, first.sampled.n)


def selected_against_lot(report: RunReport) -> Evidence:
    """T13: does a model learn from its own answers, chosen by a checker, and from as many drawn by lot?"""
    found = _compared(report, "SFT on selected over SFT on random")
    first, lot = _stage(report, "first policy"), _stage(report, "round 1 sft on random")
    if not found or first is None or lot is None:
        return _untested(report, "control that was trained on answers drawn by lot")
    gain, low, high = _sum((1, lot.sampled), (-1, first.sampled))
    text = (f"Right answers after SFT on the model's own answers: chosen less drawn by lot {_told(found[0])} in round "
            f"one. Drawn by lot, they bring {gain:+.3f} [{low:+.3f}, {high:+.3f}] over the model that wrote them.")
    return _as_evidence(_on_the_whole(found), report, text, found[0])


def strict_filter_loses_hard_prompts(report: RunReport) -> Evidence:
    """S05: what share of easy and of hard prompts has any answer left after the filter?"""
    rows = [f for r in report.rounds[:1] for f in r.funnel if f.skill in CHECKABLE]
    levels = sorted({f.level for f in rows})
    if len(levels) < 2:
        return _untested(report, "funnel by level")
    left = {}
    for lv in levels:
        of = [f for f in rows if f.level == lv]
        left[lv] = sum(f.solved for f in of) / sum(f.prompts for f in of)
    told = ", ".join(f"level {lv} {share:.0%}" for lv, share in left.items())
    text = (f"Prompts of round one that have a right answer after the filter: {told}. An ablation would have to count "
            "what the filter takes away, by difficulty.")  # fmt: skip
    n = sum(f.prompts for f in rows)
    return Evidence("cannot be tested here", _about(report), text, left[levels[0]] - left[levels[-1]], n=n)


def graded_by_reward_or_by_checker(report: RunReport) -> Evidence:
    """S09: how right are the picks of a reward model and of a checker, out of as many answers?"""
    parts, value, n = [], 0.0, 0
    for skill in CHECKABLE:
        judges = [_rates(report, skill, j) for j in ("random", "reward model", "checker")]
        if all(judges):
            lot, reward, checker = (b.rates[-1] for b in judges if b)
            parts.append(f"{skill}: by lot {lot.value:.2f}, reward model {_brief(reward)}, checker {_brief(checker)}")
            value, n = max(value, checker.value - reward.value), n + reward.n
    if not parts:
        return _untested(report, "best-of-K curves")
    text = f"Right picks out of the largest K, by who grades. {'; '.join(parts)}."
    return Evidence("cannot be tested here", _about(report), text, value, n=n)


def implicit_reward_as_judge(report: RunReport) -> Evidence:
    """B03: does DPO's policy hold a reward that can choose answers, without a learned reward model?"""
    parts, better, worse, n = [], 0, 0, 0
    for skill in (*CHECKABLE, "conversation"):
        lot, implicit = (_rates(report, skill, j) for j in ("random", "implicit reward"))
        if lot and implicit:
            coin, pick = lot.rates[-1].value, implicit.rates[-1]
            parts.append(f"{skill} {_brief(pick)} (by lot {coin:.2f})")
            better, worse, n = better + (pick.low > coin), worse + (pick.high < coin), n + pick.n
    if not parts:
        return _untested(report, "picks by the implicit reward")
    text = (f"Right picks by DPO's implicit reward out of the largest K: {'; '.join(parts)}. Better than chance in "
            f"{better} of {len(parts)} skills, worse in {worse}.")  # fmt: skip
    says: Says = "supports" if better == len(parts) else "contradicts" if worse == len(parts) else "inconclusive"
    return Evidence(says, _about(report), text, float(better), n=n)


def _sum(*terms: tuple[int, Rate]) -> tuple[float, float, float]:
    """Return a sum of weighted rates with its 95 % interval, as if they were independent.

    Rates on the same prompts move together, so that the interval of a difference is rather too wide than too narrow.
    """
    value = sum(weight * rate.value for weight, rate in terms)
    reach = sum((weight * (rate.high - rate.low) / 2) ** 2 for weight, rate in terms) ** 0.5
    return value, value - reach, value + reach


def _brief(rate: Rate) -> str:
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


ALL = (what_a_round_report_holds, what_dpo_adds, gain_after_round_one, format_before_skill,
       skill_before_the_later_rounds, selected_against_lot, strict_filter_loses_hard_prompts,
       graded_by_reward_or_by_checker, implicit_reward_as_judge)  # fmt: skip
