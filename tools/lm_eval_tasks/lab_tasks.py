"""The small world's skills as tasks of lm-eval: the same prompts, and the same checkers, as `llama3-lab run` uses.

lm_eval --model hf --model_args pretrained=EXPORTED,dtype=float32 --include_path tools/lm_eval_tasks \
        --tasks llama3_lab --apply_chat_template --metadata '{"per_skill": 60, "split": "validation"}'

What differs from the package's own evaluation: lm-eval does not say whether an answer ended by itself, so one that was
cut off at the cap, and right as far as it goes, passes here and not there.
"""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset, DatasetDict

from llama3_lab.pipeline.prompts import held_out
from llama3_lab.pipeline.verdicts import verify
from llama3_lab.records import Candidate, Prompt
from llama3_lab.store import from_json, to_json


def dataset(skill: str, per_skill: int = 200, split: Any = "test", **_: Any) -> DatasetDict:
    """Return the held-out prompts of one skill, under the split name "test". split: the package's: test, validation."""
    rows = [p for p in held_out(per_skill, split) if p.skill == skill]
    columns = {"text": [p.text for p in rows], "answer": [p.check.answer for p in rows],
               "prompt": [json.dumps(to_json(p)) for p in rows]}  # fmt: skip
    return DatasetDict({"test": Dataset.from_dict(columns)})


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return what the package's checker says of an answer: `passed`, and `decided`, 0 where it could not check."""
    prompt = from_json(Prompt, json.loads(doc["prompt"]))
    (verdict,) = verify([Candidate(prompt, results[0], "lm-eval", 0.0, 0, 0, True, 0.0)])
    return {"passed": float(verdict.outcome == "pass"), "decided": float(verdict.outcome != "abstain")}
