"""The arms of the study: fixed schedules, ours, its controls, and the peers. Each gives a `Driver` for one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from adaptive_warmup import AdaptiveWarmup
from benchmarks.experiments.stability.autowu import autowu
from benchmarks.experiments.stability.driver import Arm, Driver, Plan, cosine, nominal_steps, scheduled
from benchmarks.experiments.stability.engine import MINI_BATCHES
from benchmarks.experiments.stability.peers import (
    PERIOD,
    SKRL_TARGET,
    adaptive_coefficient,
    clipping_outliers,
    exponential,
    greedy,
    kl_adaptive,
    updates,
)
from benchmarks.experiments.stability.table import EDGE, RUNS, load


def ratio(share: float, decay: bool = False) -> Arm:
    """A fixed linear warmup over a share of the steps, then constant or with a cosine decay to a tenth."""

    def arm(plan: Plan) -> Driver:
        warmup = round(share * plan.steps)
        shape = cosine(plan, warmup) if decay else lambda step: 1.0
        ramp = lambda step: min((step + 1) / warmup, 1.0) if warmup else 1.0  # noqa: E731
        return Driver(plan.peak, scheduled(lambda optimizer: LambdaLR(optimizer, lambda t: ramp(t) * shape(t))))

    return arm


def untuned(plan: Plan) -> Driver:
    """The untuned linear warmup over 2 / (1 - beta2) updates of the optimizer (Ma and Yarats 2021)."""
    warmup = 2 * PERIOD / updates(plan)
    return Driver(plan.peak, scheduled(lambda optimizer: LambdaLR(optimizer, lambda t: min((t + 1) / warmup, 1.0))))


def ours(decay: bool = False, only: tuple[str, ...] | None = None, **settings: Any) -> Arm:
    """`AdaptiveWarmup` with its defaults, hearing all signals or `only` some of them."""

    def arm(plan: Plan) -> Driver:
        def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
            inner: Any = LambdaLR(optimizer, cosine(plan)) if decay else optimizer
            scheduler = AdaptiveWarmup(inner, warmup_steps=nominal_steps(plan), **settings)

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
    runs = [run for folder in (RUNS, EDGE) for run in load(folder).cell(plan.task, "ours", plan.peak, plan.epochs)]
    return next(run.rates for run in runs if run.seed == seed)


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"RAdam": torch.optim.RAdam}  # AdamW for all others

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
    "ratio 0.95 cosine": ratio(0.95, decay=True),
    "untuned": untuned,
    "KLAdaptiveLR": kl_adaptive(1.0, None, None),
    "rsl_rl": kl_adaptive(0.1, 1e-3, 1.0),
    "rsl_rl falling": kl_adaptive(0.1, 1e-3, 1.0, falling=True),
    "rsl_rl falling, low start": kl_adaptive(None, 1e-3, 1.0, falling=True),  # from where ours starts
    "rsl_rl cosine": kl_adaptive(0.1, 1e-3, 1.0, decay=True),
    "skrl": kl_adaptive(1.0, None, None, target=SKRL_TARGET, on="approx_kl"),  # its rule, on the KL it takes
    "GreedyLR": greedy,
    "pytorch_warmup": exponential,
    "RAdam": ratio(0.0),
    "AutoWU": autowu,
    "ratio 0.285 ZClip": clipping_outliers(ratio(0.285)),
    "ratio 0.285 adaptive KL coefficient": adaptive_coefficient(ratio(0.285)),
    "ours": ours(),
    "ours cosine": ours(decay=True),
    "ours, .01 throughout": ours(min_target_kl=0.01),  # what the fall of the target is worth
    "ours without KL": ours(only=("task_reward", "grad_norm")),
    "same mean lr": same_mean_rate,
    "another seed's lr": replayed,
    "ours in-loop KL": ours(only=("approx_kl", "task_reward", "kl_reward", "grad_norm")),
}
