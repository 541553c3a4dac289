"""What the study measures of a run, and the statistics over runs.

Interquartile mean, stratified bootstrap and probability of improvement as in Agarwal et al., "Deep reinforcement
learning at the edge of the statistical precipice" (NeurIPS 2021); intervals of proportions are Wilson's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, mannwhitneyu, trim_mean

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
        mean_rate: of the lr, over the steps.
        to_best: for `steps_to`: the smoothed score.
    """

    evaluation: float
    area: float
    collapsed: bool
    drawdown: float
    rate_jitter: float
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
        mean_rate=float(np.exp(ln_rates.astype(float)).mean()),
        to_best=smooth,
    )


def iqm(values: Sequence[float]) -> float:
    """The mean of the middle half."""
    return float(trim_mean(np.asarray(values, dtype=float), 0.25))


Strata = Mapping[object, Sequence[float]]


def interval(statistic: Callable[[list[np.ndarray]], float], groups: Sequence[Strata], seed: int = 0) -> list[float]:
    """The 95 % bootstrap interval of a statistic of several arms' values, resampled within each stratum.

    Args:
        statistic: of one array (strata, values) for each arm.
        groups: for each arm its values by stratum, the strata of all being the same.
    """
    rng = np.random.default_rng(seed)
    tables = [[np.asarray(group[key], dtype=float) for key in groups[0]] for group in groups]
    drawn = [
        statistic([np.array([rng.choice(row, len(row)) for row in table]) for table in tables])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(low), float(high)]


def improvement(ours: Strata, theirs: Strata) -> tuple[float, list[float]]:
    """The probability that a run of ours is better than one of theirs in the same stratum, and its interval."""

    def statistic(tables: list[np.ndarray]) -> float:
        mine, others = tables
        wins = (mine[:, :, None] > others[:, None, :]).mean() + 0.5 * (mine[:, :, None] == others[:, None, :]).mean()
        return float(wins)

    chances = [mannwhitneyu(ours[key], theirs[key]).statistic / (len(ours[key]) * len(theirs[key])) for key in ours]
    return float(np.mean(chances)), interval(statistic, [ours, theirs])


def wilson(count: int, of: int) -> list[float]:
    """The 95 % interval of a proportion."""
    found = binomtest(count, of).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]
