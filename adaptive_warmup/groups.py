"""The lrs in an optimizer's param groups: what the schedules say, what we wrote there, what others have moved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

_log = logging.getLogger("adaptive_warmup")
_UNKNOWN = -1  # version of an lr that is no tensor, or that has to be read


class GroupLrs:
    """The first param groups of `optimizer`, as many as have begun; `scheduled` has the lr of each at factor 1."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.scheduled: list[float] = []
        self._written: list[tuple[float, int]] = []  # what we left in the groups, and a tensor's version
        self._used = 0.0, 0  # sum of the first group's lrs in updates, and how many these were
        self._overruled = False  # said once that another scheduler is at odds with this one

    @property
    def written(self) -> list[float]:
        """What was last written into each group, or seen there by `see_moves`."""
        return [lr for lr, _ in self._written]

    def begin(self, lrs: Iterable[float | Tensor]) -> None:
        """Begin with as many groups as the schedules have lrs."""
        self._part()
        self._used = 0.0, 0
        self.scheduled = [float(lr) for lr in lrs]
        self._written = [(0.0, _UNKNOWN)] * len(self.scheduled)

    def write(self, index: int, lr: float, fills: int = 1) -> None:
        """Put `lr` into a group; in place for a tensor, so that a compiled optimizer step is not compiled anew.

        `fills` is how often a tensor will have been written when control is back with the user.
        """
        group, version = self.optimizer.param_groups[index], _UNKNOWN
        if isinstance(group["lr"], Tensor):
            version = group["lr"]._version + fills
            group["lr"].fill_(lr)
            lr = float(torch.tensor(lr, dtype=group["lr"].dtype, device="cpu"))  # as it holds it, without reading it
        else:
            group["lr"] = lr
        self._written[index] = (lr, version)

    def show(self) -> None:
        """Show a wrapped schedule lrs without our factor: many schedules compute the next lr from the last."""
        for index, lr in enumerate(self.scheduled):
            self.write(index, lr)

    def see_moves(self, bases: Sequence[float | Tensor], factor: Callable[[int], float], stepping: bool = True) -> None:
        """An lr that another scheduler moved since we wrote it: that is its schedule, and stays under our factor.

        Where it is above what the warmup allows that is said and undone as we step, if ever: in a `SequentialLR` it may
        be another one's turn.
        """
        for index, (written, _) in enumerate(self._written):
            if (lr := self.found(index)) != written:
                self._follow(index, lr, float(bases[index]), factor(index), stepping)

    def found(self, index: int) -> float:
        """The lr that is in a group; of a tensor that nobody has touched, without reading it from its device."""
        lr, (written, version) = self.optimizer.param_groups[index]["lr"], self._written[index]
        return written if isinstance(lr, Tensor) and lr._version == version else float(lr)

    def note_update(self) -> None:
        """An update is about to be made."""
        total, updates = self._used
        self._used = total + self.found(0), updates + 1

    def take_used(self, otherwise: float) -> float:
        """The mean lr of the first group in the updates since the last call; `otherwise` where none was seen."""
        (total, updates), self._used = self._used, (0.0, 0)
        return total / updates if updates else otherwise

    def take_in(self, bases: list[float | Tensor]) -> int:
        """Groups that were added to the optimizer join in, at the lr that they came with; how many there were."""
        self._part()
        added = self.optimizer.param_groups[len(self.scheduled) :]
        for group in added:
            lr = float(group["lr"])
            bases.append(float(group.setdefault("initial_lr", lr)))
            self.scheduled.append(lr)
            self._written.append((lr, _UNKNOWN))
        return len(added)

    def state(self) -> dict[str, list[float]]:
        """Plain: what the schedules say, what was written, and what is there now."""
        found = [float(group["lr"]) for group in self.optimizer.param_groups[: len(self.scheduled)]]
        return {"lrs": list(self.scheduled), "written": self.written, "found": found}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state`: what was found is put into the groups."""
        self.begin(saved["lrs"])
        for index, lr in enumerate(saved["found"]):
            self.write(index, lr)
        self._written = [(lr, _UNKNOWN) for lr in saved["written"]]  # beside what was found: a move still shows

    def _part(self) -> None:
        """A tensor for each group: of `Adam([...], lr=tensor)` all groups hold the same one."""
        seen: set[int] = set()
        for group in self.optimizer.param_groups:
            if isinstance(lr := group["lr"], Tensor) and id(lr) in seen:
                group["lr"] = lr.detach().clone()
            seen.add(id(lr))

    def _follow(self, index: int, lr: float, base: float, factor: float, stepping: bool) -> None:
        scheduled, written = self.scheduled[index], self._written[index][0]
        moved, top = scheduled * (lr / written) if written else lr / factor, max(scheduled, base)
        if moved > 1.000001 * top:
            if not stepping:
                return
            if not self._overruled:
                words = "another scheduler set the lr to %.3g where warmup allows %.3g: wrap that one"
                _log.warning(words, lr, written)
            self._overruled = True
        self.scheduled[index] = min(moved, top)
        self._written[index] = (lr, getattr(self.optimizer.param_groups[index]["lr"], "_version", _UNKNOWN))
