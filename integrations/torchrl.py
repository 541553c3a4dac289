"""`AdaptiveWarmupHook` for the trainers of torchrl: register it, and `AdaptiveWarmup` is told what each batch did.

It is torchrl's own `LRSchedulerHook`, which steps the scheduler once for each collected batch and puts its state in
the trainer's checkpoints, and reads the signals besides. How far all the updates on a batch moved the policy is
measured when they are done, on that batch, since the `kl_approx` of the losses is on no one scale: a k1, and a mean
over the last epoch, each sub-batch before its own update.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.trainers import LRSchedulerHook, Trainer

from adaptive_warmup.controller import Decision
from adaptive_warmup.integrations.figures import figures
from adaptive_warmup.scheduler import AdaptiveWarmup

_SAME = ("clip_fraction", "entropy", "explained_variance")  # losses of torchrl's that are called as our signals are
_RETURN, _DONE = ("next", "episode_reward"), ("next", "done")


class AdaptiveWarmupHook(LRSchedulerHook):  # type: ignore[misc]  # torchrl is untyped
    """Adaptive warmup for a `torchrl.trainers.Trainer`.

        trainer = PPOTrainer(..., optimizer=optimizer)
        AdaptiveWarmupHook(AdaptiveWarmup(optimizer, warmup_steps=20, target_kl=0.02)).register(trainer)

    A step is one collected batch: all the updates on it. Reads of each the policy KL (`policy_kl`, of one further call
    of the loss module, without gradients); the mean return of the episodes that ended in it, where the environment has
    a `RewardSum`; and of the last epoch's losses their sum, clip fraction, entropy, explained variance and the gradient
    norm before clipping. Register it after what prepares the batch (`PPOTrainer` does that as it is made), and leave
    out `lr_scheduler=`. Off-policy losses, and batches that the trainer never sees (asynchronous collection), have no
    policy KL: their warmup is the nominal one, braked by a falling return.

    Logs `adaptive_warmup/*` (`integrations/figures.py`) with the trainer's own figures of the batch.

    Args:
        scheduler: of the trainer's optimizer. Its `warmup_steps` counts batches.
    """

    def __init__(self, scheduler: AdaptiveWarmup) -> None:
        super().__init__(scheduler, interval="batch")
        self._batch: TensorDictBase | None = None
        self._updates = 0  # on the batch so far

    @property
    def decision(self) -> Decision:
        """The latest decision."""
        decision: Decision = self.scheduler.decision
        return decision

    def observe(self, **signals: Any) -> None:
        """Report any further signals of `Signals` on the batch at work. Raises as `AdaptiveWarmup.observe`."""
        self.scheduler.observe(**signals)

    def register(self, trainer: Trainer, name: str = "lr_scheduler") -> None:
        """Attach to `trainer`; its name is that of torchrl's own, so that there cannot be two."""
        try:
            super().register(trainer, name)
        except RuntimeError as error:
            raise ValueError(
                "the trainer has an lr scheduler already: leave out lr_scheduler=, and where it is a schedule of your"
                " own give that to AdaptiveWarmup in place of the optimizer."
            ) from error
        self._loss_module = trainer.loss_module
        trainer.register_op("pre_epoch", self._keep)
        trainer.register_op("post_optim", self._count)
        trainer.register_op("post_optim_complete_log", self._read)

    def _keep(self, batch: TensorDictBase | None) -> TensorDictBase | None:
        self._batch = batch
        return batch

    def _count(self) -> None:
        self._updates += 1

    def _read(self, optim_steps: int, losses: TensorDictBase) -> dict[str, float]:
        """Between the last update on the batch and the scheduler's step; what it returns is logged."""
        batch, self._batch = self._batch, None
        updates, self._updates = self._updates, 0
        signals: dict[str, Any] = {name: losses.get(name, None) for name in _SAME}
        signals["loss"] = sum(value for name, value in losses.items() if name.startswith("loss"))
        signals["grad_norm"] = losses.get("grad_norm", losses.get("grad_norm_0", None))
        if batch is not None:
            signals["task_reward"] = mean_return(batch)
            if "kl_approx" in losses:
                with torch.no_grad():
                    signals["kl"] = policy_kl(self._loss_module(batch))
                signals["kl_source"] = f"post_update:1x{max(updates, 1)}"
        self.observe(**signals)
        return figures(self.scheduler.regulators[0].config, self.decision)


def policy_kl(losses: TensorDictBase) -> torch.Tensor:
    """What a PPO loss of torchrl's says of the policy KL, nats per action, mean over the batch that it was called on.

    k3, from k1 and the mean importance ratio (Schulman 2020); k1 where the loss has no `mean_ratio`. Call the loss on
    the whole batch after the last update on it, without gradients.
    """
    ratio = losses.get("mean_ratio", None)
    kl: torch.Tensor = losses["kl_approx"]
    return kl if ratio is None else kl + ratio - 1.0


def mean_return(batch: TensorDictBase) -> float | None:
    """Mean return of the episodes that ended in the batch; None where none did, or no `RewardSum` keeps it."""
    returns, done = batch.get(_RETURN, None), batch.get(_DONE)
    return float(returns[done].mean()) if returns is not None and done.any() else None
