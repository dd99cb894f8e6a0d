"""Evidence from simulations of under a second: do the report's arguments hold together, and where do they turn round?

Every number in here is made up, so nothing follows for Meta's model. Where a claim is a general rule, a simulation
can still contradict it, by one fair case in which it fails. Randomness comes from the seed in the arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from llama3_lab.paper.evidence import SIMULATION, Evidence, Says
from llama3_lab.paper.facts import fact, number, numbers

NORMAL = NormalDist()
PROMPTS, REWARD_NOISE, SEEDS = 5000, 1.0, 8
STRICT, THRESHOLDS = 2.0, (0.0, 1.0, 2.0, 3.0)  # rewards have a mean of 0 and a standard deviation of 1.7
SLIP, STEPS, CHECK_ERROR = 0.15, 4, 0.05
SMALL, TENFOLD, FEATURES, TRIALS = 200, 2000, 20, 40
FILTERED_NOISE, SOFT_NOISE, SLANT = 0.02, 0.25, 1.0


# -- best of K, with and without a threshold


@dataclass(frozen=True)
class Choice:
    """What a rule keeps. quality: mean true quality of what is kept; above_own: the same less the mean of its prompt's
    answers, so that dropping hard prompts earns nothing; kept, hard_kept: shares of all and of the hardest fifth."""

    quality: float
    above_own: float
    kept: float
    hard_kept: float

    def __str__(self) -> str:
        return (f"quality of what is kept {self.quality:+.2f}, above its prompt's mean {self.above_own:+.2f}; "
                f"kept {self.kept:.0%} of all, {self.hard_kept:.0%} of the hardest fifth")  # fmt: skip


def choose(k: int, threshold: float = -math.inf, noise: float = REWARD_NOISE, seed: int = 0) -> Choice:
    """Simulate prompts of unequal difficulty, k answers each; keep the best by a noisy reward, if above `threshold`.

    True quality: the prompt's ease plus the answer's own, both standard normal; the reward adds normal noise.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    ease_P = rng.standard_normal(PROMPTS)
    own_PK = rng.standard_normal((PROMPTS, k))
    reward_PK = ease_P[:, None] + own_PK + noise * rng.standard_normal((PROMPTS, k))
    best_P = reward_PK.argmax(1)
    rows = np.arange(PROMPTS)
    kept_P = reward_PK[rows, best_P] >= threshold
    own_P, hard_P = own_PK[rows, best_P], ease_P < np.quantile(ease_P, 0.2)
    return Choice(float((ease_P + own_P)[kept_P].mean()), float(own_P[kept_P].mean()), float(kept_P.mean()),
                  float(kept_P[hard_P].mean()))  # fmt: skip


def best_of_k_without_threshold() -> Evidence:
    """S04: what would a threshold do that picking the best one does not?"""
    low, high = (int(k) for k in numbers("sampling.k"))
    best, strict = choose(low), choose(low, threshold=STRICT)
    text = (f"Best of {low} by a noisy reward gives every prompt an answer. With a threshold on top that keeps "
            f"{strict.kept:.0%} of the prompts, {strict.hard_kept:.0%} of the hardest fifth are left (K = {high}: "
            f"{choose(high, STRICT).hard_kept:.0%}).")  # fmt: skip
    return Evidence("cannot be tested here", SIMULATION, text, best.hard_kept - strict.hard_kept, n=PROMPTS)


def threshold_against_count() -> Evidence:
    """A04: does a threshold matter more than samples, within the paper's range of K? Over SEEDS repetitions."""
    ks = (1, *(int(k) for k in numbers("sampling.k")))
    one, few, many = ([choose(k, seed=seed) for seed in range(SEEDS)] for k in ks)
    strict = [max((choose(ks[1], t, seed=seed) for t in THRESHOLDS), key=lambda c: c.above_own)
              for seed in range(SEEDS)]  # fmt: skip
    gaps = [m.above_own - s.above_own for m, s in zip(many, strict, strict=True)]
    value, reach = fmean(gaps), 1.96 * stdev(gaps) / math.sqrt(SEEDS)
    hard = fmean(c.hard_kept for c in strict)
    text = (f"At K = {ks[1]} the best of {len(THRESHOLDS)} thresholds adds {_gap(few, strict, 'quality'):+.2f} to the "
            f"quality of what is kept, and K = {ks[2]} adds {_gap(few, many, 'quality'):+.2f}. But the threshold drops "
            f"hard prompts ({hard:.0%} of the hardest fifth left). Against the same prompt's other answers it adds "
            f"{_gap(few, strict, 'above_own'):+.2f}, and more samples {_gap(few, many, 'above_own'):+.2f}, a "
            f"difference of {value:+.3f} [{value - reach:+.3f}, {value + reach:+.3f}]; the first {ks[1]} samples had "
            f"added {_gap(one, few, 'above_own'):+.2f}. The reward is as noisy as the answers differ.")  # fmt: skip
    says: Says = "contradicts" if value - reach > 0 else "supports" if value + reach < 0 else "inconclusive"
    return Evidence(says, SIMULATION, text, value, value - reach, value + reach, SEEDS * PROMPTS)


def _gap(before: Sequence[Choice], after: Sequence[Choice], field: str) -> float:
    return fmean(getattr(b, field) - getattr(a, field) for a, b in zip(before, after, strict=True))


# -- ten times as much mediocre data against a small filtered set


def accuracies(examples: int, noises: Sequence[float], slant: float, seed: int) -> Any:
    """Return the exact accuracy of a linear classifier fitted by least squares, for each share of flipped labels.

    Labels are the sign of the true direction, turned by `slant` towards another one (a filter that is wrong in a
    system: 0 none, 1 by 45°), then flipped with chance `noise`. The accuracy on fresh normal inputs is 1 − angle/π.
    Shape (len(noises),), each in [0, 1]; all from the same inputs.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((examples, FEATURES))
    label_N = np.sign(x_ND[:, 0] + slant * x_ND[:, 1])  # the first direction is the true one
    label_NS = label_N[:, None] * np.where(rng.random(examples)[:, None] < np.array(noises), -1, 1)
    found_DS = np.linalg.solve(x_ND.T @ x_ND, x_ND.T @ label_NS)
    return 1 - np.arccos(np.clip(found_DS[0] / np.linalg.norm(found_DS, axis=0), -1, 1)) / math.pi


def duel(noises: Sequence[float], slant: float = 0.0) -> list[tuple[float, float, float]]:
    """Return how much more right ten times the data is than the small filtered set, for each share of wrong labels.

    (mean, low, high) over TRIALS pairs of training sets; a positive number is a win for quantity; 95 % normal interval.
    """
    import numpy as np

    few = [accuracies(SMALL, (FILTERED_NOISE,), 0.0, 10_000 + seed) for seed in range(TRIALS)]
    gap_TS = np.stack([accuracies(TENFOLD, noises, slant, seed) for seed in range(TRIALS)]) - np.stack(few)
    mean_S, reach_S = gap_TS.mean(0), 1.96 * gap_TS.std(0, ddof=1) / math.sqrt(TRIALS)
    return [(float(m), float(m - r), float(m + r)) for m, r in zip(mean_S, reach_S, strict=True)]


def mediocre_tenfold_against_filtered() -> Evidence:
    """A03: ten times the data with a mediocre filter, for two kinds of mediocre; the claim needs both to lose."""
    both = chance, slanted = duel((SOFT_NOISE,))[0], duel((0.0,), SLANT)[0]
    told = [f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]" for mean, low, high in both]
    text = (f"As a rule: {TENFOLD:,} examples against {SMALL} with {FILTERED_NOISE:.0%} wrong labels. Where "
            f"{SOFT_NOISE:.0%} of the larger set are wrong by chance, it is {told[0]} more right; where its filter "
            f"leans to one side, on as many, {told[1]}. “Mediocre” has to say which.")  # fmt: skip
    lost, won = all(high < 0 for _, _, high in both), all(low > 0 for _, low, _ in both)
    says: Says = "supports" if lost else "contradicts" if won else "inconclusive"
    return Evidence(says, SIMULATION, text, *(chance if abs(chance[0]) < abs(slanted[0]) else slanted), TRIALS)


def where_each_side_wins() -> Evidence:
    """A05: up to which share of wrong labels does ten times the data win? Low to high: where chance decides."""
    grid = [i / 100 for i in range(2, 50, 2)]
    found = list(zip(grid, duel(grid), strict=True))
    more = max((noise for noise, (_, low, _) in found if low > 0), default=0.0)
    less = min((noise for noise, (_, _, high) in found if high < 0), default=0.5)
    text = (f"With labels wrong by chance, {TENFOLD:,} examples beat {SMALL} filtered ones with {FILTERED_NOISE:.0%} "
            f"wrong up to {more:.0%} wrong, and lose from {less:.0%}; between the two, chance decides.")  # fmt: skip
    says: Says = "contradicts" if more > FILTERED_NOISE else "supports" if less <= FILTERED_NOISE else "inconclusive"
    return Evidence(says, SIMULATION, text, (more + less) / 2, more, less, TRIALS)


# -- right answers by luck


def chains(slip: float = SLIP, steps: int = STEPS, draws: int = 200_000, seed: int = 0) -> Any:
    """Simulate sums in several steps; return by how much each step is off, shape (draws, steps).

    Each step is off by ±1 to ±3 with chance `slip`, else by 0, and errors add up: an answer is right where a row adds
    up to 0, and right by luck where it does so with wrong steps in it.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    size_DS, sign_DS = rng.integers(1, 4, (draws, steps)), rng.choice((-1, 1), (draws, steps))
    return size_DS * sign_DS * (rng.random((draws, steps)) < slip)


def count_lucky(off_DS: Any) -> tuple[int, int]:
    """Return how many chains have the right answer, and how many of these by luck."""
    right_D = off_DS.sum(1) == 0
    return int(right_D.sum()), int((right_D & (off_DS != 0).any(1)).sum())


def pass_check(off_DS: Any, error: float, seed: int = 1) -> Any:
    """Return the chains whose every step passes a checker that judges a step wrongly with chance `error`."""
    import numpy as np

    mistaken_DS = np.random.default_rng(seed).random(off_DS.shape) < error
    return off_DS[((off_DS == 0) ^ mistaken_DS).all(1)]


def lucky_chains() -> Evidence:
    """S07: how many chains that a numeric match keeps have a wrong step?"""
    right, lucky = count_lucky(chains())
    share, low, high = _share(lucky, right)
    others = [_share(*reversed(count_lucky(chains(slip))))[0] for slip in (SLIP / 3, 2 * SLIP)]
    text = (f"Where each of {STEPS} steps is wrong with chance {SLIP:.0%}, {share:.1%} [{low:.1%}, {high:.1%}] of the "
            f"chains whose final number is right hold a wrong step ({others[0]:.1%} at {SLIP / 3:.0%}, {others[1]:.1%} "
            f"at {2 * SLIP:.0%}): a numeric match keeps them.")  # fmt: skip
    return Evidence("cannot be tested here", SIMULATION, text, share, low, high, right)


def checked_chains() -> Evidence:
    """S08: what does a check of every step remove that a numeric match keeps, and what does it cost if it errs?"""
    off_DS = chains()
    off_DS = off_DS[off_DS.sum(1) == 0]
    right, lucky = count_lucky(off_DS)
    kept, still = count_lucky(pass_check(off_DS, CHECK_ERROR))
    share, low, high = _share(right - lucky - (kept - still), right - lucky)
    text = (f"Of chains with the right number, {lucky / right:.1%} hold a wrong step; after a check of every step that "
            f"errs in {CHECK_ERROR:.0%} of them, {still / kept:.2%} do. It costs {share:.0%} [{low:.0%}, {high:.0%}] "
            "of the chains that were right in every step.")  # fmt: skip
    return Evidence("cannot be tested here", SIMULATION, text, share, low, high, right - lucky)


def _share(some: int, all_: int) -> tuple[float, float, float]:
    """Return some/all with its 95 % normal interval."""
    share = some / all_
    reach = 1.96 * math.sqrt(share * (1 - share) / all_)
    return share, share - reach, share + reach


# -- two guards that miss alike


def both_miss(first: float, second: float, correlation: float) -> float:
    """Return the chance that two guards both miss, whose hidden scores are normal with this correlation, 0 to below 1.

    first, second: the chance that each misses alone. Correlation 0 gives the product; near 1, the smaller of the two.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation is {correlation}; it must be at least 0 and below 1")
    a, b = NORMAL.inv_cdf(first), NORMAL.inv_cdf(second)
    root, rest = math.sqrt(correlation), math.sqrt(1 - correlation)
    total, step = 0.0, 0.02
    for i in range(-400, 401):  # the shared part of both scores, from −8 to 8
        z = i * step
        total += NORMAL.pdf(z) * NORMAL.cdf((a - root * z) / rest) * NORMAL.cdf((b - root * z) / rest) * step
    return total


def fit_correlation(first: float, second: float, both: float) -> float:
    """Return the correlation at which two guards both miss with chance `both`; 0 where they do so even less often."""
    low, high = 0.0, 0.999
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if both_miss(first, second, middle) < both else (low, middle)
    return low


def correlation_that_explains_table_25() -> Evidence:
    """G08: how alike must two guards miss, for table 25's English row?"""
    alone = [1 + number_of(f"table25.{c}") / 100 for c in ("input_vr", "output_vr")]
    both = 1 + number_of("table25.full_vr") / 100
    rho = fit_correlation(alone[0], alone[1], both)
    text = (f"Two simulated guards that let {alone[0]:.0%} and {alone[1]:.0%} through have to have scores correlated "
            f"at {rho:.2f} to let {both:.0%} through together, as {fact('table25.languages').value[0]} does in table "
            f"25; at 0 it would be {alone[0] * alone[1]:.0%}.")  # fmt: skip
    return Evidence("contradicts" if rho > 0.2 else "inconclusive", SIMULATION, text, rho)


def number_of(key: str) -> float:
    """Return the first of a fact's numbers."""
    return numbers(key)[0] if isinstance(fact(key).value, tuple) else number(key)


ALL: tuple[Any, ...] = (best_of_k_without_threshold, threshold_against_count, mediocre_tenfold_against_filtered,
                        where_each_side_wins, lucky_chains, checked_chains, correlation_that_explains_table_25)
