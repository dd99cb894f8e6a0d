"""Rows for training: what each stage's records look like as token ids, before any batch is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from llama3_lab.models import encode_answers, encode_prompt
from llama3_lab.records import STRENGTHS, Demonstration, PreferencePair, Prompt

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Columns of token ids (and margins) by name, all of one length; `cut` of the `answers` in them lost their end."""

    columns: dict[str, list[Any]]
    answers: int
    cut: int

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class Halves(Sampler[int]):
    """Row numbers in random order, new in each epoch; within each batch of `batch_size`, shorter rows first.

    Read in two halves, such a batch pads its short rows to the longest short one only.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=self.generator).tolist()
        for start in range(0, len(order), self.batch_size):
            yield from sorted(order[start : start + self.batch_size], key=lambda i: (self.lengths[i], i))


def demonstration_rows(tokenizer: Any, rows: Sequence[Demonstration], max_length: int) -> Rows:
    """Return input_ids and labels; labels are -100 on the prompt, so only answer and <|eot_id|> count."""
    prompts, (answers,), cut = _encode(tokenizer, [(d.prompt, d.text) for d in rows], max_length)
    labels = [[IGNORED] * len(p) + a for p, a in zip(prompts, answers, strict=True)]
    return Rows({"input_ids": [p + a for p, a in zip(prompts, answers, strict=True)], "labels": labels}, len(rows), cut)


def comparison_rows(
    tokenizer: Any, rows: Sequence[tuple[Prompt, str, str]], max_length: int, margins: Sequence[float] = ()
) -> Rows:
    """Return chosen_ids and rejected_ids, prompt included, for a reward model, and `margins` where given."""
    prompts, (better, worse), cut = _encode(tokenizer, rows, max_length)
    chosen = [p + a for p, a in zip(prompts, better, strict=True)]
    columns = {"chosen_ids": chosen, "rejected_ids": [p + a for p, a in zip(prompts, worse, strict=True)]}
    return Rows(columns | ({"margin": list(margins)} if margins else {}), 2 * len(rows), cut)


def comparison_margins(pairs: Sequence[PreferencePair], margins: Sequence[float]) -> list[float]:
    """Return Llama 2's margin m of each comparison that `pairs.triples` makes, in its order; [] without `margins`.

    margins: one for each of STRENGTHS, weakest first. An edited answer over the rejected one takes its pair's
    margin; over the chosen one nobody has rated it: 0.

    Raises:
        ValueError: unless there are none or four of them, none below 0.
    """
    if not margins:
        return []
    if len(margins) != len(STRENGTHS) or min(margins) < 0:
        raise ValueError(f"reward.margins is {tuple(margins)}; give {len(STRENGTHS)} numbers from 0 up, weakest first")
    of = dict(zip(STRENGTHS, map(float, margins), strict=True))
    out: list[float] = []
    for p in pairs:
        out += [of[p.strength]] if p.edited is None else [of[p.strength], 0.0, of[p.strength]]
    return out


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
