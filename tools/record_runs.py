"""Record finished runs of several seeds: data/runs/, the README's table and figure, pooled comparisons.

python tools/record_runs.py runs/tiny-paper-seed0 runs/tiny-paper-seed1 runs/tiny-paper-seed2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pretrain_base import write_cards

from llama3_lab.course import views
from llama3_lab.pipeline import reports
from llama3_lab.records import Comparison, PromptScore, RunReport
from llama3_lab.store import from_json, read_records, to_json, write_records, write_text

ROOT = Path(__file__).parents[1]
METRICS = (("greedy", "all"), ("sampled", "all"), ("quality", "conversation"))


def rows(folder: Path, name: str) -> list[PromptScore]:
    """Return a stage's per-prompt scores from a run's folder."""
    return read_records(folder / f"scores-{name}-chat.jsonl", PromptScore)


def pooled(folders: list[Path], n_rounds: int) -> list[Comparison]:
    """Return the gains beside their controls, pooled over the seeds, corrected as one family."""
    wanted = []
    for i in range(1, n_rounds + 1):
        wanted.append((f"round {i}: SFT on selected over SFT on random", f"round{i}-sft", f"round{i}-control"))
        wanted.append((f"round {i}: DPO over its start", f"round{i}-policy", f"round{i}-sft"))
    last = f"round{n_rounds}-policy"
    wanted += [("last round over round 1", last, "round1-policy"), ("last round over the first policy", last, "first")]
    out = [
        reports.pooled(name, [(rows(f, a), rows(f, b)) for f in folders], metric, skill, (a, b))
        for name, a, b in wanted
        for metric, skill in METRICS
    ]
    pick = "best-of-k-reward-model", "best-of-k-random"
    out += [
        reports.pooled("best of 16 by the reward model over one by lot",
                       [(rows(f, pick[0]), rows(f, pick[1])) for f in folders], "quality", skill, pick)
        for skill in ("arithmetic", "programs", "orderings", "conversation")
    ]  # fmt: skip
    return reports.holm(out)


def markdown(comparisons: list[Comparison]) -> str:
    """Return the comparisons as a table."""
    lines = ["| gain | metric, skill | difference [95 % interval] | p (Holm) | verdict |", "|---|---|---|---|---|"]
    lines += [
        f"| {c.name} | {c.metric}, {c.skill} | {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] | "
        f"{'< 0.001' if c.p_holm < 0.001 else f'{c.p_holm:.3f}'} | {c.verdict} |"
        for c in comparisons
    ]
    return "\n".join(lines)


def main() -> None:
    """Copy the reports, pool them, and renew the README's block between its two marks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    folders = parser.parse_args().runs
    found = [from_json(RunReport, json.loads((f / "report.json").read_text())) for f in folders]
    for folder, report in zip(folders, found, strict=True):
        write_text(ROOT / "data" / "runs" / f"{folder.name}.json", json.dumps(to_json(report)) + "\n")
    comparisons = pooled(folders, found[0].n_rounds)
    write_records(ROOT / "data" / "runs" / "pooled.jsonl", comparisons)
    figure = ROOT / "docs" / "figures" / "chain.svg"
    figure.parent.mkdir(parents=True, exist_ok=True)
    write_text(figure, views.to_svg(views.figure_chain(found[0])))
    seeds = ", ".join(str(r.seed) for r in found)
    block = "\n".join([
        "![Pass rates over the stages of one run, with intervals](docs/figures/chain.svg)", "",
        f"One run (seed {found[0].seed}), share right on the checkable test prompts:", "",
        "```", views.table_stages(found[0]).strip(), "```", "",
        f"Pooled over seeds {seeds} (paired on the same prompts, each prompt's mean over the seeds):", "",
        markdown([c for c in comparisons if c.metric != "quality" or c.skill == "conversation"]),
    ])  # fmt: skip
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split("<!-- result:begin -->")
    after = rest.split("<!-- result:end -->")[1]
    write_text(readme, f"{before}<!-- result:begin -->\n{block}\n<!-- result:end -->{after}")
    write_cards(ROOT / "data" / "tiny_base")
    print(markdown(comparisons))


if __name__ == "__main__":
    main()
