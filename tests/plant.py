"""A simulated run to regulate: ln KL = 2 ln(lr factor) + c_t + noise, with drift, jumps and missing values."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from adaptive_warmup import controller
from adaptive_warmup.controller import Config, Decision
from adaptive_warmup.signals import Signals


@dataclass
class Plant:
    """`bears` is the factor at which the KL equals `target`; it may change with the step."""

    bears: float | Callable[[int], float] = 0.3
    target: float = 0.01
    noise: float = 0.0
    missing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def kl(self, step: int, factor: float) -> float | None:
        bears = self.bears(step) if callable(self.bears) else self.bears
        noise = self._random.gauss(0.0, self.noise) if self.noise else 0.0
        absent = self._random.random() < self.missing
        return None if absent else self.target * (factor / bears) ** 2 * math.exp(noise)


def steady(warmup_steps: int, **settings: Any) -> Config:
    """With a KL target that does not fall, so that the ceiling is the plant's `bears`."""
    return Config(warmup_steps, min_target_kl=0.01, **settings)


def run(config: Config, plant: Plant, steps: int) -> Iterator[Decision]:
    """The decisions for updates 1 .. steps."""
    state = controller.start(config)
    for step in range(steps):
        signals = Signals(kl=plant.kl(step, state.factor), task_reward=0.5, grad_norm=1.0)
        state, decision = controller.step(config, state, signals)
        yield decision


def factors(config: Config, plant: Plant, steps: int) -> list[float]:
    return [decision.factor for decision in run(config, plant, steps)]
