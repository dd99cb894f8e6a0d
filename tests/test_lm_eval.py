"""lm-eval on an exported model with our task files: its pass rate is ours, answer by answer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from served import SETTINGS, small_policy

from llama3_lab.export import export
from llama3_lab.models import load_policy
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.pipeline.verdicts import verify
from llama3_lab.profiles import TINY, Sampling
from llama3_lab.store import RunFolder

ROOT = Path(__file__).resolve().parents[1]
TASKS = ROOT / "tools" / "lm_eval_tasks"
PER_SKILL = 20
pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed "
                                "(llama3-lab[eval])")  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lm-eval")
    with RunFolder(path / "run", TINY) as folder:
        folder.checkpoint("first", "policy", "base", "d" * 64, small_policy)
    return export(path / "run", "first", path / "exported").folder


@pytest.fixture(scope="module")
def found(exported) -> tuple[dict, dict[str, tuple[str, float]]]:
    """What the command line of lm-eval printed into its files: results, and (answer, passed) by prompt id."""
    out = exported.parent / "results"
    asked = json.dumps({"per_skill": PER_SKILL, "split": "validation"})
    words = ["--model", "hf", "--model_args", f"pretrained={exported},dtype=float32", "--include_path", str(TASKS),
             "--tasks", "llama3_lab", "--apply_chat_template", "--device", "cpu", "--batch_size", "20", "--log_samples",
             "--metadata", asked, "--output_path", str(out)]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "lm_eval", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    rows = [json.loads(line) for p in out.rglob("samples_*.jsonl") for line in p.read_text().splitlines()]
    by_id = {json.loads(r["doc"]["prompt"])["id"]: (r["resps"][0][0], r["passed"]) for r in rows}
    return json.loads(results.read_text())["results"], by_id


def test_its_pass_rate_is_ours_on_the_same_prompts(exported, found):
    results, answered = found
    prompts = [p for p in held_out(PER_SKILL, "validation") if p.skill != "conversation"]
    policy = load_policy(exported, SETTINGS)
    own = sample(policy, prompts, Sampling(k=1, temperature=0.0, max_new_tokens=TINY.sampling.max_new_tokens))
    ours = {c.prompt.id: float(v.outcome == "pass") for c, v in zip(own, verify(own), strict=True)}
    assert answered.keys() == ours.keys()
    # A cut-off answer passes there and not here; rounding may turn a token. Neither may happen more than once.
    assert sum(answered[i][1] != ours[i] for i in ours) <= 1
    assert sum(answered[c.prompt.id][0].strip() == c.text.strip() for c in own if c.finished) >= len(own) - 3
    assert 0.2 < sum(ours.values()) / len(ours) < 0.95, "a rate that could not show a difference"
    passed = Counter({s: sum(answered[p.id][1] for p in prompts if p.skill == s) for s in {p.skill for p in prompts}})
    for skill, n in passed.items():
        assert results[f"llama3_lab_{skill}"]["passed,none"] == pytest.approx(n / PER_SKILL)
    assert results["llama3_lab"]["passed,none"] == pytest.approx(sum(passed.values()) / len(prompts))


def test_a_task_gives_the_package_own_cap_and_prompts():
    import yaml

    text = (TASKS / "_llama3_lab_yaml").read_text().replace("!function ", "")
    shared = yaml.safe_load(text)
    assert shared["generation_kwargs"]["max_gen_toks"] == TINY.sampling.max_new_tokens
    skills = {yaml.safe_load(p.read_text())["dataset_kwargs"]["skill"] for p in TASKS.glob("llama3_lab_*.yaml")}
    assert skills == {"arithmetic", "programs", "orderings"}


def test_the_checker_is_the_packages(monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS))
    import lab_tasks

    rows = lab_tasks.dataset("arithmetic", 8, "validation")["test"]
    prompts = [p for p in held_out(8, "validation") if p.skill == "arithmetic"]
    assert [r["text"] for r in rows] == [p.text for p in prompts]
    for row, p in zip(rows, prompts, strict=True):
        right = "\n".join([*p.check.items, f"Answer: {p.check.answer}"])
        assert lab_tasks.process_results(row, [right]) == {"passed": 1.0, "decided": 1.0}
        assert lab_tasks.process_results(row, [right + "1"]) == {"passed": 0.0, "decided": 1.0}
