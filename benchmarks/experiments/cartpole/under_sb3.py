"""PPO under Stable-Baselines3: its own `learn`."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from adaptive_warmup.integrations.stable_baselines3 import AdaptiveWarmupCallback
from benchmarks.experiments.cartpole.sweep import (
    ENVIRONMENTS,
    EPOCHS,
    MINIBATCH,
    ROLLOUTS,
    STEPS,
    TARGET_KL,
    WARMUP,
    WIDTHS,
    Run,
)


class Record(BaseCallback):
    """The mean return of the episodes that ended in each rollout, and the lr and the KL of its updates."""

    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        super().__init__()
        self.warmup, self.steps, self.returns = warmup, [], []

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        mean = float(np.mean(self.returns)) if self.returns else None
        self.steps.append({"return": mean, "lr": None, "kl": None})
        self.returns = []

    def _on_rollout_start(self) -> None:
        if self.steps:
            self.steps[-1]["lr"] = self.model.policy.optimizer.param_groups[0]["lr"]
            self.steps[-1]["kl"] = self.warmup.regulator.signals.kl

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def train(run: Run) -> list[dict[str, Any]]:
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", ENVIRONMENTS, seed=run.seed),
        learning_rate=run.lr,
        n_steps=STEPS,
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        policy_kwargs={"net_arch": list(WIDTHS)},
        seed=run.seed,
        device="cpu",
    )
    if run.arm.name == "adaptive":
        warmup = AdaptiveWarmupCallback(WARMUP, target_kl=TARGET_KL, min_target_kl=TARGET_KL)
    else:  # at warmup_steps=1 the blind law leaves the lr alone: here to measure the KL
        warmup = AdaptiveWarmupCallback(1, law="linear")
    record = Record(warmup)
    model.learn(ROLLOUTS * ENVIRONMENTS * STEPS, callback=[warmup, record], log_interval=1000)
    return record.steps
