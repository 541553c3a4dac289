"""PPO under torchrl: its own `PPOTrainer`, next to torchrl's own `KLAdaptiveLR`."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import gymnasium
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import GymWrapper, RewardSum, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, KLAdaptiveLR
from torchrl.trainers.algorithms.ppo import PPOTrainer

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.integrations.torchrl import AdaptiveWarmupHook, mean_return, policy_kl
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

FRAMES = ENVIRONMENTS * STEPS
logging.getLogger("torchrl").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*experimental/prototype.*")


class Record:
    """The mean return of the episodes that ended in each batch, and the lr and the KL of its updates."""

    def __init__(self, trainer: PPOTrainer, rule: KLAdaptiveLR | None) -> None:
        self.trainer, self.rule, self.steps = trainer, rule, []
        trainer.register_op("pre_epoch", self._keep)
        trainer.register_op("post_optim_complete_log", self._read)

    def _keep(self, batch: Any) -> Any:
        self.batch = batch
        return batch

    def _read(self, *_: Any) -> None:
        with torch.no_grad():
            kl = float(policy_kl(self.trainer.loss_module(self.batch)))
        lr = self.trainer.optimizer.param_groups[0]["lr"]
        self.steps.append({"return": mean_return(self.batch), "lr": lr, "kl": kl})
        if self.rule:
            self.rule.step(kl)


def train(run: Run) -> list[dict[str, Any]]:
    torch.manual_seed(run.seed)
    trainer = PPOTrainer(**parts(run), num_epochs=EPOCHS, gamma=0.99, lmbda=0.95, clip_norm=0.5, total_frames=total())
    rule = KLAdaptiveLR(trainer.optimizer, TARGET_KL, max_lr=run.lr) if run.arm.name.startswith("KL") else None
    record = Record(trainer, rule)
    if run.arm.name == "adaptive":
        warmup = AdaptiveWarmup(trainer.optimizer, WARMUP, target_kl=TARGET_KL, min_target_kl=TARGET_KL)
        AdaptiveWarmupHook(warmup).register(trainer)
    trainer.train()
    return record.steps


def total() -> int:
    return ROLLOUTS * FRAMES


def parts(run: Run) -> dict[str, Any]:
    """All that the trainer is made of."""
    options = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    simulator = gymnasium.make_vec("CartPole-v1", ENVIRONMENTS, vectorization_mode="sync", vector_kwargs=options)
    env = TransformedEnv(GymWrapper(simulator, categorical_action_encoding=True), RewardSum())
    env.set_seed(run.seed)
    actor = ProbabilisticActor(
        TensorDictModule(network(2), ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(network(1), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.0, critic_coeff=0.5, normalize_advantage=True)
    return {
        "collector": Collector(env, actor, frames_per_batch=FRAMES, total_frames=total()),
        "frame_skip": 1,
        "optim_steps_per_batch": None,
        "loss_module": loss,
        "optimizer": torch.optim.Adam(loss.parameters(), lr=first_lr(run)),
        "replay_buffer": ReplayBuffer(
            storage=LazyTensorStorage(FRAMES), sampler=SamplerWithoutReplacement(), batch_size=MINIBATCH
        ),
        "progress_bar": False,
        "enable_logging": False,
    }


def first_lr(run: Run) -> float:
    return run.lr if run.arm.name == "adaptive" else run.lr * run.arm.start  # adaptive: the hook's own factor


def network(outputs: int) -> nn.Sequential:
    first, second = WIDTHS
    return nn.Sequential(
        nn.Linear(4, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, outputs)
    )
