"""AutoWU (Kim et al. 2021, arXiv 2107.05855): an exponential warmup until the loss has passed its minimum.

Whether it has says a Gaussian process, fitted to all losses so far. Written from the paper, with its settings: the lr
rises over at most half of the run; when in 3 tests in a row the minimum lay behind with probability .95, it falls back
to where the fitted loss was lowest, stays there, and decays by a cosine over the last fifth. (The paper's majority over
5 samples of the losses is one over 5 times the same, as long as there are fewer losses than a sample has.)

The loss of PPO says nothing of how the run goes, so what it gets is minus the task reward.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks.experiments.stability.driver import Driver, Plan

LOWEST = 1e-3  # of the peak, where the warmup begins: its own 1e-5 of 1, in proportion to the range of the others
WARMUP, COOLDOWN = 0.5, 0.2  # shares of the run
EVERY = 5  # steps between tests: what an epoch is there
CONFIDENCE, PATIENCE = 0.95, 3
LENGTH_SCALE, GRID = 0.2, 100  # of the process, whose time goes from 0 to 1; points at which it is read


def fitted(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (G,) and covariance (G, G) of the loss without its noise, over the time so far."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    process = GaussianProcessRegressor(
        ConstantKernel() * RBF(LENGTH_SCALE, "fixed") + WhiteKernel(0.1), normalize_y=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a loss that is all noise, or has none
        process.fit(np.linspace(0.0, 1.0, len(losses))[:, None], losses)
    process.kernel_ = process.kernel_.k1  # what is predicted is without the noise
    return process.predict(np.linspace(0.0, 1.0, GRID)[:, None], return_cov=True)


def past_minimum(mean_G: np.ndarray, covariance_GG: np.ndarray) -> float:
    """The probability that the last point is above one of the others: above the one for which it is highest."""
    from scipy.stats import norm

    gap = mean_G[-1] - mean_G[:-1]
    variance = covariance_GG[-1, -1] + np.diag(covariance_GG)[:-1] - 2 * covariance_GG[-1, :-1]
    return float(norm.cdf(gap / np.sqrt(np.maximum(variance, 0.0) + 1e-4)).max())


class _Warmup:
    """How long the lr rises, and to which it falls back."""

    def __init__(self, plan: Plan) -> None:
        self.start, self.most = LOWEST * plan.peak, int(WARMUP * plan.steps)
        self.losses: list[float] = []
        self.votes: deque[bool] = deque(maxlen=PATIENCE)

    def __call__(self, loss: float) -> tuple[float, bool]:
        """The next lr, and whether it is the one to stay at."""
        self.losses.append(loss)
        count = len(self.losses)
        rate = self.start * LOWEST ** -(count / self.most)
        if count % EVERY == 0:
            mean, covariance = fitted(np.array(self.losses))
            self.votes.append(past_minimum(mean, covariance) > CONFIDENCE)
            if sum(self.votes) == PATIENCE:
                return self.start * (rate / self.start) ** (float(mean.argmin()) / (GRID - 1)), True
        return rate, count == self.most


def autowu(plan: Plan) -> Driver:
    """The whole schedule, from `LOWEST` of the peak upwards."""

    def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
        group, warmup = optimizer.param_groups[0], _Warmup(plan)
        rate, settled, steps = group["lr"], False, iter(range(1, plan.steps + 1))

        def step(signals: Mapping[str, float]) -> None:
            nonlocal rate, settled
            if not settled:
                rate, settled = warmup(-signals["task_reward"])
            left = (plan.steps - next(steps)) / (COOLDOWN * plan.steps)
            group["lr"] = rate * (0.5 - 0.5 * math.cos(math.pi * min(left, 1.0)))

        return step

    return Driver(LOWEST * plan.peak, move)
