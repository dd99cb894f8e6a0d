"""annotate(): simulated raters. Two answers in, one preference pair out, with noise that is known.

As in the paper (§4.2.1) a rater compares two answers to one prompt, from two models, says which is
better at one of four strengths, and sometimes edits the better one. Here the rater perceives the
difference of the true qualities plus logistic noise: choices follow Bradley–Terry exactly.
"""

from __future__ import annotations

import math
from random import Random

from llama3_lab.records import STRENGTHS, PreferencePair, Prompt, Strength

THRESHOLDS = (0.75, 1.5, 2.5)  # perceived difference, logits: marginally | slightly | better | significantly
NOISE = 0.6  # scale of the logistic noise; 0 would be a rater who is never wrong


def annotate(prompt: Prompt, answers: tuple[str, str], qualities: tuple[float, float], rng: Random) -> PreferencePair:
    """Return the pair as a rater sees it: chosen first, strength by the perceived difference.

    qualities: true, in logits. P(first is chosen) = sigmoid((q0 − q1) / NOISE).
    """
    u = rng.random()
    perceived = qualities[0] - qualities[1] + NOISE * math.log(u / (1 - u))
    chosen = 0 if perceived > 0 else 1
    true_margin = qualities[chosen] - qualities[1 - chosen]
    return PreferencePair(prompt, answers[chosen], answers[1 - chosen], strength(perceived), "annotator", true_margin)


def strength(perceived: float) -> Strength:
    """Return one of the four levels for a perceived difference in logits (sign ignored)."""
    return STRENGTHS[sum(abs(perceived) >= t for t in THRESHOLDS)]
