"""The three losses of a round, written out in bare torch; the tests hold them equal to TRL's.

Shapes: `B` rows or pairs, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

IGNORED = -100  # a label with this value costs nothing


def sft_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy of the labelled tokens, in nats, as a scalar.

    Labels stand at the position of their own token (they are shifted here); -100 marks prompt and
    pads. The mean is over all labelled tokens of the batch: long answers weigh more.

    Raises:
        ValueError: if no token of the batch has a label.

    Source: Llama 3 §4.1.3, "standard cross entropy loss on the target tokens (while masking loss
    on prompt tokens)".
    """
    targets_BT = labels_BT[:, 1:]
    if not (targets_BT != IGNORED).any():
        raise ValueError("sft_loss: no token has a label; was every answer cut off by max_length?")
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED)


def sequence_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return each row's summed log-probability of its labelled tokens, in nats, shape (B,), ≤ 0."""
    targets_BT = labels_BT[:, 1:]
    logps_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
    logps_BT = logps_BTV.gather(2, targets_BT.clamp(min=0)[..., None])[..., 0]
    return (logps_BT * (targets_BT != IGNORED)).sum(1)


def reward_loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Return the mean Bradley–Terry loss, in nats, as a scalar.

    Inputs are rewards in logits, shape (B,). Equal rewards cost log 2; only differences count.

    Source: Llama 3 §4.1.2: the usual loss (Ouyang et al. 2022, Eq. 1) without the margin term.
    """
    return -logsigmoid(chosen_B - rejected_B).mean()


def dpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float
) -> Tensor:
    """Return the mean DPO loss, in nats, as a scalar.

    Inputs are summed log-probabilities of the answer tokens, shape (B,), all ≤ 0. Zero margin costs
    log 2. Policy gradients only: the reference is detached.

    Raises:
        ValueError: if `beta` is not positive.

    Source: Rafailov et al. 2023, Eq. 7. Llama 3 §4.1.4 uses beta = 0.1.
    """
    if beta <= 0:
        raise ValueError(f"dpo_loss: beta is {beta}; it must be positive (the paper's is 0.1)")
    margin_B = (chosen_B - ref_chosen_B.detach()) - (rejected_B - ref_rejected_B.detach())
    return -logsigmoid(beta * margin_B).mean()


def dpo_nll_loss(dpo: Tensor, chosen_B: Tensor, n_chosen_tokens: Tensor | int, nll_weight: float) -> Tensor:
    """Return `dpo` plus `nll_weight` times the chosen answers' cost per token, in nats, as a scalar.

    The cost is the mean over all the batch's chosen tokens (not the mean of the answers' means): the
    chosen answers' log-probabilities chosen_B, summed, over the number of those tokens, negated.

    Source: Llama 3 §4.1.4, an added negative log-likelihood loss with weight 0.2 (Pang et al. 2024).
    """
    return dpo - nll_weight * chosen_B.sum() / torch.as_tensor(n_chosen_tokens).clamp(min=1)
