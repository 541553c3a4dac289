"""What holds one run's learning rate. All do so in a real optimizer's parameter group, so that schedulers are used as
they are; the engine reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from benchmarks.experiments.stability.engine import Clip


@dataclass(frozen=True)
class Plan:
    """What the user of one run has settled: peak lr, RL steps, PPO epochs, task, seed, and the weight of the KL."""

    peak: float
    steps: int
    epochs: int = 1
    task: str = ""
    seed: int = 0
    kl_coef: float = 0.0


NOMINAL = 0.285  # of the steps: the nominal warmup that ours starts from, Search-R1's later choice


def nominal_steps(plan: Plan) -> int:
    """The nominal warmup that ours starts from."""
    return max(round(NOMINAL * plan.steps), 1)


class Driver:
    """Holds one run's learning rate and moves it after each RL step.

    Attributes:
        clip: clips the run's gradient in place; None: at the engine's norm.
        kl_coef: of the KL in the reward; None: the task's own.
    """

    def __init__(
        self,
        rate: float,
        move: Callable[[torch.optim.Optimizer], Callable[[Mapping[str, float]], None]],
        clip: Clip | None = None,
    ):
        self.clip, self.kl_coef = clip, cast("float | None", None)
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
        self.move = move(self.optimizer)
        self.optimizer.step()  # of no gradient; schedulers want to have seen one before their first step

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, signals: Mapping[str, float]) -> None:
        self.move(signals)


Arm = Callable[[Plan], Driver]


def scheduled(make: Callable[[torch.optim.Optimizer], Any]) -> Callable[[torch.optim.Optimizer], Any]:
    """A scheduler that hears of nothing."""

    def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
        scheduler = make(optimizer)
        return lambda signals: scheduler.step()

    return move


def cosine(plan: Plan, warmup: int = 0) -> Callable[[int], float]:
    """From 1 after the warmup to .1 at the end."""

    def shape(step: int) -> float:
        done = min(max(step - warmup, 0) / max(plan.steps - warmup, 1), 1.0)
        return 0.55 + 0.45 * math.cos(math.pi * done)

    return shape
