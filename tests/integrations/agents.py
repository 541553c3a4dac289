"""PPO and A2C on CartPole under torchrl's own trainers, small."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import GymWrapper, RewardSum, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss
from torchrl.trainers.algorithms.a2c import A2CTrainer
from torchrl.trainers.algorithms.ppo import PPOTrainer

PEAK = 0.01
ENVIRONMENTS = 4
EPOCHS = 2
SUB_BATCHES = 4
logging.getLogger("torchrl").setLevel(logging.WARNING)


def parts(kind: str, frames: int, batches: int, lr: float, width: int) -> dict[str, Any]:
    same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    simulator = gymnasium.make_vec("CartPole-v1", ENVIRONMENTS, vectorization_mode="sync", vector_kwargs=same_step)
    env = TransformedEnv(GymWrapper(simulator, categorical_action_encoding=True), RewardSum())
    env.set_seed(0)
    actor = ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)), ["observation"], ["logits"]
        ),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1)), in_keys=["observation"])
    if kind == "ppo":
        loss: Any = ClipPPOLoss(actor, critic, entropy_coeff=0.0, critic_coeff=0.5, normalize_advantage=True)
    else:
        loss = A2CLoss(actor, critic, entropy_coeff=0.0, critic_coeff=0.5)
    return {
        "collector": Collector(env, actor, frames_per_batch=frames, total_frames=frames * batches),
        "total_frames": frames * batches,
        "frame_skip": 1,
        "optim_steps_per_batch": None,
        "loss_module": loss,
        "optimizer": torch.optim.Adam(loss.parameters(), lr=lr),
        "clip_norm": 0.5,
        "num_epochs": EPOCHS,
        "replay_buffer": ReplayBuffer(
            storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=frames // SUB_BATCHES
        ),
        "progress_bar": False,
        "enable_logging": False,
    }


def trainer(
    kind: str = "ppo", frames: int = 64, batches: int = 6, lr: float = PEAK, width: int = 16, **settings: Any
) -> Any:
    """A `PPOTrainer` or `A2CTrainer` of torchrl's: `batches` batches of `frames` steps, 8 updates on each."""
    torch.manual_seed(0)
    maker = PPOTrainer if kind == "ppo" else A2CTrainer
    return maker(**{**parts(kind, frames, batches, lr, width), **settings})
