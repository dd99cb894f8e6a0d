"""Pre-train the tiny base: a Llama of about one million parameters, on the small world's text.

    python tools/pretrain_base.py            # what `make base` runs; writes data/tiny_base/
    python tools/pretrain_base.py --documents 2000 --out /somewhere   # a trial

Muon moves the matrices inside the blocks, AdamW the embeddings, the output layer and the norms.
Documents of like length share a batch, padded on the right: with a causal mask no token sees another
document or a pad, which is what the paper's cross-document mask does (§3.2), without packing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llama3_lab.models import load_policy
from llama3_lab.pipeline import reports
from llama3_lab.pipeline.measurements import measure
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.profiles import TINY
from llama3_lab.progress import bar
from llama3_lab.store import to_json, write_text
from llama3_lab.tokenizer import train_tokenizer
from llama3_lab.world.corpus import documents


@dataclass(frozen=True)
class Settings:
    """What made the base. documents × about 50 tokens; lengths in tokens; sizes as in LlamaConfig."""

    documents: int = 400_000
    tokenizer_documents: int = 30_000
    vocab_size: int = 640
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rope_theta: float = 500_000.0
    batch_documents: int = 48
    muon_lr: float = 4e-3
    adamw_lr: float = 4e-3
    flat_share: float = 0.4
    final_lr_share: float = 0.02
    warmup_steps: int = 50
    easy_documents_share: float = 0.15  # the first documents: orderings of two names only
    seed: int = 0
    threads: int = 1


def encode(settings: Settings, tokenizer) -> tuple[list[list[int]], str]:
    """Return every document as token ids, begin and end tokens included, and the corpus's digest."""
    n_easy = int(settings.documents * settings.easy_documents_share)
    texts = [
        *documents(n_easy, settings.seed + 1, 1.0),
        *documents(settings.documents - n_easy, settings.seed + 2, 0.1),
    ]
    digest = hashlib.sha256("\x1e".join(texts).encode()).hexdigest()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    return [[bos, *row, eos] for row in ids], digest


def batches(rows: list[list[int]], size: int, rng: Random) -> list[list[list[int]]]:
    """Return batches in corpus order on the whole, of like lengths within a stretch of 64 batches."""
    out = []
    for start in range(0, len(rows), size * 64):
        stretch = sorted(rows[start : start + size * 64], key=len)
        chunk = [stretch[i : i + size] for i in range(0, len(stretch), size)]
        rng.shuffle(chunk)
        out += chunk
    return out


def optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    muon = torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def share_at(step: int, total: int, settings: Settings) -> float:
    """Return the learning rate's share at a step: warm-up, flat, then linear to the final share."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    left = (total - step) / (total * (1 - settings.flat_share))
    return settings.final_lr_share + (1 - settings.final_lr_share) * min(1.0, left)


def train(settings: Settings, out: Path) -> dict:
    """Train, save model, tokenizer and log to `out`; return the summary that settings.json holds."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(documents(settings.tokenizer_documents, settings.seed), settings.vocab_size)
    rows, digest = encode(settings, tokenizer)
    model = LlamaForCausalLM(make_config(settings, tokenizer))
    steps = batches(rows, settings.batch_documents, Random(settings.seed))
    opts, started, seen, log = optimizers(model, settings), time.time(), 0, []
    base_lrs = [o.param_groups[0]["lr"] for o in opts]
    progress = bar(len(steps), "pre-training")
    for step, batch in enumerate(steps):
        width = max(map(len, batch))
        ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in batch])
        for opt, lr in zip(opts, base_lrs, strict=True):
            opt.param_groups[0]["lr"] = lr * share_at(step, len(steps), settings)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        seen += sum(map(len, batch))
        progress.update(1)
        if step % 50 == 0 or step == len(steps) - 1:
            log.append({"step": step, "loss": round(loss.item(), 4), "tokens": seen})
            progress.set_postfix_str(f"loss {loss.item():.3f}, {seen / (time.time() - started):.0f} tokens/s")
        if step % 1000 == 999:
            model.save_pretrained(out / "partial")
    progress.close()
    return save(model, tokenizer, settings, out, {"digest": digest, "tokens": seen, "log": log, "started": started})


def make_config(settings: Settings, tokenizer) -> LlamaConfig:
    """Return the architecture: Llama 3.1 in kind, without its long-context frequency scaling."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads")  # fmt: skip
    return LlamaConfig(
        **{n: getattr(settings, n) for n in names},
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save(model, tokenizer, settings: Settings, out: Path, facts: dict) -> dict:
    """Write weights, tokenizer, log and settings; return the summary."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts["log"]))
    summary = {
        "settings": asdict(settings),
        "corpus_sha256": facts["digest"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": facts["tokens"],
        "minutes": round((time.time() - facts["started"]) / 60, 1),
        "final_loss": facts["log"][-1]["loss"],
        "torch": torch.__version__,
    }
    (out / "settings.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "data" / "tiny_base")
    for name in ("documents", "seed", "threads", "num_hidden_layers", "hidden_size"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings(), name))
    for name in ("muon_lr", "adamw_lr"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Settings(), name))
    args = vars(parser.parse_args())
    out = args.pop("out")
    print(json.dumps(train(Settings(**args), out), indent=2))
    shutil.rmtree(out / "partial", ignore_errors=True)
    print(evaluate(out))
    write_cards(out)


def evaluate(out: Path, per_skill: int = 200, samples: int = 16) -> str:
    """Measure the base on the test prompts, in its own format; write evaluation.json; return a table."""
    policy = load_policy(out, TINY.model, "base")
    rows = measure(policy, held_out(per_skill, "test"), replace(TINY.sampling, k=samples), "base")
    found = reports.evaluate("base, own format", 0, "test", rows, samples)
    write_text(out / "evaluation.json", json.dumps(to_json(found), indent=1) + "\n")
    lines = [f"{'skill':<13} {'level':>5}  {'greedy':<28} {'sampled':<28} pass@{samples}"]
    lines += [f"{s.skill:<13} {s.level or 'all':>5}  {s.greedy!s:<28} {s.sampled!s:<28} {s.at_k}" for s in found.scores]
    return "\n".join(lines)


CARDS = """# Cards: what every file under data/ is, and its digest

Weights and runs were made by this project's own code from a seed; nothing was downloaded. The figures in paper/ are
other people's, each with its place.

## tiny_base

| | |
|---|---|
| what | a Llama of {parameters:,} parameters, pre-trained on {tokens:,} tokens of the small world |
| source | `make base` (tools/pretrain_base.py), settings and corpus digest in settings.json |
| licence | Apache-2.0, as the code |
| made for | this course; it knows nothing but the small world, and is wrong by design |

## tiny_guard

| | |
|---|---|
| what | the base finetuned with LoRA as a guard, in Llama Guard 3's format, for the small world's eight hazards |
| source | `make guard` (tools/train_guard.py); threshold, figures and conditions in guard.json |
| licence | Apache-2.0, as the code |
| made for | this course; it knows only the small world's mild requests, and guards nothing real |

## runs

Recorded reports of real runs (`llama3-lab run`, then `python tools/record_runs.py`): one JSON file a run,
as `RunReport` in records.py; pooled.jsonl compares stages over the seeds, one `Comparison` a line. The tiny-paper runs
had safety off, the tiny-safety runs had it on. safety-scores.jsonl and safety-changes.jsonl are the safety study's
(`python tools/safety_study.py`). Licence: Apache-2.0.

## paper

Figures of "The Llama 3 Herd of Models" (Meta, arXiv:2407.21783) and of model cards: facts.yaml says of each where it
stands and how it was checked; claims.yaml holds a field report's claims in our own words, with verdicts. A figure is
nobody's; the words and the arrangement are this project's. Licence: Apache-2.0.

## Files

| file | bytes | sha256 |
|---|---|---|
{rows}
"""


def write_cards(out: Path) -> None:
    """Write CARDS.md: size and sha256 of each file of the base, and of all that lies in the folders beside it."""
    summary = json.loads((out / "settings.json").read_text())
    folders = [out, *sorted(f for f in out.parent.iterdir() if f.is_dir() and f != out)]
    files = [f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()]
    rows = [
        f"| {f.relative_to(out.parent)} | {f.stat().st_size} | {hashlib.sha256(f.read_bytes()).hexdigest()} |"
        for f in files
    ]
    facts = {"parameters": summary["parameters"], "tokens": summary["tokens"], "rows": "\n".join(rows)}
    write_text(out.parent / "CARDS.md", CARDS.format(**facts))


if __name__ == "__main__":
    main()
