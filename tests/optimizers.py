"""What the tests of the scheduler share: optimizers, runs, and streams of signals as hypothesis draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.signals import KL_SOURCES

any_value = st.none() | st.floats(allow_nan=True, allow_infinity=True)
likely_kl = st.floats(1e-5, 1.0)
any_signals = st.fixed_dictionaries(
    {},
    optional={
        "kl": any_value | likely_kl,
        "kl_source": st.sampled_from([*KL_SOURCES, "in_loop:4x2", "post_update:4x8"]),
        "task_reward": any_value | st.floats(0, 1),
        "kl_reward": any_value | st.floats(-1, 1),
        "grad_norm": any_value | st.floats(0.1, 10),
        "loss": any_value,
    },
)
streams = st.lists(any_signals, min_size=1, max_size=25)


def optimizer_of(*lrs: float | Tensor) -> Optimizer:
    """One param group for each lr."""
    return SGD([{"params": [Parameter(torch.ones(1))], "lr": lr} for lr in lrs])


def lrs_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def drive(scheduler: Any, stream: Iterable[dict[str, Any]]) -> list[list[float]]:
    """Train for as many updates as there are signals; the lrs that each ran at. `norm` goes to `check_gradient`."""
    lrs = []
    for signals in stream:
        if "norm" in signals:
            scheduler.check_gradient(signals["norm"])
        lrs.append(lrs_of(scheduler.optimizer))
        scheduler.optimizer.step()
        if hasattr(scheduler, "observe"):
            scheduler.observe(**{name: value for name, value in signals.items() if name != "norm"})
        scheduler.step()
    return lrs


def lively(steps: int) -> list[dict[str, float]]:
    """Signals that make the factor rise, fall and rise: a KL that swings between 0.1 and 2.2 times the target."""
    return [
        {"kl": 0.01 * math.exp(1.5 * math.sin(t / 3.0) - 0.7), "task_reward": 0.5, "grad_norm": 1.0 + 0.2 * math.cos(t)}
        for t in range(steps)
    ]


def decided(optimizer: Optimizer, target: Any, kls: Iterable[float]) -> list[float]:
    """The lrs that `AdaptiveWarmup(target, 4)` takes the optimizer through by itself, told these KLs."""
    scheduler = AdaptiveWarmup(target, 4)
    lrs = []
    for kl in kls:
        lrs.append(lrs_of(optimizer)[0])
        optimizer.step()
        scheduler.observe(kl=kl)
        scheduler.step()
    return lrs
