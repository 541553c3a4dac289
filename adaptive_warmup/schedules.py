"""The user's own schedule, and the warmup that it may have built in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from inspect import getclosurevars, isfunction, signature
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, CyclicLR, LambdaLR, LRScheduler, OneCycleLR, SequentialLR
from torch.optim.optimizer import Optimizer

_log = logging.getLogger("adaptive_warmup")


def unwrap(target: Any) -> tuple[Optimizer, LRScheduler | None]:
    """The optimizer, and the schedule on it if `target` is one; TypeError where it is neither.

    ValueError: as `check_lrs`.
    """
    if isinstance(target, Optimizer):
        return check_lrs(target), None
    if isinstance(target, LRScheduler) and not wants_a_metric(target):
        return check_lrs(target.optimizer), target
    raise TypeError(
        f"AdaptiveWarmup wraps an optimizer or a schedule, not {type(target).__name__}. A schedule that wants a metric"
        " (ReduceLROnPlateau): wrap the optimizer, and go on stepping that schedule yourself. One that Accelerate"
        " has prepared: wrap before `prepare`."
    )


def check_lrs(optimizer: Optimizer) -> Optimizer:
    """The optimizer; ValueError where it makes its own lr, as Adafactor does with a relative step."""
    for group in optimizer.param_groups:
        if (lr := group.get("lr")) is None or group.get("relative_step"):
            raise ValueError(
                f"lr={lr} of {type(optimizer).__name__}, relative_step={group.get('relative_step')}: it makes its own"
                " lr, which no warmup can set. Give it one, such as lr=1e-3; transformers' Adafactor wants"
                " relative_step=False and warmup_init=False with it, and no AdafactorSchedule."
            )
    return optimizer


def built_in_warmup(schedule: LRScheduler | None) -> int:
    """Warmup steps in a schedule of transformers' or verl's (`get_cosine_schedule_with_warmup` and kin); 0 elsewhere.

    Those are `LambdaLR`s: transformers' over a partial, whose keywords tell; verl's over a function within a function,
    whose closure tells.
    """
    if not isinstance(schedule, LambdaLR):
        return 0
    return max(map(_warmup, schedule.lr_lambdas), default=0)


def _warmup(fn: Any) -> int:
    """Warmup steps among the settings of a lambda; 0 where it has none, or what is called so is no number."""
    try:
        found = fn.keywords if isinstance(fn, partial) else getclosurevars(fn).nonlocals if isfunction(fn) else {}
        return int(found.get("num_warmup_steps") or 0)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ValueError also of a cell that is still empty
        return 0


def _peak(fn: Callable[[int], float], warmup: int) -> float:
    """Where the warmup of a lambda ends; at its last step where it is as long as the run, and 0 follows."""
    return float(max(fn(warmup - 1), fn(warmup)))


def default_warmup_steps(steps: int) -> int:
    """The nominal warmup where neither we nor the host are given one: a tenth of the run, from 10 to 1000."""
    return min(max(steps // 10, 10), 1000)


def nominal_warmup(warmup_steps: int | Sequence[int] | None, schedule: LRScheduler | None) -> int | Sequence[int]:
    """`warmup_steps`, or else what the schedule has built in; a warning where it has a warmup besides."""
    inner = built_in_warmup(schedule)
    if warmup_steps is None and not inner:
        raise ValueError("warmup_steps is missing and no schedule with a warmup was given: say warmup_steps=100.")
    if warmup_steps is not None and inner:
        _log.warning("the schedule's own warmup of %d steps is replaced by warmup_steps=%s", inner, warmup_steps)
    tell_of_second_warmup(schedule)
    return inner if warmup_steps is None else warmup_steps


def tell_of_second_warmup(schedule: Any) -> None:
    """A warning where a schedule seems to have a warmup that we cannot take out of it."""
    if isinstance(schedule, LRScheduler) and not wants_a_metric(schedule) and _begins_low(schedule):
        remedy = "; if its lambda returns whole lrs, give the optimizer the peak lr, and let it return shares of that"
        words = "%s begins below its peak: if it warms up, it and this warmup multiply%s"
        _log.warning(words, type(schedule).__name__, remedy if isinstance(schedule, LambdaLR) else "")


def _begins_low(schedule: LRScheduler) -> bool:
    """Whether a fresh schedule starts below its peak: the mark of a warmup that we cannot take out of it."""
    if built_in_warmup(schedule) or getattr(schedule, "last_epoch", 0) > 0:
        return False
    initial = [group["initial_lr"] for group in schedule.optimizer.param_groups]
    pairs = zip(schedule.get_last_lr(), peak_lrs(schedule, initial), strict=True)
    return any(float(lr) < 0.999 * peak for lr, peak in pairs)


def scheduled_lrs(schedule: LRScheduler) -> list[float]:
    """The lrs of the schedule as if it had no warmup: of each group its own peak while its built-in warmup lasts.

    So our warmup takes the place of the schedule's own instead of doubling up with it, and what comes after, decay
    included, stays as the user set it, at the same steps. The param groups must hold what the schedule wrote there.
    """
    lrs = [float(group["lr"]) for group in schedule.optimizer.param_groups]
    if isinstance(schedule, LambdaLR):
        for index, (fn, base) in enumerate(zip(schedule.lr_lambdas, schedule.base_lrs, strict=True)):
            if schedule.last_epoch < (warmup := _warmup(fn)):
                lrs[index] = float(base) * _peak(fn, warmup)
    return lrs


def write_lrs(optimizer: Optimizer, lrs: Sequence[float]) -> None:
    """Set the lrs of the param groups; in place for a tensor lr, so that a compiled step is not compiled anew."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=False):  # groups may have been added in between
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def drive(schedule: LRScheduler, factor: float) -> None:
    """Set the lrs for the updates until the schedule steps: its own, but for a built-in warmup, times `factor`."""
    write_lrs(schedule.optimizer, [lr * factor for lr in scheduled_lrs(schedule)])


def peak_lrs(schedule: LRScheduler | None, initial: Sequence[float | Tensor]) -> list[float]:
    """The lrs that the schedule tops out at: the initial ones, but for those that are known to have a peak elsewhere.

    Of a composite the highest of its parts'. Of a lambda only the end of its built-in warmup is known.
    """
    peaks = [float(lr) for lr in initial]
    if isinstance(schedule, OneCycleLR):
        peaks = [float(group["max_lr"]) for group in schedule.optimizer.param_groups]
    elif isinstance(schedule, CyclicLR):
        peaks = [float(lr) for lr in schedule.max_lrs]
    elif isinstance(schedule, (SequentialLR, ChainedScheduler)):
        parts = [peak_lrs(part, initial) for part in schedule._schedulers]
        peaks = [max(tops) for tops in zip(*parts, strict=True)]
    elif isinstance(schedule, LambdaLR):
        for index, fn in enumerate(schedule.lr_lambdas):
            if warmup := _warmup(fn):
                peaks[index] *= _peak(fn, warmup)
    return peaks


class Shares:
    """The lrs of schedules as shares of their peaks, at most 1: a rise above the known peak raises no KL target.

    The run's gain is then taken to be greater than it is, so that the lr falls, and comes back slowly.
    """

    def __init__(self) -> None:
        self._surpassed = False  # said once

    def of(self, lrs: Sequence[float], peaks: Sequence[float | Tensor]) -> list[float]:
        """One for each group; 0 where its peak is 0."""
        shares = [lr / float(peak) if peak else 0.0 for lr, peak in zip(lrs, peaks, strict=False)]
        highest = max(shares, default=0.0)
        if highest > 1.000001 and not self._surpassed:
            self._surpassed, index = True, shares.index(highest)
            _log.warning(
                "the schedule's lr %.3g is above the peak that is known of it, %.3g, and the KL target is of that peak:"
                " give the optimizer the highest lr, and let the schedule go down from it",
                lrs[index],
                float(peaks[index]),
            )
        return shares if highest <= 1.0 else [min(share, 1.0) for share in shares]


def wants_a_metric(schedule: LRScheduler) -> bool:
    """Whether the schedule steps on a metric (ReduceLROnPlateau, GreedyLR), and so not once for each update."""
    return "metrics" in signature(schedule.step).parameters
