"""`PPOTrainer`: PPO for language models as a `transformers.Trainer`, on the pieces of `adaptive_warmup.ppo`."""

from __future__ import annotations

from adaptive_warmup.integrations.ppo_trainer.config import PPOConfig
from adaptive_warmup.integrations.ppo_trainer.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
