"""`AdaptiveWarmup`, a torch lr scheduler: wrap an optimizer, or the schedule already on it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from adaptive_warmup.controller import Config, Decision, check_settings
from adaptive_warmup.groups import GroupLrs
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.intake import checked
from adaptive_warmup.quoting import quoted
from adaptive_warmup.regulator import Regulator
from adaptive_warmup.schedules import Shares, nominal_warmup, peak_lrs, scheduled_lrs, unwrap
from adaptive_warmup.sealing import opened, sealed

_log = logging.getLogger("adaptive_warmup")


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
            as well). A warmup built into transformers' schedules is replaced by this one, not doubled. A schedule that
            computes the next lr from the last one may instead run beside this one, as in torch's `ChainedScheduler`.
        warmup_steps: the nominal warmup. May be left out where the schedule has one built in.
        log: a `DecisionLog`, or the path of one, to write each step into; of several processes the first one writes,
            and where groups have controllers of their own, it is the first group's. Its `lr` is what the updates of the
            step used in the first group, in the mean, whoever set it.
        settings: those of `Config` by name. Any of them, `warmup_steps` too, may be a list with an entry for each
            param group: each group then has a controller of its own, as actor and critic need.

    Raises:
        TypeError: `target` is neither, or adaptive already; an unknown setting.
        ValueError: a setting out of its range; a list whose length is not the number of param groups; a log of another
            run.
    """

    def __init__(
        self,
        target: Optimizer | LRScheduler,
        warmup_steps: int | Sequence[int] | None = None,
        *,
        log: DecisionLog | Path | str | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(target, AdaptiveWarmup):
            raise TypeError("AdaptiveWarmup over AdaptiveWarmup: two warmups would multiply, wrap once.")
        optimizer, self._schedule = unwrap(target)
        settings = {"warmup_steps": nominal_warmup(warmup_steps, self._schedule), **settings}
        configs = _configs(settings, len(optimizer.param_groups))
        self.per_group = any(isinstance(value, (list, tuple)) for value in settings.values())
        self._regulators = [Regulator(config) for config in configs]
        self._lrs = GroupLrs(optimizer)
        self._shares = Shares()
        super().__init__(optimizer)
        self._watch_updates()
        self._log = DecisionLog.of(log, lr=float(self.base_lrs[0])) if log is not None else None
        if self._log:
            self._log.open(configs[0])

    @property
    def decision(self) -> Decision:
        """The latest decision; of the first group where the groups have controllers of their own."""
        return self._regulators[0].decision

    @property
    def regulators(self) -> tuple[Regulator, ...]:
        """The controllers: one, or one for each param group."""
        return tuple(self._regulators)

    def observe(self, *, group: int | None = None, of_step: int | None = None, **signals: Any) -> None:
        """Report any subset of the signals of `Signals` (and `kl_source`) on the step just done.

        Args:
            of_step: of a `kl` that is of an earlier step: what `decision.step` was while that step ran.
            group: the param group that the signals are of, where groups have controllers of their own; None: all.
            signals: floats, numpy scalars or one-element tensors. A tensor on a device is read in `step()`, which
                waits for the device once for each; report floats that you have anyway and nothing is waited for.

        Raises:
            TypeError, ValueError: as `Regulator.observe`; an index that is no group.
        """
        for regulator in self._chosen(group):
            step = of_step
            if step is not None and (younger := self.decision.step - regulator.state.step):
                step -= younger  # a group that was added counts from then on
            regulator.observe(of_step=step, **signals)

    def check_gradient(self, grad_norm: float | None, group: int | None = None) -> float:
        """Cut the lr of the coming update if its gradient is an outlier. Optional; between clipping and the update.

        Args:
            grad_norm: L2 norm before clipping, as a float: the caller pays for reading it. None: not known, no cut. It
                is held against the norms that are observed: where a step has many updates, observe one of theirs.
            group: as in `observe`.

        Returns:
            What the lr was multiplied by, in (0, 1]. `step()` restores it.

        Raises:
            TypeError, ValueError: what is no number, as `observe`; an index that is no group.
        """
        chosen, known = self._chosen(group), checked(grad_norm=grad_norm)
        if not known:
            return 1.0
        cuts = {regulator: regulator.cut(float(known["grad_norm"])) for regulator in chosen}
        self._lrs.see_moves(self.base_lrs, self._factor)
        for index, lr in enumerate(self._lrs.scheduled):
            if (regulator := self._of(index)) in cuts:
                self._lrs.write(index, lr * regulator.decision.factor * cuts[regulator])
        return min(cuts.values())

    def get_lr(self) -> list[Any]:
        """The lr of the next update, which the base class has computed here within `step()`."""
        if self._get_lr_called_within_step:
            try:
                self._begin() if self.last_epoch == 0 else self._advance()
            finally:  # also where a schedule raises, or Ctrl-C comes, while the groups hold lrs without our factor
                for index, lr in enumerate(self._lrs.scheduled):
                    self._lrs.write(index, lr * self._factor(index), fills=2)  # the base class fills it once more
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain scalars, lists and tuples (`torch.load(weights_only=True)` takes it), the wrapped schedule's within.

        Dicts lie in tuples, which `torch.distributed.checkpoint` keeps whole. It takes dicts apart, and of those it
        loads no key that the new scheduler's has not yet.
        """
        return sealed(
            {
                "last_epoch": self.last_epoch,
                "_step_count": self._step_count,
                "base_lrs": list(self.base_lrs),
                "_last_lr": [float(lr) for lr in self._last_lr],
                **self._lrs.state(),
                "make": self._make,
                "regulators": tuple(regulator.state_dict() for regulator in self._regulators),
                "schedule": (deepcopy(self._schedule.state_dict()),) if self._schedule else None,
            }
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly, with the lrs that were in the param groups; before or after the optimizer's state is loaded.

        Raises:
            ValueError: another version, a damaged state, other param groups, another wrapped schedule; nothing is
                changed then.
        """
        saved = opened(state_dict)
        groups, most = len(saved["lrs"]), len(self.optimizer.param_groups)
        if saved["make"] != self._make or not len(self._lrs.scheduled) <= groups <= most:
            raise ValueError(
                f"the state is of {groups} param groups, {saved['make']}; this scheduler has {most}, {self._make}:"
                " build it as it was when the state was saved."
            )
        regulators = []
        for index, state in enumerate(saved["regulators"]):
            regulators.append(Regulator(self._regulators[min(index, len(self._regulators) - 1)].config))
            regulators[index].load_state_dict(state)
        if self._schedule:
            theirs = saved["schedule"]
            self._schedule.load_state_dict(deepcopy(theirs if isinstance(theirs, dict) else theirs[0]))  # bare once
        self._regulators = regulators
        self.last_epoch, self._step_count = saved["last_epoch"], saved["_step_count"]
        self.base_lrs, self._last_lr = list(saved["base_lrs"]), list(saved["_last_lr"])
        self._lrs.restore(saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose optimizer has no hooks."""
        vars(self).update(state)
        self._watch_updates()

    @property
    def _make(self) -> str:
        schedule = type(self._schedule).__name__ if self._schedule else "no schedule"
        return f"{'a controller for each' if self.per_group else 'one controller'}, over {schedule}"

    def _watch_updates(self) -> None:
        """Look at the lrs before each update: another schedule may have moved them since we stepped."""
        ours = weakref.ref(self)  # the optimizer may outlive us

        @torch.compiler.disable  # type: ignore[untyped-decorator]  # no update is compiled anew for it
        def look(*_: Any) -> None:
            if (scheduler := ours()) is not None:
                scheduler._lrs.see_moves(scheduler.base_lrs, scheduler._factor, stepping=False)
                scheduler._lrs.note_update()

        with suppress(AttributeError):  # an optimizer in name only, as wrappers are, has no hooks
            self.optimizer.register_step_pre_hook(look)

    def _begin(self) -> None:
        """Update 0 is next: at construction, or where SequentialLR comes to us."""
        for regulator in self._regulators:
            regulator.restart()
        initial = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.base_lrs = [*peak_lrs(self._schedule, initial)]  # floats: one on a device would be waited for
        self._lrs.begin(self._schedule.get_last_lr() if self._schedule else self.base_lrs)
        if self._schedule:
            self._lrs.show()
            self._lrs.scheduled = scheduled_lrs(self._schedule)

    def _advance(self) -> None:
        used = self._lrs.take_used(self._lrs.scheduled[0] * self._factor(0) * self._regulators[0].cut_share)
        scales = self._shares.of(self._lrs.scheduled, self.base_lrs)
        for regulator, scale in zip(self._regulators, scales if self.per_group else [max(scales)], strict=True):
            regulator.decide(scale)
        self._lrs.see_moves(self.base_lrs, self._factor)
        if self._log:
            self._log.write(self._regulators[0], lr=used)
        added = self._lrs.take_in(self.base_lrs)
        if self.per_group:
            self._regulators += [Regulator(self._regulators[-1].config) for _ in range(added)]
        if self._schedule:
            self._lrs.show()
            self._schedule.step()
            self._lrs.scheduled = scheduled_lrs(self._schedule)

    def _of(self, index: int) -> Regulator:
        return self._regulators[index if self.per_group else 0]

    def _factor(self, index: int) -> float:
        return self._of(index).decision.factor

    def _chosen(self, group: int | None) -> list[Regulator]:
        if group is None:
            return self._regulators
        if group not in range(len(self._lrs.scheduled)):
            raise ValueError(
                f"group={group!r} is not among the {len(self._lrs.scheduled)} param groups"
                " (added ones join in at the next step)."
            )
        return [self._of(group)]


def _configs(settings: dict[str, Any], groups: int) -> list[Config]:
    """One config, or one for each group where any setting is a list."""
    check_settings(settings)
    lists = {name: value for name, value in settings.items() if isinstance(value, (list, tuple))}
    for name, values in lists.items():
        if len(values) != groups:
            raise ValueError(
                f"{name}={quoted(values)} has {len(values)} entries for {groups} param groups: give one for each."
            )
    count = groups if lists else 1
    return [Config(**{k: v[i] if k in lists else v for k, v in settings.items()}) for i in range(count)]
