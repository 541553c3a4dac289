"""The driver's side: verl's synchronous PPO trainer, which decides after each RL step what the next one runs at."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from adaptive_warmup.integrations.verl import VENDOR
from adaptive_warmup.integrations.verl.carried import FACTOR, SCHEDULED
from adaptive_warmup.integrations.verl.options import Options
from adaptive_warmup.integrations.verl.rollouts import policy_kl, reward_metrics
from adaptive_warmup.integrations.verl.warmup import Warmup

_log = logging.getLogger("adaptive_warmup")
_FILE = "adaptive_warmup.json"  # of our state, in verl's checkpoints
_MODELS = {"actor": "actor_rollout_ref.actor", "critic": "critic"}  # where verl's config has the models


@register_trainer(VENDOR)
class AdaptiveWarmupTrainer(PPOTrainerSync):  # type: ignore[misc]  # verl is untyped
    """`trainer.v1.trainer_mode=adaptive_warmup`: verl's `sync`, with adaptive warmup of the actor and the critic.

    A step is one RL step: all the updates on one rollout. The decision goes to every worker with the batch, and the
    engines there apply it to verl's own schedule. Options are those of `Options`, under `adaptive_warmup`.

    Reads verl's metrics of the step, by `adaptive_warmup.readers.keys`, and measures the policy KL when its updates are
    done, for one pass over `kl_sequences` of its rollout. Logs `adaptive_warmup/*` (`integrations/figures.py`) and the
    lr that the step used, the critic's as `adaptive_warmup/critic/*`. `actor/lr` and `critic/lr` are the lr of the next
    step, as ever in verl, times its factor. The state is in verl's checkpoints.

    Raises:
        TypeError, ValueError: an option that is unknown or out of range; an engine that this cannot drive.
    """

    total_training_steps: int

    def __init__(self, config: DictConfig) -> None:
        said = OmegaConf.select(config, VENDOR)
        self._options = Options.of(OmegaConf.to_container(said, resolve=True) if OmegaConf.is_config(said) else said)
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # all that verl knows of another name is that it is not this
        super().__init__(config)
        self._models = {role: _MODELS[role] for role in _MODELS if role == "actor" or self.use_critic}
        for model in self._models.values():
            if (strategy := OmegaConf.select(config, f"{model}.strategy")) not in ("fsdp", "fsdp2"):
                raise ValueError(f"{model}.strategy={strategy}: adaptive_warmup drives fsdp and fsdp2, choose one.")
        self._scheduled: dict[str, float] = {}  # the lrs of the running step without factors, by model

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        """One RL step, and the decision on the next one's factors."""
        self._scheduled = {}
        batch = super().step(metrics, timing_raw)
        read = metrics | reward_metrics(batch, kl_in_reward=self.config.algorithm.use_kl_in_reward)
        for role, scheduled in self._scheduled.items():
            warmup = self._warmups[role]
            metrics |= warmup.end_step(scheduled, read, self._measured_kl(batch) if role == "actor" else None)
            metrics[f"{role}/lr"] *= warmup.decision.factor
        if any(warmup.decision.stop for warmup in self._warmups.values()):  # the next step is the last, and is saved
            self.total_training_steps = min(self.total_training_steps, self.global_steps + 1)
        return batch

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        return self._update("actor", super()._update_actor, batch, metrics)

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        return self._update("critic", super()._update_critic, batch, metrics)

    def _update(self, role: str, update: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info[FACTOR] = self._warmups[role].decision.factor
        batch = update(batch, metrics)
        scheduled = metrics.pop(f"{role}/{SCHEDULED}", None)
        if scheduled is None:
            raise RuntimeError(
                f"the {role}'s workers did not apply the warmup, their engine is another one: set VERL_ENGINE_VENDOR to"
                f" {VENDOR} for them, by +ray_kwargs.ray_init.runtime_env.env_vars.VERL_ENGINE_VENDOR={VENDOR}."
            )
        self._scheduled[role] = float(scheduled)
        return batch

    def _measured_kl(self, batch: Any) -> float | None:
        corrected = self.config.algorithm.get("rollout_correction") or {}
        bypassed = corrected.get("bypass_mode")  # the old log-probs are another engine's
        if not self._options.kl_sequences or bypassed:
            return None
        rollout = self.config.actor_rollout_ref.rollout
        return policy_kl(self.actor_rollout_wg, batch, self._options.kl_sequences, rollout)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        saved = self._saved()
        if self.global_steps and not saved:
            _log.warning("the checkpoint has no adaptive_warmup state: going on from the nominal warmup")
        delay = max(self.config.trainer.critic_warmup - 1, 0)  # steps in which verl updates the critic only
        updates = {"actor": max(self.global_steps - delay, 0), "critic": self.global_steps}
        self._warmups = {}
        for role, model in self._models.items():
            optim = OmegaConf.select(self.config, f"{model}.optim")
            log = self._options.log if role == "actor" else None
            self._warmups[role] = Warmup(role, self._options.config(role, optim), optim.lr, log)
            self._warmups[role].begin(saved.get(role), updates[role])
            _log.info("%s: %s", role, self._warmups[role].regulator.config)

    def _save_checkpoint(self) -> None:
        """Ours first: verl's own then ends with the note that makes the checkpoint the latest."""
        path = Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}", _FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        states = {role: warmup.regulator.state_dict() for role, warmup in self._warmups.items()}
        path.with_suffix(".tmp").write_text(json.dumps(states), encoding="utf-8")
        os.replace(path.with_suffix(".tmp"), path)
        super()._save_checkpoint()

    def _saved(self) -> dict[str, Any]:
        trainer = self.config.trainer
        latest = Path(trainer.default_local_dir, f"global_step_{self.global_steps}")
        path = (Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else latest) / _FILE
        states: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return states if self.global_steps else {}
