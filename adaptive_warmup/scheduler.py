"""`AdaptiveWarmup`, a torch lr scheduler: wrap an optimizer, or the schedule already on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from adaptive_warmup.controller import Config, Decision
from adaptive_warmup.regulator import Regulator
from adaptive_warmup.schedules import built_in_warmup, scheduled_lrs, wants_a_metric

_log = logging.getLogger("adaptive_warmup")
_SETTINGS = tuple(f.name for f in fields(Config))
_VERSION = 1


class AdaptiveWarmup(LRScheduler):
    """Warmup that adapts while training runs: lr = base_lr * schedule * factor, the factor from the signals.

    Observe what you know of each step, then step, with no arguments, wherever you step your schedulers:

        scheduler = AdaptiveWarmup(optimizer, warmup_steps=100)
        ...
        optimizer.step()
        scheduler.observe(kl=kl, task_reward=score, grad_norm=norm)
        scheduler.step()
        scheduler.decision.reasons

    Without any signal this is the linear warmup factor min(1, (t + 1) / warmup_steps) at update t = 0, 1, ...

    Args:
        target: the optimizer; or a schedule on it, which then lies on top and is stepped by this one (do not step it
            as well). A warmup built into transformers' schedules is replaced by this one, not doubled.
        warmup_steps: the nominal warmup. May be left out where the schedule has one built in.
        settings: those of `Config` by name. Any of them, `warmup_steps` too, may be a list with an entry for each
            param group: each group then has a controller of its own, as actor and critic need.

    Raises:
        TypeError: `target` is neither; an unknown setting.
        ValueError: a setting out of its range; a list whose length is not the number of param groups.
    """

    def __init__(
        self, target: Optimizer | LRScheduler, warmup_steps: int | Sequence[int] | None = None, **settings: Any
    ) -> None:
        optimizer, self._schedule = _unwrap(target)
        if warmup_steps is None:
            warmup_steps = built_in_warmup(self._schedule)
            if not warmup_steps:
                raise ValueError(
                    "warmup_steps is missing and no schedule with a warmup was given: say warmup_steps=100."
                )
        elif inner := built_in_warmup(self._schedule):
            _log.warning("the schedule's own warmup of %d steps is replaced by warmup_steps=%s", inner, warmup_steps)
        configs = _configs({"warmup_steps": warmup_steps, **settings}, len(optimizer.param_groups))
        self.per_group = len(configs) > 1 or any(
            isinstance(v, (list, tuple)) for v in (warmup_steps, *settings.values())
        )
        self._regulators = [Regulator(config) for config in configs]
        self._lrs: list[float] = []  # what the user's schedules say: the lr at factor 1
        self._written: list[tuple[float, int]] = []  # what we left in the groups
        super().__init__(optimizer)

    @property
    def decision(self) -> Decision:
        """The latest decision; of the first group where the groups have controllers of their own."""
        return self._regulators[0].decision

    @property
    def regulators(self) -> tuple[Regulator, ...]:
        """The controllers: one, or one for each param group."""
        return tuple(self._regulators)

    def observe(self, *, group: int | None = None, **signals: Any) -> None:
        """Report any subset of the signals of `Signals` (and `kl_source`) on the step just done.

        Args:
            group: the param group that the signals are of, where groups have controllers of their own; None: all.
            signals: floats, numpy scalars or one-element tensors. A tensor on a device is read in `step()`, which
                waits for the device once for each; report floats that you have anyway and nothing is waited for.

        Raises:
            TypeError, ValueError: as `Regulator.observe`; an index that is no group.
        """
        for regulator in self._chosen(group):
            regulator.observe(**signals)

    def check_gradient(self, grad_norm: float, group: int | None = None) -> float:
        """Cut the lr of the coming update if its gradient is an outlier. Optional; between clipping and the update.

        Args:
            grad_norm: L2 norm before clipping, as a float: the caller pays for reading it.
            group: as in `observe`.

        Returns:
            What the lr was multiplied by, in (0, 1]. `step()` restores it.
        """
        cuts = {id(regulator): regulator.cut(float(grad_norm)) for regulator in self._chosen(group)}
        for index in range(len(self._lrs)):
            regulator = self._of(index)
            if id(regulator) in cuts:
                self._write(index, self._lrs[index] * regulator.decision.factor * cuts[id(regulator)])
        return min(cuts.values())

    def get_lr(self) -> list[Any]:
        """The lr of the next update; called by the base class within `step()`."""
        if self.last_epoch == 0:
            self._begin()
        else:
            self._advance()
        for index, lr in enumerate(self._lrs):
            self._write(index, lr * self._of(index).decision.factor)
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain scalars and lists (`torch.load(weights_only=True)` takes it), the wrapped schedule's state within."""
        return {
            "version": _VERSION,
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "_last_lr": [float(lr) for lr in self._last_lr],
            "lrs": list(self._lrs),
            "written": [lr for lr, _ in self._written],
            "regulators": [regulator.state_dict() for regulator in self._regulators],
            "schedule": self._schedule.state_dict() if self._schedule else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly. As with all of torch's schedulers, load the optimizer's state too: it holds the lrs.

        Raises:
            ValueError: another version, a damaged state, another number of groups, with or without a schedule.
        """
        if state_dict.get("version") != _VERSION:
            raise ValueError(
                f"this AdaptiveWarmup reads states of version {_VERSION}, found {state_dict.get('version')!r}:"
                " was it saved by another scheduler, or another version of adaptive_warmup?"
            )
        self._take_in_groups()
        mine = (len(self._regulators), self._schedule is not None)
        theirs = (len(state_dict["regulators"]), state_dict["schedule"] is not None)
        if mine != theirs or len(state_dict["lrs"]) > len(self.optimizer.param_groups):
            raise ValueError(
                f"the state has {len(state_dict['lrs'])} param groups, {theirs[0]} controllers and"
                f" {'a' if theirs[1] else 'no'} wrapped schedule; this scheduler has"
                f" {len(self.optimizer.param_groups)}, {mine[0]} and {'one' if mine[1] else 'none'}:"
                " build it as it was when the state was saved."
            )
        for regulator, saved in zip(self._regulators, state_dict["regulators"], strict=True):
            regulator.load_state_dict(saved)
        if self._schedule:
            self._schedule.load_state_dict(state_dict["schedule"])
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self.base_lrs, self._last_lr = list(state_dict["base_lrs"]), list(state_dict["_last_lr"])
        self._lrs = list(state_dict["lrs"])
        self._written = [(lr, -1) for lr in state_dict["written"]]

    def _begin(self) -> None:
        """Update 0 is next: at construction, or where SequentialLR comes to us."""
        for regulator in self._regulators:
            regulator.restart()
        self._lrs = scheduled_lrs(self._schedule) if self._schedule else [float(lr) for lr in self.base_lrs]
        self._written = [(0.0, -1)] * len(self._lrs)

    def _advance(self) -> None:
        scales = self._scales()
        self._take_in_groups()
        if self._schedule:
            self._advance_schedule(self._schedule)
        for index, regulator in enumerate(self._regulators):
            regulator.decide(scales[index])

    def _scales(self) -> list[float]:
        """What the user's schedules multiplied the peak lr by during the step just done; see who moved it since."""
        scales = [lr / float(base) if base else 0.0 for lr, base in zip(self._lrs, self.base_lrs, strict=True)]
        for index, group in enumerate(self.optimizer.param_groups[: len(self._lrs)]):
            found, (written, version) = group["lr"], self._written[index]
            if isinstance(found, Tensor) and found._version == version:
                continue  # untouched, and known without reading it from the device
            if (lr := float(found)) != written and not self._schedule:
                # Another scheduler in the chain moved the lr: that is its schedule, and stays under our factor.
                self._lrs[index] *= lr / written if written else 0.0
        return scales

    def _advance_schedule(self, schedule: LRScheduler) -> None:
        """Step the wrapped schedule on lrs without our factor: many schedules compute the next lr from the last."""
        for index, lr in enumerate(schedule.get_last_lr()):
            self._write(index, float(lr))
        schedule.step()
        self._lrs = scheduled_lrs(schedule)

    def _take_in_groups(self) -> None:
        """Groups that were added to the optimizer since the last step join in, at the lr that they came with."""
        for group in self.optimizer.param_groups[len(self._lrs) :]:
            group.setdefault("initial_lr", float(group["lr"]))
            self.base_lrs.append(group["initial_lr"])
            self._lrs.append(float(group["lr"]))
            self._written.append((float(group["lr"]), -1))
            if self.per_group:
                self._regulators.append(Regulator(self._regulators[-1].config))

    def _write(self, index: int, lr: float) -> None:
        """In place for a tensor lr, so that a compiled optimizer step is not compiled anew."""
        group = self.optimizer.param_groups[index]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
            self._written[index] = (
                float(group["lr"]) if group["lr"].device.type == "cpu" else lr,
                group["lr"]._version,
            )
        else:
            group["lr"] = lr
            self._written[index] = (lr, -1)

    def _of(self, index: int) -> Regulator:
        return self._regulators[index if self.per_group else 0]

    def _chosen(self, group: int | None) -> list[Regulator]:
        if group is None or not self.per_group:
            return self._regulators
        if not 0 <= group < len(self._regulators):
            raise ValueError(f"group={group} is no param group: there are {len(self._regulators)}, counted from 0.")
        return [self._regulators[group]]


def _unwrap(target: Any) -> tuple[Optimizer, LRScheduler | None]:
    if isinstance(target, Optimizer):
        return target, None
    if isinstance(target, LRScheduler) and not wants_a_metric(target):
        return target.optimizer, target
    raise TypeError(
        f"AdaptiveWarmup wraps an optimizer or a schedule, not {type(target).__name__}. A schedule that wants a metric"
        " (ReduceLROnPlateau): wrap the optimizer, and go on stepping that schedule yourself."
    )


def _configs(settings: dict[str, Any], groups: int) -> list[Config]:
    """One config, or one for each group where any setting is a list."""
    for name in settings:
        if name not in _SETTINGS:
            raise TypeError(f"unknown setting {name!r}: known are {', '.join(_SETTINGS)}.")
    lists = {name: value for name, value in settings.items() if isinstance(value, (list, tuple))}
    for name, values in lists.items():
        if len(values) != groups:
            raise ValueError(
                f"{name}={values!r} has {len(values)} entries for {groups} param groups: give one for each."
            )
    count = groups if lists else 1
    return [Config(**{k: v[i] if k in lists else v for k, v in settings.items()}) for i in range(count)]
