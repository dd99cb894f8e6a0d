"""Run the safety study over three seeds and record it: data/runs/safety-scores.jsonl and safety-changes.jsonl.

    python tools/safety_study.py --out build/safety            # 40 minutes on one core; goes on where it stopped
    python tools/safety_study.py --out build/safety --part "red team"

Scores: one `StudyScore` an arm and seed. Changes: paired differences against the arm's control, pooled over the
seeds, Holm-corrected within each part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pretrain_base import write_cards

from llama3_lab.pipeline.reports import holm
from llama3_lab.profiles import TINY, Profile
from llama3_lab.records import Comparison, SafetyAnswer, StudyScore
from llama3_lab.safety import study
from llama3_lab.safety.guard import guard_for
from llama3_lab.safety.layers import safety_score
from llama3_lab.store import read_records, write_records

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
TESTS = 600
STEPS = 80  # of each SFT
METRICS = ("vr", "held-out vr", "frr", "helped", "passed")
Arms = Callable[[study.Study], dict[str, list[SafetyAnswer]]]
PARTS: dict[str, Arms] = {
    "layers": study.layer_arms, "red team": study.red_team_rounds, "quality": study.quality_arms,
}  # fmt: skip
PARENT = {"all": "none", "filter": "own answers, unfiltered"}


def controls(part: str, arms: list[str]) -> list[tuple[str, str]]:
    """Return (arm, its control) for every arm of a part."""
    if part == "layers":
        against = [(a, PARENT.get(a, "none")) for a in arms if a != "none"]
        return [*against, ("filter", "none")]
    if part == "red team":
        return [(a, b) for b, a in zip(arms, arms[1:], strict=False)] + [(arms[-1], arms[0])]
    few, many = study.QUANTITIES
    clean, careless = study.NOISES
    name = study.arm_name
    return [
        *((name(n, careless), name(n, clean)) for n in study.QUANTITIES),
        (name(few, clean), name(many, careless)), (name(many, clean), name(few, clean)),
    ]  # fmt: skip


def answers_of(part: str, profile: Profile, seed: int, out: Path) -> dict[str, list[SafetyAnswer]]:
    """Return every arm's answers for one seed: kept from before, or made and kept."""
    done = _done(part, seed, out)
    if done.is_file():
        arms = done.read_text().splitlines()
        return {a: read_records(_file(out, seed, part, a), SafetyAnswer) for a in arms}
    guard = guard_for(profile)
    tests = study.test_requests(profile, TESTS)
    rows = PARTS[part](study.Study(profile, guard, seed, out / f"seed{seed}", tests))
    for arm, found in rows.items():
        write_records(_file(out, seed, part, arm), found)
    done.write_text("\n".join(rows) + "\n")
    return rows


def _done(part: str, seed: int, out: Path) -> Path:
    return out / f"seed{seed}" / f"{part.replace(' ', '-')}.txt"


def _file(out: Path, seed: int, part: str, arm: str) -> Path:
    words = f"{part}-{arm}".replace(" ", "-").replace("%", "").replace(",", "")
    return out / f"seed{seed}" / f"{words}.jsonl"


def run(part: str, profile: Profile, out: Path, kept: bool) -> tuple[list[StudyScore], list[Comparison]]:
    """Return scores and changes of one part over all seeds, or over those whose answers are kept already."""
    unseen = profile.safety.held_out
    numbers = [s for s in SEEDS if not kept or _done(part, s, out).is_file()]
    seeds = [answers_of(part, profile, s, out) for s in numbers]
    scores = [StudyScore(part, arm, s, safety_score(rows, unseen, arm))
              for s, arms in zip(numbers, seeds, strict=True) for arm, rows in arms.items()]  # fmt: skip
    changes = [study.change(seeds, f"{part}: {a} against {b}", (a, b), metric, unseen)
               for a, b in controls(part, list(seeds[0])) for metric in METRICS]  # fmt: skip
    return scores, holm(changes)


def main() -> None:
    """Read the command line, run what is not there yet, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "safety")
    parser.add_argument("--part", choices=tuple(PARTS))
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only make this seed's answers; record nothing")
    parser.add_argument("--kept", action="store_true", help="record what is there, without making the rest")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sft = replace(TINY.sft, fit=replace(TINY.sft.fit, max_steps=STEPS))
    profile = replace(TINY, model=replace(TINY.model, threads=args.threads), sft=sft)
    parts = [args.part] if args.part else list(PARTS)
    if args.seed is not None:
        for part in parts:
            answers_of(part, profile, args.seed, args.out)
        return
    found = [run(part, profile, args.out, args.kept) for part in parts]
    if not args.part:
        write_records(ROOT / "data" / "runs" / "safety-scores.jsonl", [s for scores, _ in found for s in scores])
        write_records(ROOT / "data" / "runs" / "safety-changes.jsonl", [c for _, changes in found for c in changes])
        write_cards(ROOT / "data" / "tiny_base")
    for scores, changes in found:
        for s in scores:
            print(f"{s.part:<9} seed {s.seed} {s.arm:<34} VR {s.score.vr}  held out {s.score.held_out_vr.value:.3f}  "
                  f"FRR {s.score.frr.value:.3f}  passed {s.score.passed.value:.3f}")  # fmt: skip
        for c in changes:
            print(f"{c.name:<70} {c.metric:<12} {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] Holm {c.p_holm:.3g}")


if __name__ == "__main__":
    main()
