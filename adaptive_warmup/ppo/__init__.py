"""A small, whole PPO loop for language models: the plain torch kind, for any transformers policy and any `Environment`.

`PPO` runs it; its pieces are plain functions, for loops of your own.
"""

from __future__ import annotations

from adaptive_warmup.ppo.advantages import gae, kl_penalised_rewards, whiten
from adaptive_warmup.ppo.config import PPOConfig
from adaptive_warmup.ppo.environment import Environment, Problem, Split
from adaptive_warmup.ppo.loop import PPO
from adaptive_warmup.ppo.losses import (
    clip_fraction,
    entropy,
    k1,
    k2,
    k3,
    masked_mean,
    policy_loss,
    value_loss,
)
from adaptive_warmup.ppo.metrics import METRICS
from adaptive_warmup.ppo.model import ActorCritic, Prediction, ValueHead, ValueModel, response_logprobs
from adaptive_warmup.ppo.rollout import Episodes, Rollout, rollout, sample_episodes
from adaptive_warmup.ppo.update import Batch, assess, mini_batch_losses, mini_batches, policy_kl, rollout_metrics

__all__ = [
    "METRICS",
    "PPO",
    "ActorCritic",
    "Batch",
    "Environment",
    "Episodes",
    "PPOConfig",
    "Prediction",
    "Problem",
    "Rollout",
    "Split",
    "ValueHead",
    "ValueModel",
    "assess",
    "clip_fraction",
    "entropy",
    "gae",
    "k1",
    "k2",
    "k3",
    "kl_penalised_rewards",
    "masked_mean",
    "mini_batch_losses",
    "mini_batches",
    "policy_kl",
    "policy_loss",
    "response_logprobs",
    "rollout",
    "rollout_metrics",
    "sample_episodes",
    "value_loss",
    "whiten",
]
