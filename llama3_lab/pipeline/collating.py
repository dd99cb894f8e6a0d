"""Rows for training: what each stage's records look like as token ids, before any batch is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama3_lab.models import encode_answers, encode_prompt
from llama3_lab.records import Demonstration, PreferencePair, Prompt

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Columns of token ids by name, all of one length; `cut` of the `answers` in them lost their end."""

    columns: dict[str, list[list[int]]]
    answers: int
    cut: int

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def demonstration_rows(tokenizer: Any, rows: Sequence[Demonstration], max_length: int) -> Rows:
    """Return input_ids and labels; labels are -100 on the prompt, so only answer and <|eot_id|> count."""
    prompts, (answers,), cut = _encode(tokenizer, [(d.prompt, d.text) for d in rows], max_length)
    labels = [[IGNORED] * len(p) + a for p, a in zip(prompts, answers, strict=True)]
    return Rows({"input_ids": [p + a for p, a in zip(prompts, answers, strict=True)], "labels": labels}, len(rows), cut)


def comparison_rows(tokenizer: Any, rows: Sequence[tuple[Prompt, str, str]], max_length: int) -> Rows:
    """Return chosen_ids and rejected_ids, prompt included, for a reward model."""
    prompts, (better, worse), cut = _encode(tokenizer, rows, max_length)
    chosen = [p + a for p, a in zip(prompts, better, strict=True)]
    return Rows({"chosen_ids": chosen, "rejected_ids": [p + a for p, a in zip(prompts, worse, strict=True)]},
                2 * len(rows), cut)  # fmt: skip


def preference_rows(tokenizer: Any, pairs: Sequence[PreferencePair], max_length: int) -> Rows:
    """Return prompt_ids, chosen_ids and rejected_ids for DPO.

    An edited answer takes the place of the chosen one: the paper ranks edited > chosen > rejected
    (§4.1.2), and its DPO data are pairs.
    """
    asked = [(p.prompt, p.chosen if p.edited is None else p.edited, p.rejected) for p in pairs]
    prompts, (chosen, rejected), cut = _encode(tokenizer, asked, max_length)
    return Rows({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected}, 2 * len(pairs), cut)


def _encode(tokenizer: Any, rows: Sequence[tuple[Any, ...]], max_length: int) -> tuple[Any, Any, int]:
    """Return prompts' ids, one list of answers' ids for each answer column, and how many answers were cut.

    An answer is encoded by itself, as it was sampled; it is cut where prompt and answer exceed
    `max_length`, and then lacks its <|eot_id|>.

    Raises:
        ValueError: if an answer is empty, two compared answers are equal, a test prompt is among the
            rows, or a prompt alone leaves no room for an answer.
    """
    known: dict[str, list[int]] = {}
    for prompt, *answers in rows:
        if prompt.split == "test":
            raise ValueError(f"{prompt.id}: a test prompt must never train; draw train prompts")
        if len(set(answers)) < len(answers) or not all(a.strip() for a in answers):
            raise ValueError(f"{prompt.id}: an answer is empty, or is compared with itself; mend or drop this row")
        ids = known[prompt.text] = known.get(prompt.text) or encode_prompt(tokenizer, prompt.text)
        if len(ids) >= max_length:
            raise ValueError(
                f"{prompt.id}: the prompt has {len(ids)} tokens and max_length is {max_length}: "
                "no room for an answer; raise fit.max_length or drop the prompt"
            )
    prompts, columns, cut = [known[row[0].text] for row in rows], [], 0
    for c in range(1, len(rows[0])):
        whole = encode_answers(tokenizer, [row[c] for row in rows])
        columns.append([a[: max_length - len(p)] for p, a in zip(prompts, whole, strict=True)])
        cut += sum(len(a) != len(b) for a, b in zip(whole, columns[-1], strict=True))
    return prompts, columns, cut
