"""`AdaptiveWarmupCallback` for Stable-Baselines3: pass it to `model.learn`, and its schedule warms up by feedback.

While `learn` runs, `model.lr_schedule` is the user's schedule times the factor. Stable-Baselines3 reads it as a
`train()` begins, which makes all the updates on one rollout: so one decision is taken for each `train()`. How far that
moved the policy is measured once it is done, on its rollout, since the logged `train/approx_kl` is on no one scale: a
mean over the last epoch, each mini-batch before its own update. On CartPole it reads 0.2 to 0.4 of the KL of the whole
`train()` at one epoch, and about all of it from four on (benchmarks/experiments/cartpole/approx_kl.py).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from adaptive_warmup.controller import Config, Decision, check_settings
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.integrations.figures import figures
from adaptive_warmup.regulator import Regulator

_log = logging.getLogger("adaptive_warmup")
_KEY = "adaptive_warmup"  # the attribute of the model that holds our state
_LOGGED = ("loss", "clip_fraction", "explained_variance")  # under train/


class AdaptiveWarmupCallback(BaseCallback):
    """Adaptive warmup: `model.learn(100_000, callback=AdaptiveWarmupCallback(warmup_steps=10, target_kl=0.02))`.

    A step is one `train()`: all the updates on one rollout. Reads of each the policy KL (k3, nats per action, over the
    rollout, after the last update), for one forward pass over it, in parts of the size of a mini-batch; the mean return
    of the episodes that ended in it (of environments in a `Monitor`); loss, clip fraction and explained variance. Where
    the rollout buffer is of a kind of its own (recurrent or masked policies) the KL is `train/approx_kl`. Off-policy
    algorithms have none: their warmup goes by return and loss.

    Logs `adaptive_warmup/*` (`integrations/figures.py`) beside the `train/*` of the same updates. `model.save` saves
    the state, as `model.adaptive_warmup`; on a model that has it, loaded or trained before, any callback goes on there.
    Without one such a model runs at its plain schedule.

    Args:
        warmup_steps: the nominal warmup, in `train()`s.
        log: a `DecisionLog`, or the path of one, to write each step into.
        settings: those of `Config` by name.

    Raises:
        TypeError, ValueError: a setting that is unknown or out of range; as `learn` begins, two of these on a model, or
            a log of another run.
    """

    def __init__(self, warmup_steps: int, *, log: DecisionLog | Path | str | None = None, **settings: Any) -> None:
        super().__init__()
        check_settings(settings)
        self.regulator = Regulator(Config(warmup_steps, **settings))
        if log is not None:
            DecisionLog.of(log)  # what is no log fails here; the run's own is made in learn(), where its lr is known
        self._log_to, self._log = log, cast("DecisionLog | None", None)
        self._returns: list[float] = []  # of the episodes that ended in the rollout
        self._rollout: tuple[Any, Any, Any] | None = None

    @property
    def decision(self) -> Decision:
        """The latest decision."""
        return self.regulator.decision

    def observe(self, **signals: Any) -> None:
        """Report any further signals of `Signals` on the rollout being collected. Raises as `Regulator.observe`."""
        self.regulator.observe(**signals)

    def _on_training_start(self) -> None:
        self.regulator.restart()
        if saved := getattr(self.model, _KEY, None):
            self.regulator.load_state_dict(saved)
        schedule: Any = self.model.lr_schedule
        if isinstance(schedule, _Warmed) and schedule.at_work:
            raise ValueError("two AdaptiveWarmupCallbacks on one model would both set the lr: remove one of them.")
        self._schedule = schedule.schedule if isinstance(schedule, _Warmed) else schedule  # left by an exception
        self._peak = max(self._schedule(k / 100) for k in range(101))
        if self._schedule(1.0) < 0.999 * self._peak:
            _log.warning("the model's lr schedule begins below its peak: if it warms up, it and this warmup multiply")
        if self._log_to is not None:
            self._log = DecisionLog.of(self._log_to, lr=self._peak)
            self._log.open(self.regulator.config)
        self.model.lr_schedule = _Warmed(self._schedule, self.regulator, self.model)
        self._updates = self.model._n_updates
        self._returns, self._rollout = [], None

    def _on_step(self) -> bool:
        self._returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return not self.decision.stop

    def _on_rollout_end(self) -> None:
        """Keep the rollout until it is learned from: the buffer itself starts afresh before we are called again."""
        buffer = getattr(self.model, "rollout_buffer", None)
        if isinstance(buffer, RolloutBuffer) and type(buffer) in (RolloutBuffer, DictRolloutBuffer):
            observations: Any = buffer.observations
            if isinstance(observations, dict):
                observations = dict(observations)  # this one is changed in place
            self._rollout = (observations, buffer.actions, buffer.log_probs)

    def _on_rollout_start(self) -> None:
        """Decide on the `train()` that came before, if one did."""
        if self.model._n_updates == self._updates:
            return
        self._epochs, self._updates = self.model._n_updates - self._updates, self.model._n_updates
        used, logged = self.decision, self.logger.name_to_value
        signals: dict[str, Any] = {name: logged.get(f"train/{name}") for name in _LOGGED}
        if self._returns:
            signals["task_reward"] = np.mean(self._returns)
        self.regulator.observe(**signals, **self._kl())
        self._returns, self._rollout = [], None
        scheduled = self._schedule(self.model._current_progress_remaining)
        self.regulator.decide(scheduled / self._peak if self._peak else 0.0)
        if self._log:
            self._log.write(self.regulator, lr=scheduled * used.factor)
        setattr(self.model, _KEY, self.regulator.state_dict())
        for name, value in figures(self.regulator.config, used).items():
            self.logger.record(name, value)

    def _on_training_end(self) -> None:
        self._on_rollout_start()
        self.model.lr_schedule = self._schedule

    def _kl(self) -> dict[str, Any]:
        """From the policy that collected the rollout to the policy now."""
        if self._rollout is None:  # what is logged: from the second epoch on, after an epoch's worth of updates
            source = self._source() if getattr(self.model, "n_epochs", 1) > 1 else "in_loop"
            return {"kl": self.logger.name_to_value.get("train/approx_kl"), "kl_source": source}
        self.model.policy.set_training_mode(False)
        rollout = tuple(_flat(part) for part in self._rollout)
        rows = len(rollout[-1])
        size = getattr(self.model, "batch_size", rows)  # what the updates have shown to fit into memory
        with torch.no_grad():
            kls = [self._k3(*(_cut(part, slice(at, at + size)) for part in rollout)) for at in range(0, rows, size)]
        return {"kl": torch.cat(kls).mean(), "kl_source": self._source()}

    def _k3(self, *part: Any) -> torch.Tensor:
        observations, actions, log_probs = (obs_as_tensor(values, self.model.device) for values in part)
        if isinstance(self.model.action_space, spaces.Discrete):
            actions = actions.long().flatten()  # type: ignore[union-attr]
        policy: Any = self.model.policy
        log_ratio: torch.Tensor = policy.evaluate_actions(observations, actions)[1] - log_probs
        return log_ratio.exp() - 1.0 - log_ratio

    def _source(self) -> str:
        """After the last update on the rollout, and after how many, if that is known."""
        model: Any = self.model
        if self._epochs != getattr(model, "n_epochs", None):  # A2C: a single one; stopped by the model's own target_kl
            return "post_update"
        return f"post_update:{model.n_epochs}x{math.ceil(model.n_steps * model.n_envs / model.batch_size)}"


class _Warmed:
    """The user's schedule, times the factor; in what `model.save` writes, the user's schedule alone."""

    def __init__(self, schedule: Callable[[float], float], regulator: Regulator, model: Any) -> None:
        self.schedule, self._regulator = schedule, regulator
        self._model, self._begun = model, model.start_time  # of this `learn`: an exception may leave us for the next

    @property
    def at_work(self) -> bool:
        """Whether the `learn` that runs is the one that it was made for."""
        return bool(self._model.start_time == self._begun)

    def __call__(self, progress_remaining: float) -> float:
        return self.schedule(progress_remaining) * (self._regulator.decision.factor if self.at_work else 1.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self.schedule,)


def _flat(rollout: Any) -> Any:
    """Steps and environments as one axis; of dicts, that of each entry."""
    if isinstance(rollout, dict):
        return {name: _flat(values) for name, values in rollout.items()}
    return rollout.reshape(-1, *rollout.shape[2:])


def _cut(rollout: Any, rows: slice) -> Any:
    """Some rows of what `_flat` gives."""
    return {name: values[rows] for name, values in rollout.items()} if isinstance(rollout, dict) else rollout[rows]
