"""What sets the learning rate: the arms of the study, each around the real thing where a package has it.

An arm gives a `Driver` for one run. All hold their rate in a real optimizer's parameter group, so that schedulers are
used as they are; the engine reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from adaptive_warmup import AdaptiveWarmup
from benchmarks.experiments.stability.engine import MINI_BATCHES
from benchmarks.experiments.stability.table import load

TARGET_KL = 0.01
NOMINAL = 0.285  # of the steps: the nominal warmup that ours starts from, Search-R1's later choice
BETA2 = 0.999


@dataclass(frozen=True)
class Plan:
    """What the user of one run has settled: the peak of the learning rate, the RL steps, PPO epochs, task and seed."""

    peak: float
    steps: int
    epochs: int = 1
    task: str = ""
    seed: int = 0


class Driver:
    """Holds one run's learning rate and moves it after each RL step."""

    def __init__(self, rate: float, move: Callable[[torch.optim.Optimizer], Callable[[Mapping[str, float]], None]]):
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


def ratio(share: float, decay: bool = False) -> Arm:
    """A fixed linear warmup over a share of the steps, then constant or with a cosine decay to a tenth."""

    def arm(plan: Plan) -> Driver:
        warmup = round(share * plan.steps)
        shape = cosine(plan, warmup) if decay else lambda step: 1.0
        ramp = lambda step: min((step + 1) / warmup, 1.0) if warmup else 1.0  # noqa: E731
        return Driver(plan.peak, scheduled(lambda optimizer: LambdaLR(optimizer, lambda t: ramp(t) * shape(t))))

    return arm


def untuned(plan: Plan) -> Driver:
    """The untuned linear warmup over 2 / (1 - beta2) steps (Ma and Yarats 2021)."""
    warmup = 2 / (1 - BETA2)
    return Driver(plan.peak, scheduled(lambda optimizer: LambdaLR(optimizer, lambda t: min((t + 1) / warmup, 1.0))))


def ours(decay: bool = False, only: tuple[str, ...] | None = None, **settings: Any) -> Arm:
    """`AdaptiveWarmup` with its defaults, hearing all signals or `only` some of them."""

    def arm(plan: Plan) -> Driver:
        def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
            inner: Any = LambdaLR(optimizer, cosine(plan)) if decay else optimizer
            scheduler = AdaptiveWarmup(inner, warmup_steps=max(round(NOMINAL * plan.steps), 1), **settings)

            def step(signals: Mapping[str, float]) -> None:
                told = {name: value for name, value in signals.items() if name in (only or TOLD)}
                if "approx_kl" in told:
                    told["kl"] = told.pop("approx_kl")
                    scheduler.observe(**told, kl_source=f"in_loop:{plan.epochs}x{MINI_BATCHES}")
                else:
                    scheduler.observe(**told)
                scheduler.step()

            return step

        return Driver(plan.peak, move)

    return arm


TOLD = ("kl", "reference_kl", "task_reward", "kl_reward", "grad_norm", "clip_fraction", "entropy")


def kl_adaptive(start: float, least: float | None, most: float | None, decay: bool = False) -> Arm:
    """torchrl's `KLAdaptiveLR`, which is rsl_rl's rule, on the KL that ours gets.

    Args:
        start: the first rate as a share of the peak.
        least: lower clamp as a share of the peak, None for the package's own 1e-5.
        most: likewise the upper one, None for 1e-2.
    """

    def arm(plan: Plan) -> Driver:
        from torchrl.objectives import KLAdaptiveLR

        clamps = {} if least is None else {"min_lr": least * plan.peak}
        clamps |= {} if most is None else {"max_lr": most * plan.peak}

        def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
            rule = KLAdaptiveLR(optimizer, TARGET_KL, **clamps)
            shape, count = cosine(plan), iter(range(1, plan.steps + 1))

            def step(signals: Mapping[str, float]) -> None:
                if decay:  # granted: the KL budget under our shape, shape^2
                    rule.target_kl = TARGET_KL * shape(next(count)) ** 2
                if math.isfinite(signals["kl"]):  # it raises an error otherwise
                    rule.step(signals["kl"])

            return step

        return Driver(start * plan.peak, move)

    return arm


def same_mean_rate(plan: Plan) -> Driver:
    """Control: a constant rate, the mean of what our run of the same peak and seed used. Did it just go slower?"""
    return Driver(float(_recorded(plan, plan.seed).mean()), lambda optimizer: lambda signals: None)


def replayed(plan: Plan) -> Driver:
    """Control: the rates that our run of another seed chose. Does feedback matter, or only the shape?"""
    rates = _recorded(plan, plan.seed ^ 2)  # of the same reference policy
    last = len(rates) - 1
    return Driver(rates[0], scheduled(lambda optimizer: LambdaLR(optimizer, lambda t: rates[min(t, last)] / rates[0])))


def _recorded(plan: Plan, seed: int) -> np.ndarray:
    """The rates of our own run, which must have been made before its controls."""
    runs = load().cell(plan.task, "ours", plan.peak, plan.epochs)
    return next(run.rates for run in runs if run.seed == seed)


ARMS: dict[str, Arm] = {
    "ratio 0": ratio(0.0),
    "ratio 0.03": ratio(0.03),
    "ratio 0.1": ratio(0.1),
    "ratio 0.285": ratio(0.285),
    "ratio 0.95": ratio(0.95),
    "ratio 0 cosine": ratio(0.0, decay=True),
    "ratio 0.03 cosine": ratio(0.03, decay=True),
    "ratio 0.1 cosine": ratio(0.1, decay=True),
    "ratio 0.285 cosine": ratio(0.285, decay=True),
    "untuned": untuned,
    "KLAdaptiveLR": kl_adaptive(1.0, None, None),
    "rsl_rl": kl_adaptive(0.1, 1e-3, 1.0),
    "rsl_rl cosine": kl_adaptive(0.1, 1e-3, 1.0, decay=True),
    "ours": ours(),
    "ours cosine": ours(decay=True),
    # The law as it was before its target fell over the run and its warmup could end after three steps.
    "ours, .01 throughout": ours(min_target_kl=0.01, min_warmup_steps=5),
    "ours, .01 throughout cosine": ours(decay=True, min_target_kl=0.01, min_warmup_steps=5),
    "ours, .005 throughout": ours(target_kl=0.005, min_target_kl=0.005, min_warmup_steps=5),
    "ours, .005 throughout cosine": ours(decay=True, target_kl=0.005, min_target_kl=0.005, min_warmup_steps=5),
    "ours without KL": ours(only=("task_reward", "grad_norm")),
    "same mean lr": same_mean_rate,
    "another seed's lr": replayed,
    "ours in-loop KL": ours(only=("approx_kl", "task_reward", "kl_reward", "grad_norm")),
}
