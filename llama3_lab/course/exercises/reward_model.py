"""Exercises of 04_reward_model, and its museum piece: a reward that is read one token too late."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from scipy.optimize import minimize_scalar

from llama3_lab.course.exercises import Exercise
from llama3_lab.pipeline.probes import sigmoid
from llama3_lab.records import STRENGTHS, Prompt
from llama3_lab.world import conversation
from llama3_lab.world.annotators import NOISE

GAP, HURRIED = 1.0, 1.2  # of 04.1: true gap of two answers in logits, noise of a hurried rater
ONE_TRY, K = 0.3, 64  # of 04.6: share of right answers of one try, and answers to choose from
MARGINS = {"better": 0.5, "significantly better": 1.5}


def museum_read(rewards_BT: Any, mask_BT: Any) -> Any:
    """Return each row's reward, shape (B,), from one reward a token. (A museum piece: one thing is wrong with it.)"""
    at_B = mask_BT.long().sum(1).clamp(max=mask_BT.shape[1] - 1)
    return rewards_BT.gather(1, at_B[:, None])[:, 0]


def some_answers() -> list[tuple[Prompt, str]]:
    """Return open requests with answers of every sort, all opened politely."""
    rng, out = Random(4), []
    for i in range(30):
        prompt = conversation.make(rng, 1 + i % 3, "train", f"p{i}")
        facts = [s for s in conversation.sentences(conversation.write(prompt, rng)) if s not in _OPENINGS]
        out.append((prompt, " ".join([rng.choice(conversation.POLITE), *facts])))
    return out


_OPENINGS = (*conversation.POLITE, *conversation.RUDE)


def leads_of(spread: float, seed: int) -> list[float]:
    """Return rewards of the better answer less those of the worse, `spread` times as far apart as honest ones."""
    rng, out = Random(seed), []
    for _ in range(400):
        honest = rng.uniform(0.1, 3.0)
        out.append(spread * honest * (1 if rng.random() < sigmoid(honest) else -1))
    return out


def best_temperature(leads: Sequence[float]) -> float:
    """Return the T at which σ(lead / T) costs least, −log σ on average."""

    def cost(log_t: float) -> float:
        return sum(math.log1p(math.exp(-abs(x))) + max(0.0, -x) for x in (lead / math.exp(log_t) for lead in leads))

    return math.exp(minimize_scalar(cost, bounds=(-4, 4), method="bounded").x)


def _rated(answer: float) -> str | None:
    if not 0 <= answer <= 1:
        return "share"
    if math.isclose(answer, sigmoid(GAP / HURRIED), abs_tol=0.012):
        return None
    near = {"no noise": sigmoid(GAP), "ours": sigmoid(GAP / NOISE), "times": sigmoid(GAP * HURRIED),
            "other side": 1 - sigmoid(GAP / HURRIED)}  # fmt: skip
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.012)), "far")


def _margin_loss(loss: Callable[..., Any]) -> str | None:
    import torch
    from torch.nn.functional import softplus

    chosen, rejected = torch.tensor([1.0, -0.5, 2.0, 0.3]), torch.tensor([0.2, 0.5, -1.0, 0.3])
    said = ["better", "significantly better", "better", "significantly better"]
    m, d = torch.tensor([MARGINS[s] for s in said]), chosen - rejected
    own = chosen.clone().requires_grad_()
    got = torch.as_tensor(loss(own, rejected, said, MARGINS))
    if got.ndim:
        return "vector"
    near = {"plain": softplus(-d).mean(), "sign": softplus(-d - m).mean(), "swapped": softplus(d + m).mean(),
            "sum": softplus(m - d).sum(), "outside": softplus(-d).mean() + m.mean()}  # fmt: skip
    value = got.detach().item()
    if not math.isclose(value, softplus(m - d).mean().item(), abs_tol=1e-4):
        return next((k for k, v in near.items() if math.isclose(value, v.item(), abs_tol=1e-4)), "far")
    if not got.requires_grad:
        return "gradient"
    far_apart = loss(torch.tensor([-300.0]), torch.tensor([300.0]), ["better"], MARGINS)
    return None if math.isclose(torch.as_tensor(far_apart).item(), 600.5, rel_tol=1e-3) else "overflow"


def _sound(test: Callable[..., Any]) -> str | None:
    import torch

    def at_length(rewards_BT: Any, mask_BT: Any) -> Any:
        return rewards_BT.gather(1, mask_BT.long().sum(1, keepdim=True) - 1)[:, 0]

    def rightmost(rewards_BT: Any, mask_BT: Any) -> Any:
        at_B = (torch.arange(mask_BT.shape[1]) * mask_BT.long()).argmax(1)
        return rewards_BT[torch.arange(len(at_B)), at_B]

    if not (test(at_length) and test(rightmost)):
        return "alarm"
    return "missed" if test(museum_read) else None


def _temperature(fit: Callable[..., Any]) -> str | None:
    for spread, seed in ((2.5, 1), (0.4, 2), (1.6, 3)):
        leads = leads_of(spread, seed)
        got, best = float(fit(list(leads))), best_temperature(leads)
        if math.isclose(got, best, rel_tol=0.06):
            continue
        if math.isclose(got, 1 / best, rel_tol=0.06):
            return "inverse"
        if got == 1.0:
            return "nothing"
        return "mistakes" if 0 <= got < 0.15 * best else "far"
    return None


def _means_nothing(change: Callable[..., Any]) -> str | None:
    moved = 0
    for prompt, text in some_answers():
        new = change(prompt, text)
        facts = conversation.sentences(text)[1:]
        if sorted(conversation.sentences(new)) != sorted(conversation.sentences(text)):
            return "words"
        if abs(conversation.quality(prompt, new) - conversation.quality(prompt, text)) > 1e-9:
            return "truth"
        if new == text and len(set(facts)) > 1:
            return "same"
        moved += new != text
    return None if moved else "same"


def _coin(answer: float) -> str | None:
    if not 0 <= answer <= 1:
        return "share"
    if math.isclose(answer, ONE_TRY, abs_tol=0.005):
        return None
    return "any" if answer > 0.9 else "up" if answer > ONE_TRY else "down"


HINTS_LOSS: Mapping[str, str] = {
    "vector": "Your loss has one number a pair; a training step needs their mean.",
    "plain": "Your loss is the one without the margin: the strengths change nothing in it.",
    "sign": "Your margin makes the task easier. A pair must win by m before its loss is small.",
    "swapped": "Your loss falls when the rejected answer wins.",
    "sum": "You add the pairs up; with a larger batch the loss would be larger. Take the mean.",
    "outside": "You add m to the loss. There it has no gradient; it belongs inside the log σ.",
    "far": "Try one pair by hand: equal rewards and m = 1.5 cost log(1 + e^1.5) = 1.70.",
    "gradient": "The value is right, but no gradient reaches the chosen reward: stay with tensors to the end.",
    "overflow": "Right for usual rewards. At a difference of −600 it should cost 600.5; use a log-sigmoid that is "
                "computed as one function.",
}  # fmt: skip
assert set(MARGINS) <= set(STRENGTHS)

EXERCISES = (
    Exercise(
        "04.1", "predict", "A rater in a hurry", 1, 3, 3, 1, _rated,
        {"share": "Give a share between 0 and 1.",
         "no noise": "That is the share at noise 1. This rater's noise is another.",
         "ours": "That is how our raters do, whose noise is half as large.",
         "times": "More noise must mean more errors; you multiplied where the law divides.",
         "other side": "That is how often the worse answer is chosen.",
         "far": "The law stands in the section on raters: a sigmoid of gap over noise."},
        "Noise does not bias the reward model, but each pair then says less, so more of them are needed.",
    ),
    Exercise("04.2", "implement", "The loss with a margin", 2, 2, 10, 2, _margin_loss, HINTS_LOSS,
             "The margin is a constant inside the sigmoid: it changes which pairs still pull, and nothing else."),
    Exercise(
        "04.3", "diagnose", "A reward that depends on its neighbours", 2, 3, 12, 3, _sound,
        {"alarm": "Your test refuses a reader that is right. Pad your rows on the right; the mask is 1 on tokens.",
         "missed": "The museum piece passes your test. Give the batch rows of different lengths, and every position "
                   "a number of its own."},
        "A reward belongs to one row, so scoring it alone and in company is a test worth keeping.",
    ),
    Exercise(
        "04.4", "implement", "One number that calibrates", 3, 2, 15, 4, _temperature,
        {"inverse": "You return what the rewards are multiplied by; T is what they are divided by.",
         "nothing": "Your T is 1 whatever the leads are.",
         "mistakes": "Your T goes to zero, as if the model were always right. A lead below zero is a mistake of its.",
         "far": "Compute the mean of −log σ(lead / T) on a grid of T; your T should be where it is lowest."},
        "T changes no ranking, so best-of-K stays exactly as it was: calibration and choosing are two things.",
    ),
    Exercise(
        "04.5", "design", "A change that means nothing", 2, 3, 10, 5, _means_nothing,
        {"words": "Your change adds, drops or alters a sentence; then you cannot tell length or wording from the rest.",
         "truth": "Your change costs true quality. Where does the rubric look for the polite opening?",
         "same": "Nothing changes, although this answer has several sentences that could."},
        "How far the reward moves under it is the yardstick for every other probe.",
    ),
    Exercise(
        "04.6", "predict", "Best of 64 by a coin", 1, 3, 2, 6, _coin,
        {"share": "Give a share between 0 and 1.",
         "any": "Among 64 there is nearly always a right one, but this judge cannot see which it is.",
         "up": "More answers help only a judge who can tell them apart.",
         "down": "Below one try a judge must be wrong on purpose, so to speak: this one just does not know."},
        "So a curve that falls below one try is no bad luck: that judge prefers what is wrong.",
    ),
)  # fmt: skip
