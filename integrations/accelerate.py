"""`AcceleratedWarmup` for plain Accelerate loops: one decision for each update, the same one in all processes.

Accelerate's wrapper steps a scheduler once for each *process* after an update, unless the dataloaders split their
batches. By the second of those steps no signals would be left, and the warmup would run too fast by the number of
processes. And each process would decide on what it observed itself: at lrs of their own the copies of the model drift
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adaptive_warmup.controller import Decision
from adaptive_warmup.regulator import checked
from adaptive_warmup.scheduler import AdaptiveWarmup
from adaptive_warmup.signals import NAMES


class AcceleratedWarmup:
    """`AdaptiveWarmup`, prepared: step it where you step what `accelerator.prepare` returns.

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        scheduler = AcceleratedWarmup(accelerator, optimizer, warmup_steps=100)
        ...
        scheduler.observe(kl=kl, grad_norm=norm)
        optimizer.step()
        scheduler.step()

    It steps once for each update, whatever the number of processes; not between accumulated gradients, nor after an
    update that the loss scaler skipped. `warmup_steps`, and the steps of a schedule that it wraps, count updates.
    `accelerator.save_state` saves it and `load_state` goes on exactly. Of several processes, what was observed and not
    yet stepped on is not saved.

    Args:
        accelerator: the one that prepared the optimizer.
        target: the optimizer, prepared or not; or a schedule on the optimizer as it was before it was prepared, which
            then lies on top.
        warmup_steps, settings: as in `AdaptiveWarmup`.

    Raises:
        TypeError, ValueError: as `AdaptiveWarmup`; the accelerator runs DeepSpeed, whose engine steps schedulers.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        target: Optimizer | LRScheduler,
        warmup_steps: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        if getattr(accelerator.state, "deepspeed_plugin", None):
            raise ValueError("distributed_type is DEEPSPEED, whose engine steps schedulers: AcceleratedWarmup cannot.")
        if isinstance(target, Optimizer):
            target = getattr(target, "optimizer", target)  # as it was before it was prepared
        self.scheduler = _Agreed(accelerator, target, warmup_steps, **settings)
        self._prepared = accelerator.prepare_scheduler(self.scheduler)
        self._prepared.split_batches = True  # the way to say: one step for each update

    @property
    def decision(self) -> Decision:
        """The latest decision; the same in all processes."""
        return self.scheduler.decision

    def observe(self, *, group: int | None = None, **signals: Any) -> None:
        """As `AdaptiveWarmup.observe`. Of several processes the mean counts, over those that report the signal."""
        self.scheduler.observe(group=group, **signals)

    def check_gradient(self, grad_norm: float, group: int | None = None) -> float:
        """As `AdaptiveWarmup.check_gradient`, with a norm that is the same in all processes."""
        return self.scheduler.check_gradient(grad_norm, group)

    def step(self) -> None:
        """After `optimizer.step()`. In all processes: in the step after an update they exchange their signals, once."""
        self._prepared.step()

    def get_last_lr(self) -> list[float | torch.Tensor]:
        """The lrs of the next update."""
        return self.scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """As `AdaptiveWarmup.state_dict`."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `AdaptiveWarmup.load_state_dict`."""
        self.scheduler.load_state_dict(state_dict)


class _Agreed(AdaptiveWarmup):
    """Decides on the means over all processes: so they all decide the same."""

    def __init__(self, accelerator: Accelerator, *args: Any, **settings: Any) -> None:
        self._accelerator = accelerator
        self._own: dict[int | None, dict[str, Any]] = {}  # what this process observed, by group
        super().__init__(*args, **settings)

    def observe(self, *, group: int | None = None, **signals: Any) -> None:
        if self._accelerator.num_processes == 1:
            super().observe(group=group, **signals)
        else:
            self._chosen(group)  # refuses what is no group
            taken, own = checked(**signals), self._own.setdefault(group, {})
            if "kl" in taken:
                own.pop("of_step", None)  # of a KL before this one
            own.update(taken)

    def _advance(self) -> None:
        if self._accelerator.num_processes > 1:
            groups = [None, *(range(len(self._lrs.scheduled)) if self.per_group else ())]
            for group, means in zip(groups, self._means([self._own.get(group, {}) for group in groups]), strict=True):
                own = self._own.get(group, {})
                super().observe(group=group, kl_source=own.get("kl_source"), of_step=own.get("of_step"), **means)
            self._own = {}
        super()._advance()

    def _means(self, own: list[dict[str, Any]]) -> list[dict[str, float]]:
        """One exchange of sums and counts. A NaN in one process is a NaN in the mean: nothing broken is hidden."""
        sums = [[float(signals.get(name, 0.0)) for name in NAMES] for signals in own]
        counts = [[float(name in signals) for name in NAMES] for signals in own]
        packed = torch.tensor([sums, counts], device=self._accelerator.device)
        sums, counts = self._accelerator.reduce(packed, "sum").tolist()
        return [
            {name: total / count for name, total, count in zip(NAMES, *row, strict=True) if count}
            for row in zip(sums, counts, strict=True)
        ]
