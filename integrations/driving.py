"""The lr of a Trainer's optimizer: ours within a step, its schedule's own outside of it.

At the begin of a step scheduled lr * factor is written into the optimizer's param groups, but for those marked as
having a warmup of their own, and after the update the schedule's own lr is put back. So every schedule works (those
that compute the next lr from the last one, and ReduceLROnPlateau and GreedyLR, which step at evaluations), and a
checkpoint holds nothing that a Trainer without the callback would stumble over.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainingArguments

from adaptive_warmup.quoting import plural
from adaptive_warmup.scheduler import AdaptiveWarmup
from adaptive_warmup.schedules import (
    Shares,
    built_in_warmup,
    check_lrs,
    default_warmup_steps,
    peak_lrs,
    scheduled_lrs,
    tell_of_second_warmup,
    wants_a_metric,
    write_lrs,
)

_log = logging.getLogger("adaptive_warmup")
OWN_WARMUP = "own_warmup"  # marks a param group that keeps its schedule's lr


def nominal_warmup(ours: int | None, schedule: Any, args: TrainingArguments, max_steps: int) -> int:
    """The callback's own setting, else the Trainer's, else the default."""
    ramp = built_in_warmup(schedule)
    theirs = ramp or args.get_warmup_steps(max_steps)
    steps = int(ours or theirs or default_warmup_steps(max_steps))
    source = "the callback's setting" if ours else "the Trainer's warmup_steps" if theirs else "a tenth of the run"
    replaced = f"; replaces the Trainer's ramp of {plural(ramp, 'step')}" if ramp else ""
    _log.info("nominal warmup %s (%s)%s", plural(steps, "step"), source, replaced)
    tell_of_second_warmup(schedule)
    return steps


class DrivenLrs:
    """Scheduled lr * factor in the optimizer's param groups, from `begin` to `used` or `end`.

    Attributes:
        optimizer, schedule: as they are inside of the host's wrappers.
        peak: of the group with the highest one, of those that have no warmup of their own. Its lr is the one in logs.

    Raises:
        ValueError: the schedule is not the optimizer's, or warms up by feedback already; as `check_lrs`.
    """

    def __init__(self, optimizer: Any, schedule: Any) -> None:
        self.optimizer = optimizer
        self.schedule = getattr(schedule, "scheduler", schedule)  # AcceleratedScheduler
        _check(optimizer, self.schedule)
        check_lrs(_layers(optimizer)[-1])
        self._metric_driven = wants_a_metric(self.schedule)
        self._written: list[float] = []  # what we left in the param groups; empty while they hold the schedule's lrs
        # Noted in the groups for the schedules that do not; with them it is saved and loaded.
        initial = [group.setdefault("initial_lr", float(group["lr"])) for group in optimizer.param_groups]
        self._peaks = peak_lrs(self.schedule, initial)
        self._apart = [bool(group.get(OWN_WARMUP)) for group in optimizer.param_groups]
        self._main = max(range(len(initial)), key=lambda index: (not self._apart[index], self._peaks[index]))
        self.peak = self._peaks[self._main]
        self._shares = Shares()

    @property
    def scheduled(self) -> float:
        """The lr of the running step, without the factor."""
        return self._ours[self._main]

    @property
    def scale(self) -> float:
        """The schedule's multiplier in the running step; the highest of the groups', as some may be frozen."""
        shares = zip(self._apart, self._shares.of(self._ours, self._peaks), strict=False)
        return max((share for apart, share in shares if not apart), default=0.0)

    def begin(self, factor: float) -> None:
        """A step begins: put our lr in place of the schedule's."""
        self._theirs = self._lrs()
        self._ours = self._theirs if self._metric_driven else scheduled_lrs(self.schedule)
        self._apart = [bool(group.get(OWN_WARMUP)) for group in self.optimizer.param_groups]
        self.drive(factor)

    def drive(self, factor: float) -> None:
        """Run this step at another factor."""
        lrs = zip(self._apart, self._ours, self._theirs, strict=False)  # groups may have been added in between
        write_lrs(self.optimizer, [theirs if apart else ours * factor for apart, ours, theirs in lrs])
        self._written = self._lrs()

    def used(self) -> None:
        """The update is done: the schedule's own lr back, and ours left where the Trainer reads it for its log."""
        if not self._metric_driven:  # for the others it reads the param groups, which keep ours until the step's end
            # Of an optimizer of DeepSpeed's own the schedule has stepped already, and the groups hold its next lr.
            used = self._written or self._lrs()
            self.put_back()
            self.schedule._last_lr = used

    def end(self) -> None:
        """The step is done."""
        if self._metric_driven:
            self.put_back()
        else:
            self.schedule._last_lr = self._lrs()  # also where no schedule stepped, after an overflow

    def put_back(self) -> list[float]:
        """Give the schedule its own lr back; where another has come since, as with a new schedule, that one stays.

        Returns what was there of ours, for `again`.
        """
        written, self._written = self._written, []
        if written and written == self._lrs()[: len(written)]:
            write_lrs(self.optimizer, self._theirs)
        return written

    def again(self, written: list[float]) -> None:
        """Undo a `put_back` in the midst of a step."""
        if written:
            write_lrs(self.optimizer, written)
            self._written = written

    def _lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


def _check(optimizer: Any, schedule: Any) -> None:
    kind = type(schedule).__name__
    if any(isinstance(one, AdaptiveWarmup) for one in (schedule, *getattr(schedule, "_schedulers", ()))):
        raise ValueError(f"the Trainer's lr_scheduler is {kind}, and so adaptive: leave out AdaptiveWarmupCallback.")
    theirs, ours = _layers(getattr(schedule, "optimizer", None)), _layers(optimizer)
    if (name := type(ours[-1]).__name__) in ("Lomo", "AdaLomo"):
        raise ValueError(
            f"the optimizer is {name}, which updates during the backward pass, at an lr that the Trainer takes from its"
            " schedule: the warmup cannot reach it. Use another optim."
        )
    if theirs and not any(one is other for one in theirs for other in ours):
        raise ValueError(
            f"the Trainer's lr_scheduler, {kind}, sets the lr of another optimizer than its {type(ours[-1]).__name__}:"
            " give optimizers=(optimizer, a schedule on it), or let the Trainer make both."
        )


def _layers(optimizer: Any) -> list[Any]:
    """The optimizer and what it wraps: Accelerate and DeepSpeed have wrappers of their own."""
    layers: list[Any] = []
    while optimizer is not None and all(optimizer is not one for one in layers):
        layers.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None)
    return layers
