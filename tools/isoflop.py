"""The isoFLOP experiment: tiny Llamas of several sizes, each trained until the same number of FLOPs is spent.

    python tools/isoflop.py          # the grid and its exam, ten to fifteen minutes on two cores; writes data/runs/
    python tools/isoflop.py --tune   # before it: the learning rates, about two minutes; kept in the same files
    python tools/isoflop.py --budgets 1e11 --seeds 1 --out /somewhere   # a trial

Each worker is a process of one thread. The longest cells come first, so that all workers end at about the same time.
The rule of learning rates in pretraining.Recipe was read off the tuning cells, which have a seed of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import time
from dataclasses import replace
from pathlib import Path

from llama3_lab.paper.isoflop import Cell, Conditions
from llama3_lab.pipeline.pretraining import Recipe, pretrain, small_llama, text_rows
from llama3_lab.progress import bar
from llama3_lab.store import read_records, write_records

RUNS = Path(__file__).parents[1] / "data" / "runs"
HELD_OUT, HELD_OUT_SEED = 512, 7  # rows; a seed that no training text has
LAYERS = 2  # for all: size is width here
HEADS = {8: 2, 12: 2, 16: 2, 24: 2, 32: 2, 48: 4, 64: 4}  # by width
# Budget: widths around the optimum that trials showed, and seeds.
GRID = {4e10: ((8, 12, 16, 24, 32), 3), 1e11: ((12, 16, 24, 32, 48), 3), 2.5e11: ((16, 24, 32, 48, 64), 3),
        6e11: ((16, 24, 32, 48, 64), 2)}  # fmt: skip
# A dearer budget that no curve is fitted to: does the law through the others hold there? On seeds that no trial had.
EXAM, EXAM_SEED = {1.5e12: ((24, 48), 2)}, 10
TUNED = {2.5e11: ((16, 32, 64), (2e-3, 4e-3, 8e-3, 16e-3, 32e-3))}


def cell(job: tuple[str, float, int, Recipe]) -> Cell:
    """Train and measure one cell. job: phase, budget, width, recipe."""
    import torch

    torch.set_num_threads(1)
    phase, budget, width, how = job
    a = small_llama(width, LAYERS, HEADS[width])
    done = pretrain(a, budget, how, text_rows(HELD_OUT, how.row, HELD_OUT_SEED))
    spread = (sum((x - done.loss) ** 2 for x in done.losses) / (len(done.losses) - 1)) ** 0.5
    return Cell(phase, budget, width, a.layers, a.heads, a.parameters(), done.flops, done.tokens, how.seed,
                how.peak(a), round(done.loss, 5), round(spread, 5), round(done.seconds, 2))  # fmt: skip


def grid(budgets: list[float], seeds: int) -> list[tuple[str, float, int, Recipe]]:
    """Return the jobs of the grid and of its exam, the longest first; at most `seeds` of each."""
    both = {**dict(sorted(GRID.items())), **EXAM}
    first = {budget: EXAM_SEED if budget in EXAM else 0 for budget in both}
    return [("exam" if budget in EXAM else "grid", budget, width, Recipe(seed=first[budget] + n))
            for budget, (widths, most) in reversed(both.items()) if budget in budgets
            for width in widths for n in range(min(seeds, most))]  # fmt: skip


def tuning() -> list[tuple[str, float, int, Recipe]]:
    """Return the jobs of the search for learning rates: the same peaks for every width, on a seed of their own."""
    rule = Recipe(seed=90, falls=0.0)
    return [("tuning", budget, width, replace(rule, learning_rate=peak)) for budget, (widths, peaks) in TUNED.items()
            for width in widths for peak in peaks]  # fmt: skip


def run(jobs: list[tuple[str, float, int, Recipe]], workers: int) -> list[Cell]:
    """Return the cells of all jobs, in their order."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        progress, cells = bar(len(jobs), "isoFLOP"), []
        for done in pool.imap(cell, jobs):
            cells.append(done)
            progress.update(1)
            progress.set_postfix_str(f"{done.budget:.2g} FLOPs, {done.parameters:,}: loss {done.loss:.3f}")
        progress.close()
    return cells


def main() -> None:
    """Read the command line, train, and write what was found."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--budgets", type=float, nargs="+", default=[*GRID, *EXAM], choices=[*GRID, *EXAM])
    parser.add_argument("--tune", action="store_true", help="search for learning rates instead")
    args = parser.parse_args()
    jobs, started = tuning() if args.tune else grid(args.budgets, args.seeds), time.perf_counter()
    cells = run(jobs, args.workers)
    seconds, file = round(time.perf_counter() - started, 1), args.out / "isoflop.jsonl"
    phases, phase = {job[0] for job in jobs}, "tuning" if args.tune else "grid"
    kept = [c for c in read_records(file, Cell) if c.phase not in phases] if file.exists() else []
    write_records(file, sorted([*kept, *cells], key=lambda c: (c.phase, c.budget, c.width, c.seed, c.learning_rate)))
    conditions = args.out / "isoflop-conditions.jsonl"
    others = [c for c in read_records(conditions, Conditions) if c.phase != phase] if conditions.exists() else []
    own = Conditions(phase, seconds, round(sum(c.seconds for c in cells), 1), args.workers, HELD_OUT, jobs[0][3].row,
                     jobs[0][3].rows, torch.__version__, platform.machine())  # fmt: skip
    write_records(conditions, sorted([*others, own], key=lambda c: c.phase))
    for c in cells:
        print(f"{c.budget:.2g} {c.width:>4} {c.parameters:>9,} {c.tokens:>11,} {c.learning_rate:.4f} {c.loss:.4f} "
              f"{c.seconds:7.1f}")  # fmt: skip
    print(f"{len(cells)} cells in {seconds} s; {file}")


if __name__ == "__main__":
    main()
