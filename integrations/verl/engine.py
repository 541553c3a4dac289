"""The worker's side: an engine that multiplies its own schedule's lr by the factor that comes with the batch.

It writes the lr for the length of an update and puts the schedule's own back, so that verl's checkpoints hold nothing
of ours, and any schedule works. A warmup of verl's own is not applied on top: while it lasts its peak is taken.
"""

from __future__ import annotations

from typing import Any

from verl.utils import tensordict_utils
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from adaptive_warmup.integrations.verl import VENDOR
from adaptive_warmup.integrations.verl.carried import FACTOR, SCHEDULED
from adaptive_warmup.schedules import drive, scheduled_lrs, write_lrs


class Warmed:
    """Comes before an engine of verl's among the bases. Without a factor in the batch that engine is as ever."""

    lr_scheduler: Any
    optimizer: Any
    _factor: float | None = None

    def train_batch(self, data: Any, loss_function: Any) -> Any:
        """One update, at the factor in `data`; says among its metrics what the lr was without it."""
        self._factor = tensordict_utils.get_non_tensor_data(data, FACTOR, None)
        output = super().train_batch(data, loss_function)  # type: ignore[misc]  # the engine's
        if self._factor is not None and "metrics" in output:
            output["metrics"][SCHEDULED] = [scheduled_lrs(self.lr_scheduler)[0]]
        return output

    def optimizer_step(self) -> float:
        """The update itself; verl clips the gradients, and skips the update where they are not finite."""
        if self._factor is None:
            return super().optimizer_step()  # type: ignore[misc,no-any-return]
        theirs = [float(group["lr"]) for group in self.optimizer.param_groups]
        drive(self.lr_scheduler, self._factor)
        try:
            return super().optimizer_step()  # type: ignore[misc,no-any-return]
        finally:
            write_lrs(self.optimizer, theirs)

    def lr_scheduler_step(self) -> float:
        """The schedule's next step; what verl logs as `lr` is the lr that comes next."""
        lr: float = super().lr_scheduler_step()  # type: ignore[misc]
        return lr if self._factor is None else scheduled_lrs(self.lr_scheduler)[0]


_FSDP = {"backend": ["fsdp", "fsdp2"], "device": ["cuda", "npu"], "vendor": VENDOR}


@EngineRegistry.register(model_type="language_model", **_FSDP)
class WarmedLanguageModel(Warmed, FSDPEngineWithLMHead):  # type: ignore[misc]  # verl is untyped
    """The actor's engine."""


@EngineRegistry.register(model_type="value_model", **_FSDP)
class WarmedValueModel(Warmed, FSDPEngineWithValueHead):  # type: ignore[misc]
    """The critic's engine."""
