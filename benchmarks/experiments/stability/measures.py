"""What the study measures of a run, and the statistics over runs.

Interquartile mean, stratified bootstrap and probability of improvement as in Agarwal et al., "Deep reinforcement
learning at the edge of the statistical precipice" (NeurIPS 2021); intervals of proportions are Wilson's. A seed's runs
at all peaks have the same problems and the same noise, so they are resampled, and counted, as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu, norm

WINDOW = 10  # steps over which a score is smoothed
LAST = 20  # steps that count as the end of a run
RESAMPLES = 2000


@dataclass(frozen=True)
class Outcome:
    """One run in numbers.

    Attributes:
        evaluation: score on the evaluation problems after the last step.
        area: mean score over all steps.
        collapsed: the end is below half of the best, or of where the run started.
        drawdown: the largest fall below the best so far, of the smoothed score.
        rate_jitter: standard deviation of the change of ln lr from step to step.
        settled_jitter: the same without the first `LAST` steps, the way up.
        mean_rate: of the lr, over the steps.
        to_best: for `steps_to`: the smoothed score.
    """

    evaluation: float
    area: float
    collapsed: bool
    drawdown: float
    rate_jitter: float
    settled_jitter: float
    mean_rate: float
    to_best: np.ndarray

    def steps_to(self, score: float) -> float:
        """Steps until the smoothed score first reaches `score`; infinite where it never does."""
        reached = np.nonzero(self.to_best >= score)[0]
        return float(reached[0] + WINDOW) if reached.size else np.inf


def outcome(scores: np.ndarray, ln_rates: np.ndarray, evaluation: float, started: float) -> Outcome:
    """Measure a run by its scores and the logarithms of its learning rates, each (steps,)."""
    scores = scores.astype(float)
    smooth = np.convolve(scores, np.ones(WINDOW) / WINDOW, "valid")
    best = np.maximum.accumulate(smooth)
    return Outcome(
        evaluation=float(evaluation),
        area=float(scores.mean()),
        collapsed=bool(scores[-LAST:].mean() < 0.5 * max(best[-1], started)),
        drawdown=float((best - smooth).max()),
        rate_jitter=float(np.diff(ln_rates.astype(float)).std()),
        settled_jitter=float(np.diff(ln_rates[LAST:].astype(float)).std()),
        mean_rate=float(np.exp(ln_rates.astype(float)).mean()),
        to_best=smooth,
    )


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the middle half. scipy's `trim_mean` looks its arguments over for longer than all of this takes."""
    ordered = np.sort(np.asarray(values, dtype=float))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


Stratum = tuple[object, ...]  # of one peak, which is named last
Strata = Mapping[Stratum, Sequence[float]]  # an arm's values, seed by seed
Blocks = list[np.ndarray]  # the strata that differ in the peak only together: each (peaks, seeds)


def interval(statistic: Callable[[list[Blocks]], float], groups: Sequence[Strata], seed: int = 0) -> list[float]:
    """The 95 % bootstrap interval of a statistic of several arms' values; seeds are resampled, for all arms alike.

    Args:
        statistic: of the blocks of each arm.
        groups: for each arm its values by stratum, the strata of all being the same, with the same seeds in each.
    """
    rng = np.random.default_rng(seed)
    tables = [blocks(group) for group in groups]
    seeds = [block.shape[1] for block in tables[0]]
    drawn = []
    for _ in range(RESAMPLES):
        again = [rng.integers(count, size=count) for count in seeds]
        drawn.append(statistic([[block[:, one] for block, one in zip(t, again, strict=True)] for t in tables]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(low), float(high)]


def blocks(group: Strata) -> Blocks:
    """The strata that differ in the peak only, and have as many seeds, together."""
    found: dict[object, list[Sequence[float]]] = {}
    for (*setting, _), values in group.items():
        found.setdefault((*setting, len(values)), []).append(values)
    return [np.array(block, dtype=float) for block in found.values()]


def chance(ours: Strata, theirs: Strata) -> float:
    """The probability that a run of ours is better than one of theirs in the same stratum."""
    chances = [mannwhitneyu(ours[key], theirs[key]).statistic / (len(ours[key]) * len(theirs[key])) for key in ours]
    return float(np.mean(chances))


def improvement(ours: Strata, theirs: Strata) -> tuple[float, list[float]]:
    """That `chance`, and its interval."""

    def statistic(tables: list[Blocks]) -> float:
        wins = [
            (mine[:, :, None] > others[:, None, :]) + 0.5 * (mine[:, :, None] == others[:, None, :])
            for mine, others in zip(*tables, strict=True)
        ]
        return float(np.concatenate([block.mean((1, 2)) for block in wins]).mean())

    return chance(ours, theirs), interval(statistic, [ours, theirs])


def wilson(share: float, units: int) -> list[float]:
    """The 95 % interval of a proportion that so many independent units were found to have in the mean."""
    z = float(norm.ppf(0.975))
    middle = share + z**2 / (2 * units)
    reach = z * math.sqrt(share * (1 - share) / units + (z / (2 * units)) ** 2)
    return [max((middle + sign * reach) / (1 + z**2 / units), 0.0) for sign in (-1, 1)]
