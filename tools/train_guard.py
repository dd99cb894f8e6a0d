"""Train the small world's guard: LoRA on our base, in Llama Guard 3's format; choose its threshold; measure it.

    python tools/train_guard.py                                   # what `make guard` runs; writes data/tiny_guard/
    python tools/train_guard.py --seed 1 --out build/guard-1      # another seed, e.g. for intervals over seeds
    python tools/train_guard.py --measure --out data/tiny_guard   # choose and measure again, without training

The threshold is chosen on validation; the figures in guard.json are of the test split, whose acts, things and names
no training put together. The held-out wording is reported apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from llama3_lab.pipeline.training import train_guard
from llama3_lab.profiles import TINY
from llama3_lab.safety.guard import Guard, guard_rows, load_guard, new_guard, score
from llama3_lab.safety.guard_format import Turn
from llama3_lab.safety.guard_training import EVEN, GuardExample, draw_examples
from llama3_lab.safety.injections import INJECTIONS, TRAINED, inject
from llama3_lab.safety.quantised import quantised, size_of
from llama3_lab.safety.safety_metrics import Detection, by_category, calibration, choose_threshold, detect
from llama3_lab.safety.taxonomy import categories
from llama3_lab.store import read_text, write_text
from llama3_lab.world.hazards import FAMILIES

HELD_OUT = TINY.safety.held_out
KNOWN = tuple(f for f in FAMILIES if f != HELD_OUT)
VALIDATION, TEST = 2400, 4200  # examples; by turns a request alone and a request with its answer
KEPT = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "training.json")  # fmt: skip


def train(seed: int, threads: int, out: Path) -> None:
    """Train, and write the guard to `out`."""
    how, settings = TINY.safety.guard, replace(TINY.model, threads=threads)
    known, fit = categories(how.scheme), replace(how.fit, seed=seed)
    policy = new_guard(TINY.model.path, settings)
    examples = draw_examples(how.examples, "train", seed, KNOWN, TRAINED)
    rows = guard_rows(policy.tokenizer, [(e.turns, e.codes) for e in examples], known, fit.max_length)
    with TemporaryDirectory() as made:
        train_guard(policy, rows, replace(TINY.sft, fit=fit, lora=how.lora), Path(made), settings)
        out.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(Path(made) / name, out / name)


def choose_and_measure(seed: int, threads: int, out: Path) -> dict:
    """Choose the threshold of the guard in `out`, measure it, and write guard.json; return what that holds."""
    how, settings = TINY.safety.guard, replace(TINY.model, threads=threads)
    guard = load_guard(out, settings, categories(how.scheme), 0.5)
    seconds = json.loads(read_text(out / "training.json"))["seconds"]
    validation = draw_examples(VALIDATION, "validation", 0, KNOWN, mix=EVEN)
    values = score(guard, [e.turns for e in validation])
    chosen = choose_threshold(values, [e.unsafe for e in validation], how.max_fpr).threshold
    found = {
        "seed": seed, "threshold": chosen, "train_examples": how.examples, "seconds": seconds,
        "steps": how.fit.max_steps, "test": measure(guard, chosen), "int8": measure(quantised(guard), chosen),
        "bytes": {"float32": size_of(guard), "int8": size_of(quantised(guard))},
        "injections": measure_injections(guard, chosen), **measure_more(guard, chosen),
    }  # fmt: skip
    write_text(out / "guard.json", json.dumps(found, indent=1) + "\n")
    return found


def measure(guard: Guard, threshold: float) -> dict:
    """Return detection on the test split, requests and answers apart, in known wordings and in the held-out one."""
    out = {}
    for name, families, n in (("known", KNOWN, TEST), ("held out", (HELD_OUT,), TEST // 4)):
        examples = draw_examples(n, "test", 0, families, mix=EVEN)
        for kind, turns in (("request", 1), ("answer", 2)):
            out[f"{name}, {kind}"] = asdict(_detect(guard, [e for e in examples if len(e.turns) == turns], threshold))
    return out


def measure_more(guard: Guard, threshold: float) -> dict:
    """Return detection by category and calibration, over test requests and answers in known wordings."""
    examples = draw_examples(TEST, "test", 0, KNOWN, mix=EVEN)
    values, unsafe = score(guard, [e.turns for e in examples]), [e.unsafe for e in examples]
    rows = by_category(values, unsafe, [e.codes[0] if e.codes else "" for e in examples], threshold)
    return {"categories": {r.category: asdict(r.detection) for r in rows},
            "calibration": asdict(calibration(values, unsafe))}  # fmt: skip


def _detect(guard: Guard, examples: list[GuardExample], threshold: float) -> Detection:
    return detect(score(guard, [e.turns for e in examples]), [e.unsafe for e in examples], threshold)


def measure_injections(guard: Guard, threshold: float) -> dict:
    """Return recall and false-positive rate on the same 800 test requests with each injection, and with none."""
    plain = [e for e in draw_examples(1600, "test", 1, KNOWN) if len(e.turns) == 1]
    out = {}
    for name in ("", *INJECTIONS):
        texts = [inject(e.turns[0].text, name) if name else e.turns[0].text for e in plain]
        rows = [replace(e, turns=(Turn("User", text),)) for e, text in zip(plain, texts, strict=True)]
        found = _detect(guard, rows, threshold)
        out[name or "none"] = {"recall": asdict(found.recall), "false_positive_rate": asdict(found.false_positive_rate)}
    return out


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "data" / "tiny_guard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=TINY.model.threads)
    parser.add_argument("--measure", action="store_true", help="measure the guard that is there, without training")
    args = parser.parse_args()
    if not args.measure:
        train(args.seed, args.threads, args.out)
    found = choose_and_measure(args.seed, args.threads, args.out)
    for part in ("test", "int8"):
        for name, d in found[part].items():
            print(f"{part:<5} {name:<18} F1 {d['f1']['value']:.3f}  FPR {d['false_positive_rate']['value']:.3f}")
    if args.out.parent.name == "data":
        from pretrain_base import write_cards

        write_cards(args.out.parent / "tiny_base")


if __name__ == "__main__":
    main()
