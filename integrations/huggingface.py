"""`AdaptiveWarmupCallback`: attach it to any `transformers.Trainer`, and its schedule warms up by feedback.

How it drives the lr: `driving.py`. What is in the Trainer's checkpoints: `stored.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adaptive_warmup.controller import Config, Decision, check_settings
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.intake import checked
from adaptive_warmup.integrations.driving import DrivenLrs, nominal_warmup
from adaptive_warmup.integrations.figures import figures
from adaptive_warmup.integrations.plumbing import agree, calling_trainer, check_alone, check_place, tap
from adaptive_warmup.integrations.probing import Choice, TrainerProbe, check_choice
from adaptive_warmup.integrations.reading import Passing, Read, Reader, check_read, limit, unlimited
from adaptive_warmup.integrations.stored import Stored
from adaptive_warmup.integrations.trainer_signals import TrainerSignals, own_keys
from adaptive_warmup.quoting import quoted
from adaptive_warmup.regulator import Regulator

_log = logging.getLogger("adaptive_warmup")


class AdaptiveWarmupCallback(TrainerCallback):
    """Adaptive warmup for a `transformers.Trainer`.

        trainer = Trainer(..., callbacks=[AdaptiveWarmupCallback()])

    Reads the loss and the gradient norm before clipping at every step, whatever `logging_steps` is; what the trainers
    of TRL report of the step (docs/signals-of-trainers.md); and what `observe` is given, which goes first, but for a
    gradient norm where the Trainer has its own. Where nobody reports a post-update KL it measures one itself, see
    `probe`. Logs `adaptive_warmup/*` (`integrations/figures.py`) with the Trainer's own logs.

    The feedback law cuts an update whose gradient is an outlier and skips one whose gradient is not finite, see `read`.
    The state travels in `trainer_state.json`.

    It decides after every step, on what that was like; under our `PPOTrainer`, whose RL steps may have several updates,
    once for each RL step, so there the warmup's length is rounded up to RL steps.

    Args:
        warmup_steps: the nominal warmup. None: the Trainer's own `warmup_steps`, which this then replaces (its ramp is
            not applied on top); where that is 0, a tenth of the run, from 10 to 1000 steps.
        log: a `DecisionLog`, or the path of one, into which the first process writes each step.
        signals: further keys of the trainer's, or of its logs, by signal: `{"my/kl": "kl:in_loop", "*/score":
            "task_reward"}`. Those of a log are means over `logging_steps`, and count for the step after it.
        probe: `"auto"`, a `PolicyProbe` of your own, or None for none. It costs at most 2 % of the training's work.
        read: when the loss and the gradient norm are read. `"auto"`: on the CPU at once. On an accelerator, which would
            have to be waited for, a step later, so that decisions know them a step later; an outlier is then cut, and
            an update that is not finite skipped, on the accelerator itself, where the optimizer is a fused one (the
            Trainer's default is), else not at all. `"now"`: at once everywhere, for one wait before each update.
            `"late"`: as on an accelerator, everywhere.
        settings: those of `Config` by name. Where the probe measures plain training, `target_kl` counts threefold (.01
            is .03 there), and the way up is never quicker than nominal, unless `min_warmup_steps` is set.

    Raises:
        TypeError, ValueError: a setting, or a signal, that is unknown or out of range.
    """

    def __init__(
        self,
        warmup_steps: int | None = None,
        *,
        signals: Mapping[str, str] | None = None,
        probe: Choice = "auto",
        read: Read = "auto",
        log: DecisionLog | Path | str | None = None,
        **settings: Any,
    ) -> None:
        check_place(warmup_steps)
        check_settings(settings)
        check_choice(probe)
        check_read(read)
        self._choice, self._read = probe, read
        self._probe: TrainerProbe | None = None
        self._settings = {"warmup_steps": warmup_steps, **settings}
        Config(**{**self._settings, "warmup_steps": warmup_steps or 10**9})  # bad settings fail here, not in train()
        if warmup_steps is not None:
            Config(warmup_steps)
        self._keys = own_keys(signals)
        self._reader = TrainerSignals(self._keys)
        self.regulator: Regulator | None = None
        if log is not None:
            DecisionLog.of(log)  # what is no log fails here; the run's own is made in train(), where its lr is known
        self._log_to, self._log = log, cast("DecisionLog | None", None)
        self._waiting: list[dict[str, Any]] = []
        self._untap = ExitStack()
        self._period = 1  # updates under one decision
        self._lrs: DrivenLrs  # from the begin of training on, as the regulator
        self._stored: Stored
        self._values, self._passing = Reader(read), Passing()
        self._running = False
        self._too_late = False  # to cut an update once its gradient's norm is known
        self._used: Decision | None = None  # the decision that the step just done ran under

    @property
    def decision(self) -> Decision | None:
        """The latest decision; None before training has begun."""
        return self.regulator.decision if self.regulator else None

    @property
    def sources(self) -> Mapping[str, str]:
        """What each signal is read from, where the trainer reports it; `derived: ...` where it follows from others."""
        return self._reader.sources

    def observe(self, **signals: Any) -> None:
        """Report any subset of the signals of `Signals` (`kl_source`, `of_step`) on the step that is running.

        From within the step, or from the `on_step_end` of a callback that stands before this one. Of several processes
        the first one decides for all, on what it observes: report means over all of them there.

        Raises:
            TypeError, ValueError: as `Regulator.observe`.
        """
        if self._running:
            self._regulator.observe(**signals)
        else:
            checked(**signals)  # refuses what is wrong, here where it comes in
            self._waiting.append(signals)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Settle the nominal warmup, go on where a checkpoint left off, and find the Trainer."""
        optimizer, schedule = kwargs.get("optimizer"), kwargs.get("lr_scheduler")
        if optimizer is None or schedule is None:
            found = f"optimizer={quoted(optimizer)} and lr_scheduler={quoted(schedule)}"
            raise ValueError(f"{found}: AdaptiveWarmupCallback needs both, let the Trainer make them.")
        self.on_epoch_end()  # what an exception in an earlier run may have left
        self._lrs, self._values = DrivenLrs(optimizer, schedule), Reader(self._read)
        trainer = calling_trainer(self)
        self._period = getattr(trainer, "updates_per_rollout", 1)
        updates = nominal_warmup(self._settings["warmup_steps"], self._lrs.schedule, args, state.max_steps)
        steps = math.ceil(updates / self._period)
        self.regulator = Regulator(Config(**{**self._settings, "warmup_steps": steps}))
        self._attach(trainer)
        self._stored = Stored(state)
        self._stored.resume(self.regulator, self._probe, self._period)
        for signals in self._waiting:
            self.regulator.observe(**signals)
        self._waiting, self._running = [], True
        if self._log_to is not None:
            self._log = DecisionLog.of(self._log_to, lr=self._lrs.peak)
            self._log.open(self.regulator.config)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Put our lr in place of the schedule's."""
        factor = self._regulator.decision.factor
        self._reader.begin()
        self._passing.begin()
        self._used = None
        self._lrs.begin(factor)
        if self._probe:
            self._probe.begin()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Cut this update if its gradient is an outlier; skip it if no lr would make it harmless."""
        if self._probe:
            self._probe.before()
        norm = self._passing.grad_norm
        if norm is None or self._too_late:
            return
        if self._values.is_late(norm):
            limit(self._lrs.optimizer, norm, self._regulator)
            return
        self._passing.grad_norm = norm = float(norm)  # read once
        cut = self._regulator.cut(norm)
        if cut < 1.0:
            self._lrs.drive(self._regulator.decision.factor * cut)
            if not math.isfinite(norm):
                self._lrs.optimizer.zero_grad()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Give the schedule its own lr back, and leave the lr that was used where the Trainer reads it for its log."""
        self._lrs.used()
        unlimited(self._lrs.optimizer)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide on the next step's factor, if the RL step is done."""
        self._used = self._regulator.decision
        if state.global_step % self._period == 0:
            self._decide(self._used, state, control)
        self._lrs.end()

    def _decide(self, used: Decision, state: TrainerState, control: TrainerControl) -> None:
        if self._probe:
            self._probe.after(self._regulator)
        arrived, step = self._values.arrived(), self._regulator.state.step
        passed = {"loss": self._passing.loss, "grad_norm": self._passing.grad_norm}
        for signals in (self._values.take(passed, step), arrived):
            self._regulator.observe(grad_norm=signals.get("grad_norm"))  # what `cut` compares with is of the same kind
            self._regulator.supply(**signals)
        self._regulator.supply(**self._values.take(self._reader.end(), step))
        lr = self._lrs.scheduled * used.factor * self._regulator.cut_share
        self._regulator.decide(self._lrs.scale)
        agree(self._regulator)
        decision = self._regulator.decision
        if self._log:
            self._log.write(self._regulator, lr=lr)
        if decision.phase != used.phase:
            _log.info("step %d, %s: %s", state.global_step, decision.phase, "; ".join(decision.reasons))
        if decision.stop:
            control.should_training_stop = True

    def on_log(self, *args: Any, model: Any = None, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take in what the trainer says in its training logs only; while it evaluates, its model is not training."""
        if self._running and getattr(model, "training", True):
            self._regulator.supply(**self._reader.logged(logs or {}))

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave no step open where a callback has cut the epoch short within one."""
        if self._running:
            self._lrs.put_back()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the Trainer as it was; what is observed from now on is for its next training.

        And let go of it: whoever keeps the callback for its decisions does not keep a model on an accelerator.
        """
        self._untap.close()
        self._running, self._probe = False, None
        self._reader.release()
        vars(self).pop("_lrs", None)

    @property
    def _regulator(self) -> Regulator:
        if self.regulator is None:
            raise RuntimeError("AdaptiveWarmupCallback was added while training ran: add it before trainer.train().")
        return self.regulator

    def _attach(self, trainer: Trainer | None) -> None:
        self._untap.close()
        self._reader = TrainerSignals(self._keys, trainer)
        if trainer is None:
            _log.warning("no transformers.Trainer runs this callback: report grad_norm and loss by observe() yourself")
            return
        check_alone(AdaptiveWarmupCallback, trainer)
        self._too_late = trainer.accelerator.distributed_type == "DEEPSPEED"  # its backward makes the update, too
        if not self._too_late and self._regulator.limits:
            self._values.tell(trainer.args.device, self._lrs.optimizer)
        tap(self._untap, trainer, "_get_grad_norm", self._passing.see_grad_norm)
        tap(self._untap, trainer, "training_step", self._passing.see_loss)
        tap(self._untap, trainer, "log", self._add_figures)
        tap(self._untap, trainer, "_save_checkpoint", self._save)
        self._probe = None
        if self._choice and self._regulator.config.law != "linear" and not self._reader.measures_kl:
            self._probe = TrainerProbe(self._choice, trainer, self._untap)

    def _add_figures(self, original: Callable[..., Any], logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        if "loss" in logs and self._used is not None:
            logs |= figures(self._regulator.config, self._used)
        return original(logs, *args, **kwargs)

    def _save(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A checkpoint has the schedule's own lr, also in the midst of a step (SIGTERM), and our state."""
        self._regulator.supply(**self._values.arrived())
        self._stored.store(self._regulator, self._probe)
        written = self._lrs.put_back()
        saved = original(*args, **kwargs)
        self._lrs.again(written)
        return saved
