"""The settings of the PPO loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of `PPO`; the defaults are Search-R1's, where a toy-sized run can have them.

    Attributes:
        batch_size: episodes per RL step.
        mini_batches: equal parts of the batch, one optimizer update each.
        epochs: passes over the batch per RL step.
        learning_rate: the policy's peak; what the scheduler makes of it is its own affair.
        value_learning_rate: the critic's.
        clip_range: of the probability ratio in the policy loss.
        value_clip_range: how far a value may move from its old one before the value loss stops pulling.
        kl_coef: weight of the KL to the reference, per nat.
        kl_in: "reward" (k1 per token, Search-R1's choice) or "loss" (k3, mean over response tokens).
        gamma: discount per response token.
        lam: lambda of GAE.
        whiten_rewards: scale the rewards of all tokens, the KL's part included, to variance 1 over the batch.
        entropy_coef: weight of the entropy bonus in the policy loss.
        max_grad_norm: L2 norm to which policy and value gradients are clipped, each by itself.
        betas: AdamW's.
        weight_decay: AdamW's.
        max_response_tokens: positions after the prompt, the environment's insertions included.
        temperature: of the sampling, and so of the policy that is trained.
        seed: everything random derives from it.

    Raises:
        ValueError: a setting is out of its range.
    """

    batch_size: int = 64
    mini_batches: int = 2
    epochs: int = 1
    learning_rate: float = 1e-3
    value_learning_rate: float = 1e-3
    clip_range: float = 0.2
    value_clip_range: float = 0.5
    kl_coef: float = 0.001
    kl_in: Literal["reward", "loss"] = "reward"
    gamma: float = 1.0
    lam: float = 1.0
    whiten_rewards: bool = False
    entropy_coef: float = 0.0
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_response_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "mini_batches", "epochs", "max_response_tokens"):
            self._require(name, getattr(self, name) >= 1, "a count of 1 or more")
        for name in ("clip_range", "value_clip_range", "max_grad_norm", "temperature"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a positive, finite number")
        for name in ("learning_rate", "value_learning_rate", "kl_coef", "entropy_coef", "weight_decay"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a finite number, 0 or more")
        for name in ("gamma", "lam"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers, each from 0 to below 1")
        self._require("kl_in", self.kl_in in ("reward", "loss"), '"reward" or "loss"')
        whole = self.batch_size % self.mini_batches == 0
        self._require("mini_batches", whole, f"a divisor of batch_size={self.batch_size}")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r}: give {remedy}")
