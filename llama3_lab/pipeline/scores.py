"""score(): a reward model's opinion of answers, in logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llama3_lab.models import RewardModel, batches, encode_answers, encode_prompt, pad_rows
from llama3_lab.records import Prompt


def score(reward_model: RewardModel, rows: Sequence[tuple[Prompt, str]], batch_size: int = 64) -> list[float]:
    """Return the reward of each (prompt, answer), in logits: same length and order as `rows`.

    Rewards compare answers to one prompt by one reward model; their zero means nothing. The answer
    is read with its <|eot_id|>, as in training. The batch size changes nothing, rounding apart.

    Raises:
        ValueError: if a reward is not finite, naming the prompt.
    """
    tokenizer = reward_model.tokenizer
    prompts = {p.text: encode_prompt(tokenizer, p.text) for p in dict.fromkeys(p for p, _ in rows)}
    answers = encode_answers(tokenizer, [text for _, text in rows])
    ids = [prompts[p.text] + a for (p, _), a in zip(rows, answers, strict=True)]
    out = [0.0] * len(rows)
    for batch in batches([len(row) for row in ids], batch_size):
        for i, reward in zip(batch, _rewards(reward_model, [ids[i] for i in batch]), strict=True):
            if not math.isfinite(reward):
                raise ValueError(f"{rows[i][0].id}: reward is {reward}; train it again with a lower learning rate")
            out[i] = reward
    return out


@torch.inference_mode()
def _rewards(reward_model: RewardModel, ids: list[list[int]]) -> list[float]:
    model = reward_model.model
    ids_BT, mask_BT = pad_rows(ids, reward_model.tokenizer.pad_token_id, model.device)
    return model(ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, 0].float().tolist()
