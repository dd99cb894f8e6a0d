"""render_page(): one run as one HTML file that needs nothing else, not even a script.

Figures are inline SVG whose colours the stylesheet swaps in the dark; each carries its text twin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from llama3_lab.course import safety_views, views
from llama3_lab.records import (
    STRENGTHS,
    Comparison,
    RoundReport,
    RunReport,
    SampleAnswer,
    SkillScore,
)

DARK = {"ink": "#e6e9ec", "muted": "#a3adb8", "rule": "#353c45", "band": "#20262d", "plate": "#171b20",
        "blue": "#58b0e8", "orange": "#f0894a", "green": "#37bd93", "purple": "#d38fce", "ochre": "#cfae3e",
        "gray": "#98a2ad"}
CSS = """
*{box-sizing:border-box} html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--plate);color:var(--ink);font:16px/1.55 system-ui,"Segoe UI",Roboto,"Noto Sans",
"DejaVu Sans",sans-serif}
main,header,footer{max-width:66rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.5rem} footer{padding-bottom:3rem;color:var(--muted);font-size:.9rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem} h2{font-size:1.35rem;margin:3rem 0 .6rem;
padding-top:.8rem;border-top:1px solid var(--rule)} h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
p,li{max-width:44rem} .lede{font-size:1.1rem} .quiet,caption,figcaption{color:var(--muted)}
a{color:var(--blue)} nav ol{columns:2 16rem;padding-left:1.4rem;margin:.4rem 0} nav li{margin:.1rem 0}
figure{margin:1rem 0} figure svg{display:block;width:100%;height:auto;min-width:40rem}
figcaption{font-size:.9rem;max-width:44rem;margin-top:.3rem}
.wide{overflow-x:auto} table{border-collapse:collapse;margin:.8rem 0;font-size:.88rem;
font-variant-numeric:tabular-nums} caption{text-align:left;padding-bottom:.35rem}
th,td{text-align:left;padding:.28rem .8rem .28rem 0;border-bottom:1px solid var(--rule);vertical-align:top;
white-space:nowrap} thead th{border-bottom:2px solid var(--muted)} th{font-weight:600}
td.text,th.text{white-space:normal;min-width:11rem;max-width:30rem} tbody th{font-weight:500}
details{margin:.6rem 0} summary{cursor:pointer;color:var(--blue)} summary:focus-visible,a:focus-visible{
outline:2px solid var(--orange);outline-offset:2px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--band);padding:.6rem .75rem;border-radius:6px;
margin:.25rem 0;font:.83rem/1.45 ui-monospace,"Cascadia Mono",Menlo,"DejaVu Sans Mono",monospace}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.2rem 1rem} .pair>*{min-width:0}
@media(max-width:42rem){.pair{grid-template-columns:1fr}}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1.2rem;margin:.6rem 0} dd{margin:0} dt{
color:var(--muted)} .verdict{border-left:4px solid var(--blue);padding:.1rem 0 .1rem 1rem}
tr.better td:last-child,.pass{color:var(--green);font-weight:600} tr.worse td:last-child,.fail{
color:var(--orange);font-weight:600}
@media print{details>*{display:block} h2{break-after:avoid} figure,tr,.pair{break-inside:avoid}}
"""


def render_page(run: RunReport) -> str:
    """Return the report of a run as one HTML document; every text from the run is escaped."""
    sections = [(slug, title, body) for slug, title, make in SECTIONS if (body := make(run))]
    contents = "".join(f'<li><a href="#{slug}">{title}</a></li>' for slug, title, _ in sections)
    body = "".join(f'<section id="{slug}"><h2>{title}</h2>{text}</section>'
                   for slug, title, text in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(run.name)}: run report'
        '</title><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_theme(views.COLORS)}@media(prefers-color-scheme:dark){{{_theme(DARK)}}}{CSS}</style></head>"
        f'<body><header><h1>{escape(run.name)}</h1><p class="quiet">{escape(_one_line(run))}</p>'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav></header><main>{body}</main>'
        "<footer><p>Rates are means over prompts; their 95 % intervals speak of other prompts of the same "
        "kind, not of another training seed.</p></footer></body></html>\n")


def verdict_words(run: RunReport) -> list[str]:
    """Return what the run showed, in three to six sentences, worst news included."""
    found: list[str] = []
    chain = [(e, s) for e in views.stages(run) if (s := views.score(e)) and not views.is_control(e.stage)]
    if len(chain) > 1:
        (first, a), (last, b) = chain[0], chain[-1]
        found.append(f"From “{first.stage}” to “{last.stage}”, the share of right answers on the checkable "
                     f"skills went from {views.brief(a.sampled)} to {views.brief(b.sampled)} sampled at "
                     f"temperature 1, and from {views.brief(a.greedy)} to {views.brief(b.greedy)} greedy "
                     f"({b.greedy.n} {last.split} prompts).")
    beside = [c for c in run.comparisons if views.is_control(c.b) or views.is_control(c.a)]
    others = [c for c in run.comparisons if c not in beside]
    if beside:
        found.append(f"Beside a control that takes answers at random: {_tally(beside)}.")
    if others:
        found.append(f"{'Of the other gains' if beside else 'Of the gains'} looked for: {_tally(others)}.")
    weak = [c for c in run.comparisons if c.verdict != "inconclusive" and c.p_holm >= 0.05]
    if weak:
        names = _joined([f"{c.name} ({c.metric} {c.skill})" for c in weak])
        found.append(f"Not all of this outlives Holm's correction over {len(run.comparisons)} tests; take as "
                     f"a hint: {names}.")
    if not run.comparisons:
        found.append("This run made no comparison, so no gain is claimed.")
    below: dict[str, list[str]] = {}
    for skill, judge in views.below_random(run):
        below.setdefault(judge, []).append(skill)
    if below:
        judges = "; ".join(f"the {judge} on {_joined(skills)}" for judge, skills in below.items())
        found.append(f"At some k the pick among k answers is worse than a random one: {judges}.")
    warned = len(views.warnings(run))
    where = " (listed below)" if warned else ""
    found.append(f"{warned or 'No'} health check{'s' * (warned != 1)} warned{where}.")
    return found


def _tally(comparisons: Sequence[Comparison]) -> str:
    """Say how many went which way; what is not better is always named, and better ones if few."""
    parts = []
    for verdict in ("better", "worse", "inconclusive"):
        some = [c for c in comparisons if c.verdict == verdict]
        names = ": " + _joined([f"{c.name} ({c.metric} {c.skill}, {c.difference:+.3f})" for c in some])
        if len(some) > 3 and verdict == "better":
            names = f" ({_joined(_ranges(some))})"
        if some:
            parts.append(f"{verdict} in {len(some)} of {len(comparisons)}{names}")
    return "; ".join(parts)


def _ranges(comparisons: Sequence[Comparison]) -> list[str]:
    """Say from where to where the differences go: rates and quality apart, as their units differ."""
    found = []
    for what, quality in (("rates", False), ("quality, in logits,", True)):
        gains = sorted(c.difference for c in comparisons if (c.metric == "quality") == quality)
        found += [f"{what} by {gains[0]:+.3f} to {gains[-1]:+.3f}"] if gains else []
    return found


def _joined(words: Sequence[str]) -> str:
    return "".join(words) if len(words) < 2 else ", ".join(words[:-1]) + " and " + words[-1]


def _one_line(run: RunReport) -> str:
    order = {"paper": "the paper's order", "field_report": "the field report's order"}[run.order]
    rounds = f"{run.n_rounds} round{'s' * (run.n_rounds != 1)}"
    return f"Profile {run.profile}, {rounds} in {order}, seed {run.seed}, {run.seconds / 60:.1f} minutes"


def _verdict(run: RunReport) -> str:
    first, *rest = verdict_words(run)
    return f'<div class="verdict"><p class="lede">{escape(first)}</p>' + "".join(
        f"<p>{escape(s)}</p>" for s in rest) + "</div>"


def _what_ran(run: RunReport) -> str:
    order = {"paper": "reward model → rejection sampling → SFT → DPO → averaging",
             "field_report": "SFT → reward model → DPO, winners as preferences"}[run.order]
    splits = sorted({e.split for e in views.stages(run)})
    facts = [("profile", f"{run.profile} (settings {run.profile_digest[:12]})"),
             ("order", f"{run.order}: {order}"), ("seed", str(run.seed)), ("rounds", str(run.n_rounds)),
             ("measured on", f"{_joined(splits)} prompts"), ("time", f"{run.seconds:,.0f} s"),
             ("sampled", f"{sum(r.tokens for r in run.rounds):,} tokens in the rounds"),
             ("peak memory", f"{run.peak_memory_gb:.2f} GB"), *run.versions]
    rows = [(f"round {r.round}", name, f"{s:,.1f}") for r in run.rounds for name, s in r.seconds]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    table = _table("Wall time of each stage, in seconds", ("round", "stage", "seconds"), rows)
    return f"<dl>{listed}</dl>" + _details("Seconds by stage", table)


def _chain(run: RunReport) -> str:
    back = " SFT starts from the base in each round, so it may step back." if run.order == "paper" else ""
    return _figure("chain", "The chain", views.figure_chain(run), views.describe_chain(run),
                   "Filled marks follow the policy; hollow grey ones are its control, trained on as many "
                   "answers chosen at random." + back)


def _rates(run: RunReport) -> str:
    head = ("stage", "greedy", "sampled", "pass@k", "k", "ended", "tokens")
    rows = [(e.stage, views.brief(s.greedy), views.brief(s.sampled), views.brief(s.at_k), str(e.samples),
             f"{s.ended.value:.1%}", f"{s.n_tokens:.1f}")
            for e in views.stages(run) if (s := views.score(e))]
    levels = "".join(_by_level(run, metric) for metric in ("sampled", "greedy"))
    return (_figure("rates", "Right answers by skill", views.figure_pass_rates(run),
                    views.describe_pass_rates(run), "Filled circles: sampled at temperature 1. Hollow "
                    "squares: greedy. Lines are 95 % intervals.")
            + _table("Checkable skills together, all levels. k: samples a prompt; ended: share of answers "
                     "closed by <|eot_id|>; tokens: mean length of an answer", head, rows)
            + _by_skill(run, "sampled") + _details("Greedy, by skill and stage", _by_skill(run, "greedy"))
            + _details("By level, where each round began and ended", levels))


def _by_skill(run: RunReport, metric: str) -> str:
    skills = [s for s in views.skills_of(run) if s != "all"]
    rows = [(e.stage, *(_cell(views.score(e, s), metric) for s in skills)) for e in views.stages(run)]
    talks = [f"{s.quality:+.2f}" if (s := views.score(e, "conversation")) else "–" for e in views.stages(run)]
    rows = [(*row, talk) for row, talk in zip(rows, talks, strict=True)]
    return _table(f"{metric.capitalize()}, by skill, all levels (open skill: share meeting the rubric; "
                  "quality: its mean true quality, sampled, in logits)", ("stage", *skills, "quality"), rows)


def _by_level(run: RunReport, metric: str) -> str:
    kept = [*run.start, *(r.evaluations[-1] for r in run.rounds if r.evaluations)]
    spots = dict.fromkeys((s.skill, s.level) for e in kept for s in e.scores if s.level)
    rows = [(f"{skill} {level}", *(_cell(views.score(e, skill, level), metric) for e in kept))
            for skill, level in spots]
    head = ("skill, level", *(e.stage for e in kept))
    return _table(f"{metric.capitalize()}, by skill and level", head, rows)


def _cell(score: SkillScore | None, metric: str) -> str:
    return views.brief(getattr(score, metric)) if score else "–"


def _comparisons(run: RunReport) -> str:
    head = ("comparison", "a − b", "metric, skill", "difference", "p (Holm)", "n", "verdict")
    rows, kinds = [], []
    for c in run.comparisons:
        name, what, difference, p, verdict = views.comparison_cells(c)
        rows.append((name, f"{c.a} − {c.b}", what, difference, p, str(c.n), verdict))
        kinds.append(c.verdict)
    if not rows:
        return "<p>No comparison was made.</p>"
    starred = any(r[-1].endswith("*") for r in rows)
    star = f'<p class="quiet">{escape(views.HOLM_NOTE)}</p>' if starred else ""
    return _table("Paired differences on the same prompts, with 95 % intervals. Rates: 1.0 is 100 points; "
                  "quality: logits. Inconclusive: the interval holds zero", head, rows, kinds) + star


def _funnels(run: RunReport) -> str:
    parts = ["<p>What was left after each step. An answer that was cut off is not finished; one that the "
             "checker could not judge is not decided; a prompt is solved where any answer passed. The open "
             "skill has no checker to decide.</p>"]
    for r in run.rounds:
        figure = _figure(f"funnel-{r.round}", f"Funnel of round {r.round}", views.figure_funnel(r),
                         views.describe_funnel(r), "Shares are of the first bar in each block.")
        parts.append(f"<h3>Round {r.round}</h3>{figure}{_details('By level', _funnel_table(r))}")
    return "".join(parts) if run.rounds else ""


def _funnel_table(r: RoundReport) -> str:
    names = (*views.PROMPTS[:1], *views.ANSWERS, *views.PROMPTS[1:])
    rows = [(f"{f.skill} {f.level}", *(f"{getattr(f, n):,}" for n in names)) for f in r.funnel]
    return _table(f"Round {r.round}, counts by skill and level", ("skill, level", *names), rows)


def _pairs(run: RunReport) -> str:
    if not run.rounds:
        return ""
    names = ("annotated", "edited", "strong", "reward_training", "dpo", "annotator_errors")
    rows = [(f"round {r.round}", *(f"{getattr(r.pairs, n):,}" for n in names)) for r in run.rounds]
    return _table("Annotated, rated strongly enough, and used; annotator errors prefer the answer of lower "
                  "true quality", ("round", *(n.replace("_", " ") for n in names)), rows)


def _agreement(run: RunReport) -> str:
    found = [a for r in run.rounds for a in r.agreement]
    if not found:
        return ""
    order = [*STRENGTHS, *sorted({a.strength for a in found} - set(STRENGTHS))]
    strengths = [s for s in order if any(a.strength == s for a in found)]
    cells = {(a.round, a.skill, a.strength): str(a.rate) for a in found}
    rows = [(f"round {n}", skill, *(cells.get((n, skill, s), "–") for s in strengths))
            for n, skill in dict.fromkeys((a.round, a.skill) for a in found)]
    return _table("Share of held-out pairs without noise on which the reward model agrees with the truth, by "
                  "strength of the preference (chance: 0.5)", ("round", "skill", *strengths), rows)


def _best_of_k(run: RunReport) -> str:
    if not run.best_of_k:
        return ""
    notes = "".join(f"<li>{escape(n)}</li>" for n in views.notes_best_of_k(run))
    words = ("<p>More answers to choose from help only a judge that knows better: a weak one finds, among "
             "more answers, those that merely look good to it. Worse than a random pick in this run:</p>"
             f"<ul>{notes}</ul>" if notes else "<p>No judge falls below random at any k.</p>")
    return words + _figure("best", "Best of k", views.figure_best_of_k(run), views.describe_best_of_k(run),
                           "Exact expectation over all subsets of k of the answers drawn; ties split evenly.")


def _training(run: RunReport) -> str:
    if not views.curves_by_kind(run):
        return ""
    return _figure("training", "Training curves", views.figure_training_curves(run),
                   views.describe_training_curves(run),
                   "Dotted grey: ln 2, the loss of no preference. Runs of one round share its line style.")


def _health(run: RunReport) -> str:
    checks = list(dict.fromkeys((*run.health, *(h for r in run.rounds for h in r.health))))
    if not checks:
        return ""
    warned = "".join(f"<li>{escape(w)}</li>" for w in views.warnings(run))
    rows = [(h.stage, h.name, h.status, f"{h.value:.4g}", h.reason) for h in checks]
    table = _table("Health checks", ("stage", "check", "status", "value", "reason"), rows,
                   ["worse" if h.status == "WARN" else "" for h in checks])
    return (f"<ul>{warned}</ul>" if warned else "<p>All checks passed.</p>") + _details(
        f"All {len(checks)} checks", table)


def _samples(run: RunReport) -> str:
    return "".join(_sample(s) for s in run.samples)


def _sample(s: SampleAnswer) -> str:
    sides = "".join(
        f'<div><div class="quiet">{when}: <span class="{escape(outcome)}">{escape(outcome)}</span></div>'
        f"<pre>{escape(text) or '(empty)'}</pre></div>"
        for when, text, outcome in (("before", s.before, s.before_outcome),
                                    ("after", s.after, s.after_outcome)))
    return (f'<h3>{escape(s.skill)}, level {s.level} <span class="quiet">({escape(s.prompt_id)})</span></h3>'
            f'<pre>{escape(s.question)}</pre><div class="pair">{sides}</div>')


def _figure(slug: str, title: str, figure: Figure, twin: str, caption: str) -> str:
    """Return the figure as SVG: ids unique, colours from the stylesheet, the twin as its description."""
    svg = views.to_svg(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.S)
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{slug}-", svg)
    for name, color in views.COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    label = f'<title id="{slug}-t">{escape(title)}</title><desc id="{slug}-d">{escape(twin)}</desc>'
    svg = re.sub(r"<svg ([^>]*)>", rf'<svg role="img" aria-labelledby="{slug}-t {slug}-d" \1>', svg, count=1)
    head, _, rest = svg.partition(">")
    return (f'<figure><div class="wide">{head}>{label}{rest}</div><figcaption>{escape(caption)}</figcaption>'
            f"{_details('The same in words', f'<pre>{escape(twin)}</pre>')}</figure>")


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]],
           kinds: Sequence[str] = ()) -> str:
    wordy = {"reason", "comparison", "a − b"}
    top = "".join(f'<th scope="col"{_text(h in wordy)}>{escape(h)}</th>' for h in head)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(f"<td{_text(h in wordy)}>{escape(c)}</td>"
                        for h, c in zip(head[1:], row[1:], strict=True))
        kind = f' class="{kinds[i]}"' if kinds and kinds[i] else ""
        body += f'<tr{kind}><th scope="row"{_text(head[0] in wordy)}>{escape(row[0])}</th>{cells}</tr>'
    return (f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def _text(wordy: bool) -> str:
    return ' class="text"' if wordy else ""


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _theme(colors: dict[str, str]) -> str:
    return ":root{" + ";".join(f"--{name}:{color}" for name, color in colors.items()) + "}"


SECTIONS: tuple[tuple[str, str, Callable[[RunReport], str]], ...] = (
    ("verdict", "What this run showed", _verdict),
    ("chain-of-stages", "From the base to the last round", _chain),
    ("comparisons", "Every gain beside its control", _comparisons),
    ("safety", "Violations and false refusals", lambda run: safety_views.safety_section(run, _table)),
    ("by-skill", "Right answers by skill, stage and level", _rates),
    ("samples", "Sample answers, before and after", _samples),
    ("funnel-of-rounds", "The funnel of each round", _funnels),
    ("pairs", "Preference pairs", _pairs),
    ("reward-model", "How far the reward model agrees with the truth", _agreement),
    ("best-of-k", "Choosing among k answers", _best_of_k),
    ("training-curves", "Training curves", _training),
    ("health", "Health checks", _health),
    ("what-ran", "What ran", _what_ran),
)
