"""One RL step under way: its rollout, the micro-batches still to come, and what was measured in the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptive_warmup.ppo.config import PPOConfig
from adaptive_warmup.ppo.losses import Total
from adaptive_warmup.ppo.update import Batch, mini_batches

_COUNTS = ("skipped_updates",)  # over the RL step, not means


class RLStep:
    """Hands out micro-batches with their weights, and gathers their metrics.

    A micro-batch weighs its share of the response tokens of its mini-batch, over all processes, so that a sum over
    micro-batches is a mean over those tokens: accumulated gradients are those of the mini-batch in one piece.

    Args:
        batch: the rollout, of this process.
        index_NB: the episodes of each micro-batch.
        weights_N: of the micro-batches.
        updates: that are made of them.
        report: the metrics of the rollout.
        generated: how many micro-batches were handed out.
        sums: of the in-loop metrics, weighted.
    """

    def __init__(
        self,
        batch: Batch,
        index_NB: Tensor,
        weights_N: Tensor,
        updates: int,
        report: dict[str, Tensor],
        used: int = 0,
        sums: dict[str, Tensor] | None = None,
    ) -> None:
        self.batch, self.index_NB, self.weights_N, self.updates = batch, index_NB, weights_N, updates
        self.report, self.used, self.sums = report, used, sums or {}

    @classmethod
    def begin(
        cls,
        config: PPOConfig,
        batch: Batch,
        accumulation: int,
        report: dict[str, Tensor],
        generator: torch.Generator,
        total: Total,
        made: int = 0,
    ) -> RLStep:
        """Cut the rollout into mini-batches, and these into `accumulation` micro-batches each.

        Without the first `made` mini-batches, where so many updates were made on a rollout that is no more.
        """
        parts = list(mini_batches(config, len(batch.response_mask_BT), generator))[made:]
        updates, order = len(parts), torch.cat(parts)
        index_NB = order.view(updates * accumulation, -1).to(batch.response_mask_BT.device)
        tokens_UA = batch.response_mask_BT.sum(-1)[index_NB].sum(-1).view(updates, accumulation)
        weights_UA = tokens_UA / total(tokens_UA.sum(-1, keepdim=True)).clamp(min=1)
        return cls(batch, index_NB, weights_UA.flatten(), updates, report)

    @property
    def finished(self) -> bool:
        """Whether all micro-batches were handed out."""
        return self.used == len(self.index_NB)

    def next(self) -> tuple[Batch, Tensor]:
        """The next micro-batch and its weight."""
        self.used += 1
        return self.batch.rows(self.index_NB[self.used - 1]), self.weights_N[self.used - 1]

    def add(self, metrics: dict[str, Tensor], weight: Tensor | float = 1.0) -> None:
        """Take in metrics of a micro-batch with its weight, or of an update with its share on this process."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * value.detach().float()

    def averages(self, total: Total) -> dict[str, Tensor]:
        """The means over the updates so far of all metrics taken in, added up over the processes."""
        sums = dict(zip(self.sums, total(torch.stack(list(self.sums.values()))).unbind(), strict=True))
        done = self.used * self.updates / len(self.index_NB)
        return {name: value if name in _COUNTS else value / done for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors."""
        return {**vars(self), "batch": tuple(self.batch)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RLStep:
        """Go on where `state_dict` was taken."""
        return cls(**{**state, "batch": Batch(*state["batch"])})
