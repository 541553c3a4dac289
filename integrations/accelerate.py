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
from adaptive_warmup.intake import check_step, checked
from adaptive_warmup.scheduler import AdaptiveWarmup
from adaptive_warmup.signals import KL_SOURCES, NAMES


class AcceleratedWarmup:
    """`AdaptiveWarmup`, prepared: step it where you step what `accelerator.prepare` returns.

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        scheduler = AcceleratedWarmup(accelerator, optimizer, warmup_steps=100)
        ...
        scheduler.observe(kl=kl, grad_norm=norm)
        optimizer.step()
        scheduler.step()

    It steps once for each update, whatever the number of processes; not between accumulated gradients, nor after an
    update that the loss scaler skipped (of a fused optimizer Accelerate does not learn of that, and it steps).
    `warmup_steps`, and the steps of a schedule that it wraps, count updates.
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
        if not isinstance(accelerator, Accelerator):
            kind = type(accelerator).__name__
            raise TypeError(f"accelerator is a {kind}: give the Accelerator first, then the optimizer")
        if getattr(accelerator.state, "deepspeed_plugin", None):
            raise ValueError("distributed_type is DEEPSPEED, whose engine steps schedulers: AcceleratedWarmup cannot.")
        if isinstance(target, Optimizer):
            target = getattr(target, "optimizer", target)  # as it was before it was prepared
        self.scheduler = _Agreed(accelerator, target, warmup_steps, **settings)
        self._prepared = accelerator.prepare_scheduler(self.scheduler)
        self._prepared.split_batches = True  # the way to say: one step for each update
        self._prepared.step_with_optimizer = True  # else Accelerate steps it between accumulated gradients, too

    @property
    def decision(self) -> Decision:
        """The latest decision; the same in all processes."""
        return self.scheduler.decision

    def observe(self, *, group: int | None = None, **signals: Any) -> None:
        """As `AdaptiveWarmup.observe`. Of several processes the mean counts, over those that report the signal.

        A mean KL has the `kl_source` and the `of_step` of the first of them.
        """
        self.scheduler.observe(group=group, **signals)

    def check_gradient(self, grad_norm: float | None, group: int | None = None) -> float:
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
            check_step(taken.get("of_step", 0), self.decision.step)
            (own if "kl" in taken else taken).pop("of_step", None)  # it is of the KL that it came with
            own.update(taken)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._own = {}  # was of another time

    def _advance(self) -> None:
        if self._accelerator.num_processes > 1:
            groups = [None, *(range(len(self._lrs.scheduled)) if self.per_group else ())]
            own, self._own = [self._own.get(group, {}) for group in groups], {}
            for group, agreed in zip(groups, self._exchanged(own), strict=True):
                super().observe(group=group, **agreed)
        super()._advance()

    def _exchanged(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One exchange of what each process observed; what of that counts in all of them."""
        step = self.decision.step
        packed = [[_packed(signals, step) for signals in own]]
        gathered = self._accelerator.gather(torch.tensor(packed, dtype=torch.float32, device=self._accelerator.device))
        return [_agreed(processes, step) for processes in zip(*gathered.tolist(), strict=True)]


def _packed(own: dict[str, Any], step: int) -> list[list[float]]:
    """In pairs of numbers: each signal and whether it was reported, then how late the KL is and its source."""
    kind, _, counts = own.get("kl_source", KL_SOURCES[0]).partition(":")
    epochs, mini_batches = (counts or "0x0").split("x")
    signals = [[float(own.get(name, 0.0)), float(name in own)] for name in NAMES]
    return [*signals, [step - own.get("of_step", step), KL_SOURCES.index(kind)], [int(epochs), int(mini_batches)]]


def _agreed(processes: Sequence[list[list[float]]], step: int) -> dict[str, Any]:
    """Means over those that report a signal: a NaN of one is one of the mean, nothing broken is hidden.

    Of a KL the step and the source are those that the first process to report one has.
    """
    agreed: dict[str, Any] = {}
    for index, name in enumerate(NAMES):
        reports = [packed for packed in processes if packed[index][1]]
        if reports:
            agreed[name] = sum(packed[index][0] for packed in reports) / len(reports)
        if reports and name == "kl":
            (late, kind), (epochs, mini_batches) = ((int(one), int(other)) for one, other in reports[0][-2:])
            counts = f":{epochs}x{mini_batches}" if epochs else ""
            agreed |= {"of_step": step - late, "kl_source": KL_SOURCES[kind] + counts}
    return agreed
