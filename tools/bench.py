"""make bench: speed as ratios, measured in one run on one machine, repeated and interleaved.

    python tools/bench.py [--prompts 192] [--repeats 3] [--threads 1]

Absolute times differ from machine to machine; the ratios are what the project promises.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

os.environ.setdefault("LLAMA3_LAB_PROGRESS", "0")
ROOT = Path(__file__).parents[1]


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def generate(policy, prompts, k: int, batch: int, temperature: float, cap: int):
    """Return transformers' own answers (texts, prompt by prompt) and the number of their tokens."""
    import torch

    from llama3_lab.models import encode_prompt, stop_ids

    tok, stops, texts, n_tokens = policy.tokenizer, set(stop_ids(policy.tokenizer, "chat")), {}, 0
    order = sorted(range(len(prompts)), key=lambda i: len(encode_prompt(tok, prompts[i].text, "chat")))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        ids = [encode_prompt(tok, prompts[i].text, "chat") for i in rows]
        width = max(map(len, ids))
        mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in ids])
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.inference_mode():
            out = policy.model.generate(
                torch.tensor([[tok.pad_token_id] * (width - len(x)) + x for x in ids]), attention_mask=mask,
                num_return_sequences=k, max_new_tokens=cap, eos_token_id=sorted(stops),
                pad_token_id=tok.pad_token_id, **how)  # fmt: skip
        for j, row in enumerate(out[:, width:].tolist()):
            end = next((t for t, token in enumerate(row) if token in stops), len(row))
            n_tokens += min(end + 1, len(row))
            texts.setdefault(rows[j // k], []).append(tok.decode(row[:end]))
    return [texts[i] for i in range(len(prompts))], n_tokens


def bench_sampling(policy, prompts, repeats: int) -> list[str]:
    """Return lines: sample() against generate() at its best batch size, by prompt, and by answer."""
    from llama3_lab.pipeline.candidates import sample
    from llama3_lab.profiles import TINY

    how = TINY.sampling
    few = prompts[:: max(1, len(prompts) // 24)]

    def rate(answers, prompts_used) -> float:
        started = time.perf_counter()
        return answers(prompts_used) / (time.perf_counter() - started)

    def ours(p) -> int:
        return sum(c.n_tokens for c in sample(policy, p, how))

    def theirs(batch, k):
        return lambda p: generate(policy, p, k, batch, how.temperature, how.max_new_tokens)[1]

    ours(few)  # warm up
    batches = (8, 16, 32, 64)
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        found.setdefault("ours", []).append(rate(ours, prompts))
        for b in batches:
            found.setdefault(f"generate, {b} prompts at once", []).append(rate(theirs(b, how.k), prompts))
        found.setdefault("one prompt at a time", []).append(rate(theirs(1, how.k), few))
        found.setdefault("one answer at a time", []).append(rate(theirs(1, 1), few))
    best = max(batches, key=lambda b: statistics.median(found[f"generate, {b} prompts at once"]))
    lines = [f"  {name:<34}{statistics.median(v):>9.0f} tokens/s" for name, v in found.items()]
    for name, least in (
        (f"generate, {best} prompts at once", 2.5),
        ("one prompt at a time", 4),
        ("one answer at a time", 20),
    ):
        ratios = [a / b for a, b in zip(found["ours"], found[name], strict=True)]
        lines.append(
            f"sample() / {name:<34}{statistics.median(ratios):>6.1f}  (asked: {least}; "
            f"{min(ratios):.1f}-{max(ratios):.1f})"
        )
    return lines


def bench_greedy(policy, prompts) -> list[str]:
    """Return a line: on how many prompts greedy text equals generate's."""
    from llama3_lab.pipeline.candidates import sample
    from llama3_lab.profiles import TINY

    ours = sample(policy, prompts, replace(TINY.sampling, k=1, temperature=0.0))
    theirs, _ = generate(policy, prompts, 1, 32, 0.0, TINY.sampling.max_new_tokens)
    same = sum(a.text == b[0] for a, b in zip(ours, theirs, strict=True))
    return [f"greedy text equal to generate's: {same} of {len(prompts)}  (asked: all)"]


def bench_training(base: Path, settings, repeats: int) -> list[str]:
    """Return lines: a TRL stage against a bare torch loop of the same steps on the same batches."""
    from llama3_lab.pipeline.prompts import draw_prompts
    from llama3_lab.pipeline.training import train_sft
    from llama3_lab.profiles import TINY
    from llama3_lab.records import Demonstration
    from llama3_lab.world.corpus import write

    how = replace(TINY.sft, fit=replace(TINY.sft.fit, max_steps=40))
    rng = Random(0)
    rows = [Demonstration(p, write(p, rng), "written") for p in draw_prompts(160, "train", 0, "bench")]
    ratios = []
    for i in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            trl = seconds(lambda out=Path(folder): train_sft(base, rows, how, out, settings))
        bare = seconds(lambda: bare_sft(base, rows, how, settings))
        if i:  # the first pair warms up
            ratios.append(trl / bare)
    return [
        f"TRL SFT stage / bare loop: {statistics.median(ratios):.2f}  (asked: at most 1.3; "
        f"{min(ratios):.2f}-{max(ratios):.2f})"
    ]


def bare_sft(base: Path, rows, how, settings) -> None:
    """Run the same SFT steps (same LoRA, same batch size and rows, AdamW) in a plain loop."""
    import torch
    from peft import get_peft_model

    from llama3_lab.models import encode_prompt, load_policy, lora_config, prepare_special_rows
    from llama3_lab.pipeline.losses import sft_loss

    policy = load_policy(base, settings)
    prepare_special_rows(policy.model, policy.tokenizer, 0)
    tok, fit = policy.tokenizer, how.fit
    model = get_peft_model(policy.model, lora_config(how.lora, "CAUSAL_LM", ["embed_tokens", "lm_head"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fit.learning_rate)
    eot, encoded = tok.convert_tokens_to_ids("<|eot_id|>"), []
    for d in rows:
        prompt = encode_prompt(tok, d.prompt.text, "chat")
        answer = [*tok(d.text, add_special_tokens=False).input_ids, eot]
        encoded.append((prompt + answer, [-100] * len(prompt) + answer))
    order = Random(0)
    for _ in range(fit.max_steps):
        batch = order.sample(encoded, fit.per_device_train_batch_size)
        width = max(len(x) for x, _ in batch)
        ids = torch.tensor([x + [tok.pad_token_id] * (width - len(x)) for x, _ in batch])
        labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in batch])
        loss = sft_loss(model(ids, attention_mask=(ids != tok.pad_token_id).long()).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def bench_checks(repeats: int) -> list[str]:
    """Return lines: different programs of five tests each, by one caller, who waits for each; beside one process each.

    The caller and the sandbox's one worker process take turns, so that together they use one core at most.
    """
    import psutil

    from llama3_lab.pipeline.sandbox import run_tests
    from llama3_lab.world.corpus import make_prompt

    rng, n = Random(0), 1500
    work = [make_prompt(rng, "programs", 1 + i % 3, "train").check for i in range(n * repeats)]
    assert len({(c.answer, c.items) for c in work}) == len(work)  # nothing is checked twice
    run_tests(work[0].answer, work[0].items)  # starts the worker
    both = [psutil.Process(), *psutil.Process().children()]

    def processor() -> float:
        return sum(t.user + t.system for t in (p.cpu_times() for p in both))

    wall, used = [], []
    for i in range(repeats):
        before = processor()
        wall.append(n / seconds(lambda mine=work[i * n : i * n + n]: [run_tests(c.answer, c.items) for c in mine]))
        used.append((processor() - before) / n)

    def one_process(check) -> None:
        code = check.answer + "\n" + "\n".join(f"assert {t}" for t in check.items)
        subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=10)

    slow = seconds(lambda: [one_process(c) for c in work[:20]]) / 20
    rate, cost = statistics.median(wall), statistics.median(used)
    return [
        f"code checks, one caller, {len(both)} processes that take turns: {rate:.0f} a second by the clock  "
        f"(asked: 1500 a core; {min(wall):.0f}-{max(wall):.0f})",
        f"  processor time {cost * 1e6:.0f} µs a check, or {1 / cost:.0f} a second of it; one Python process a check "
        f"/ sandbox: {slow * rate:.0f}",
    ]


def bench_import() -> list[str]:
    """Return a line: what `import llama3_lab` costs, beside an empty interpreter."""
    code = "import time; t = time.perf_counter(); import llama3_lab; print(time.perf_counter() - t)"
    took = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
            for _ in range(5)]  # fmt: skip
    return [f"import llama3_lab: {statistics.median(took):.3f} s  (asked: at most 0.15)"]


def main() -> None:
    """Run every bench and print its lines as they come."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--policy", type=Path, help="a policy's folder; default: one is made from the base")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print(*bench_import(), *bench_checks(args.repeats), sep="\n", flush=True)
    from llama3_lab.models import load_policy
    from llama3_lab.pipeline.prompts import held_out
    from llama3_lab.profiles import TINY

    settings = replace(TINY.model, threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        where = args.policy or make_policy(Path(folder), settings)
        policy = load_policy(where, settings, "bench")
        print(*bench_greedy(policy, held_out(50, "validation")), sep="\n", flush=True)
        prompts = held_out(max(1, args.prompts // 4), "validation")
        print(*bench_sampling(policy, prompts, args.repeats), sep="\n", flush=True)
    print(*bench_training(ROOT / settings.path, settings, args.repeats), sep="\n", flush=True)


def make_policy(folder: Path, settings) -> Path:
    """Return the folder of a first policy, trained here on written demonstrations."""
    from llama3_lab.pipeline.prompts import draw_prompts
    from llama3_lab.pipeline.training import train_sft
    from llama3_lab.profiles import TINY
    from llama3_lab.records import Demonstration
    from llama3_lab.world.corpus import write

    rng = Random(0)
    rows = [Demonstration(p, write(p, rng), "written") for p in draw_prompts(100, "train", 0, "bench")]
    train_sft(ROOT / settings.path, rows, TINY.sft, folder / "policy", settings)
    return folder / "policy"


if __name__ == "__main__":
    main()
