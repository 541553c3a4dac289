"""What Stable-Baselines3 logs as `train/approx_kl`, against the KL of the whole `train()` as the callback has it."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from adaptive_warmup.integrations.stable_baselines3 import AdaptiveWarmupCallback

SETTINGS = (  # epochs, mini-batches in each, lr; rollouts of 2048 steps
    (1, 4, 1e-3),
    (1, 32, 1e-3),
    (4, 8, 1e-3),
    (10, 32, 3e-4),
)


class Pairs(BaseCallback):
    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        super().__init__()
        self.warmup, self.pairs = warmup, []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if signals := self.warmup.regulator.signals:
            self.pairs.append((self.logger.name_to_value["train/approx_kl"], signals.kl))


def main() -> None:
    torch.set_num_threads(1)
    for epochs, batches, lr in SETTINGS:
        measure = AdaptiveWarmupCallback(1, law="linear")
        pairs = Pairs(measure)
        env = make_vec_env("CartPole-v1", 4, seed=0)
        settings = {"n_steps": 512, "batch_size": 2048 // batches, "n_epochs": epochs, "learning_rate": lr}
        model = PPO("MlpPolicy", env, seed=0, device="cpu", **settings)
        model.learn(10 * 2048, callback=[measure, pairs], log_interval=1000)
        logged, measured = np.array(pairs.pairs).T
        ratio = np.median(logged / measured)
        print(f"{epochs:2} epochs of {batches:2} mini-batches, lr {lr:g}: approx_kl reads {ratio:.2f} of the KL")


if __name__ == "__main__":
    main()
