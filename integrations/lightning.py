"""`AdaptiveWarmupCallback` for Lightning: it tells the module's `AdaptiveWarmup` what each update is like.

Lightning steps schedulers before `on_train_batch_end`, so the signals are taken in `on_before_optimizer_step`: by then
`training_step` has logged, and the gradients are whole, unscaled and not yet clipped.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from adaptive_warmup.controller import Decision
from adaptive_warmup.intake import checked
from adaptive_warmup.integrations.figures import figures
from adaptive_warmup.scheduler import AdaptiveWarmup
from adaptive_warmup.signals import NAMES, check_name, check_source


class AdaptiveWarmupCallback(Callback):
    """Adaptive warmup for a Lightning `Trainer`, whose module has an `AdaptiveWarmup` stepped with the updates:

        def configure_optimizers(self):
            optimizer = AdamW(self.parameters(), lr=1e-3)
            scheduler = AdaptiveWarmup(optimizer, warmup_steps=100)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        trainer = Trainer(callbacks=[AdaptiveWarmupCallback(task_reward="train/score")])

    Before each update it reads what `training_step` has logged since (`self.log("kl", kl)`), under the names of
    `Signals` or those given here, and the gradient norm before clipping: for one pass over the gradients, and the wait
    for it. Of what is logged by step and epoch it reads the steps; what is logged by epoch alone, the epoch's mean,
    counts for the first update of the next. An update whose gradient is an outlier is cut, one that is not finite is
    skipped. Of several processes the first one's signals count for all, for one broadcast an update: log means over
    them with `sync_dist=True`.

    Logs `adaptive_warmup/*` (`integrations/figures.py`), of the decision that the update runs under. The state is the
    scheduler's, in Lightning's own checkpoints.

    Args:
        kl_source: how the logged `kl` was measured, as in `Signals`; None: after the update.
        metrics: the names that signals are logged under, where those are not their own.

    Raises:
        TypeError: a signal that is unknown. ValueError: an unknown `kl_source`.
    """

    def __init__(self, kl_source: str | None = None, **metrics: str) -> None:
        for name in metrics:
            check_name(name)
        if kl_source is not None:
            check_source(kl_source)
        self._kl_source = kl_source
        self._metrics = {name: name for name in NAMES} | metrics
        self._seen: list[dict[str, Tensor]] = []  # by scheduler
        self._waiting: list[list[dict[str, Any]]] = []  # likewise, what the processes are still to agree on
        self._restored: list[list[dict[str, Any]]] = []  # `_waiting` of a checkpoint
        self._before: dict[str, Tensor] = {}  # what was logged when a validation began
        self._validated: dict[str, Tensor] = {}  # what one has logged
        self._several = False
        self._schedulers: list[AdaptiveWarmup] = []

    @property
    def decision(self) -> Decision | None:
        """The latest decision; None before `fit`."""
        return self._schedulers[0].decision if self._schedulers else None

    def observe(self, *, group: int | None = None, **signals: Any) -> None:
        """Report any further signals of `Signals` on the update at work. Raises as `AdaptiveWarmup.observe`.

        Of several processes the first one's count for all. They are told with what is logged before an update; so what
        comes after the update is known one update later, a KL as one of its own step.
        """
        for scheduler, waiting in zip(self._schedulers, self._waiting, strict=True):
            if self._several:
                waiting.append({"group": group, "of_step": scheduler.decision.step, **checked(**signals)})
            else:
                scheduler.observe(group=group, **signals)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the scheduler."""
        found = [config for config in trainer.lr_scheduler_configs if isinstance(config.scheduler, AdaptiveWarmup)]
        if not found:
            raise ValueError(
                "no AdaptiveWarmup among the lr schedulers: return one from configure_optimizers, as"
                ' {"optimizer": optimizer, "lr_scheduler": {"scheduler": AdaptiveWarmup(optimizer, ...), "interval":'
                ' "step"}}; a schedule of your own goes into it in place of the optimizer.'
            )
        if pl_module.automatic_optimization and any(config.interval != "step" for config in found):
            raise ValueError('AdaptiveWarmup is stepped with interval="epoch": warmup counts updates, say "step".')
        self._schedulers = [config.scheduler for config in found if isinstance(config.scheduler, AdaptiveWarmup)]
        self._seen = [{} for _ in self._schedulers]
        self._waiting, self._restored = self._restored or [[] for _ in self._schedulers], []
        self._several = trainer.world_size > 1

    def state_dict(self) -> dict[str, Any]:
        """What the processes are still to agree on; all else is in the scheduler's state."""
        return {"waiting": [[_plain(report) for report in waiting] for waiting in self._waiting]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning calls it before `on_fit_start`."""
        self._restored = [list(waiting) for waiting in state_dict["waiting"]]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take in the signals, and cut or skip the update where its gradient asks for that."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for number, (scheduler, seen, waiting) in enumerate(
            zip(self._schedulers, self._seen, self._waiting, strict=True), start=1
        ):
            if scheduler.optimizer is not optimizer:
                continue  # what is logged is still to count for its own update
            signals = self._fresh(trainer, seen) | _norm(optimizer, scaler)
            # Read here, where the gradient norm is waited for anyway: `step` would wait for the whole update.
            reports = [_plain(report) for report in (*waiting, {"kl_source": self._kl_source, **signals})]
            waiting.clear()
            if self._several:
                reports = trainer.strategy.broadcast(reports)
            for report in reports:
                scheduler.observe(**report)
            told = figures(scheduler.regulators[0].config, scheduler.decision)
            pl_module.log_dict(told if number == 1 else {f"{name}/{number}": value for name, value in told.items()})
            norm = float(reports[-1].get("grad_norm", 0.0))  # where there is no gradient, nothing is cut
            if scheduler.check_gradient(norm) < 1.0 and not math.isfinite(norm) and scaler is None:
                optimizer.zero_grad()  # a loss scaler skips it by itself, and asks for the gradients

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """End the run where `on_gaming="stop"` asks for it."""
        if any(scheduler.decision.stop for scheduler in self._schedulers):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        """From here on others log."""
        self._before = self._logged(trainer)

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        """What a validation has logged under the name of a signal is none of an update."""
        self._validated |= _changed(self._logged(trainer), self._before)

    def _fresh(self, trainer: Trainer, seen: dict[str, Tensor]) -> dict[str, Any]:
        """What was logged since the last update."""
        fresh = _changed(_changed(self._logged(trainer), seen), self._validated)
        seen |= fresh
        return fresh

    def _logged(self, trainer: Trainer) -> dict[str, Tensor]:
        """By signal; of what is logged by step and epoch the step's, beside which Lightning has the epoch's mean."""
        logged = trainer.callback_metrics
        found = {name: logged.get(f"{key}_step", logged.get(key)) for name, key in self._metrics.items()}
        return {name: value for name, value in found.items() if value is not None}


def _changed(logged: dict[str, Tensor], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of `logged` is not in `known`. Lightning keeps the older values, and makes a tensor for each new one: of
    those that we hold on to, none can come again at the same place in memory.
    """
    return {
        name: value for name, value in logged.items() if name not in known or value.data_ptr() != known[name].data_ptr()
    }


def _norm(optimizer: Optimizer, scaler: Any) -> dict[str, Tensor]:
    """Nothing where no parameter has a gradient, as after a `training_step` that returned None."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    norms = [torch.linalg.vector_norm(_values(p.grad)) for p in parameters if p.grad is not None]
    if not norms:
        return {}
    norm = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # Lightning leaves it to these to unscale
    return {"grad_norm": norm / scaler.get_scale() if scaler and fused else norm}


def _values(gradient: Tensor) -> Tensor:
    """Of a sparse one those that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _plain(report: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, Tensor) else value for name, value in report.items()}
