"""What PPO learns from one rollout: the batch that the updates read, and the loss of a mini-batch.

Shapes: B episodes, T response positions, S positions of prompt and response together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptive_warmup.ppo.advantages import gae, kl_penalised_rewards, whiten
from adaptive_warmup.ppo.config import PPOConfig
from adaptive_warmup.ppo.losses import clip_fraction, k1, k2, k3, masked_mean, policy_loss, value_loss
from adaptive_warmup.ppo.model import ActorCritic, response_logprobs
from adaptive_warmup.ppo.rollout import Rollout


class Batch(NamedTuple):
    """A rollout with all that the updates need; `old` is the policy and the critic before the first of them."""

    token_ids_BS: Tensor
    attention_mask_BS: Tensor
    response_mask_BT: Tensor
    old_logprobs_BT: Tensor
    reference_logprobs_BT: Tensor
    old_values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    def rows(self, index: Tensor) -> Batch:
        """A mini-batch: the episodes at `index`."""
        return Batch(*(tensor[index] for tensor in self))


@torch.no_grad()
def assess(config: PPOConfig, model: ActorCritic, reference: PreTrainedModel, rollout: Rollout) -> Batch:
    """The log-probabilities, values, advantages and returns of a rollout, before any update."""
    mask_BT = rollout.response_mask_BT
    inputs = rollout.token_ids_BS, rollout.attention_mask_BS, mask_BT.shape[1]
    logprobs_BT, _, values_BT = model(*inputs)
    reference_BT = response_logprobs(reference, *inputs, config.temperature)
    kl_coef = config.kl_coef if config.kl_in == "reward" else 0.0
    rewards_BT = kl_penalised_rewards(rollout.scores_B, logprobs_BT, reference_BT, mask_BT, kl_coef)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.gamma, config.lam)
    return Batch(*inputs[:2], mask_BT, logprobs_BT, reference_BT, values_BT, whiten(advantages_BT, mask_BT), returns_BT)


def mini_batch_losses(config: PPOConfig, model: ActorCritic, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The policy's loss, the critic's loss, and the in-loop metrics."""
    mask_BT, old_BT = batch.response_mask_BT, batch.old_logprobs_BT
    now = model(batch.token_ids_BS, batch.attention_mask_BS, mask_BT.shape[1])
    surrogate_inputs = now.logprobs_BT, old_BT, batch.advantages_BT, mask_BT, config.clip_range
    mean_entropy = masked_mean(now.entropy_BT, mask_BT)
    loss = policy_loss(*surrogate_inputs)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * mean_entropy
    if config.kl_in == "loss":
        loss = loss + config.kl_coef * masked_mean(k3(now.logprobs_BT, batch.reference_logprobs_BT), mask_BT)
    critic_loss = value_loss(now.values_BT, batch.old_values_BT, batch.returns_BT, mask_BT, config.value_clip_range)
    with torch.no_grad():
        metrics = {
            "loss/policy_avg": loss.detach(),
            "loss/value_avg": critic_loss.detach(),
            "policy/entropy_avg": mean_entropy.detach(),
            "policy/approxkl_avg": masked_mean(k2(old_BT, now.logprobs_BT), mask_BT),
            "policy/clipfrac_avg": clip_fraction(*surrogate_inputs),
            "val/ratio": masked_mean((now.logprobs_BT - old_BT).exp(), mask_BT),
        }
    return loss, critic_loss, metrics


@torch.no_grad()
def rollout_metrics(config: PPOConfig, policy: PreTrainedModel, rollout: Rollout, batch: Batch) -> dict[str, Tensor]:
    """The metrics of the rollout itself, and the step's policy KL: call it after the last mini-batch."""
    mask_BT, old_BT, length = batch.response_mask_BT, batch.old_logprobs_BT, batch.response_mask_BT.shape[1]
    after_BT = response_logprobs(policy, batch.token_ids_BS, batch.attention_mask_BS, length, config.temperature)
    reference_k1_BT = k1(old_BT, batch.reference_logprobs_BT).where(mask_BT, 0.0)
    kl = reference_k1_BT.sum(-1).mean()
    kl_reward = -config.kl_coef * kl if config.kl_in == "reward" else torch.zeros_like(kl)
    score = rollout.scores_B.mean()
    returns, errors = batch.returns_BT[mask_BT], (batch.returns_BT - batch.old_values_BT)[mask_BT]
    spread = returns.var(correction=0)
    explained = 1 - errors.var(correction=0) / spread
    return {
        "objective/scores": score,
        "objective/kl": kl,
        "objective/non_score_reward": kl_reward,
        "objective/rlhf_reward": score + kl_reward,
        "objective/entropy": -old_BT.where(mask_BT, 0.0).sum(-1).mean(),
        "policy/kl": masked_mean(k3(old_BT, after_BT), mask_BT),
        "policy/reference_kl": masked_mean(reference_k1_BT, mask_BT),
        "value/explained_variance": explained.where(spread > 0, 0.0),
        "response_length": mask_BT.sum(-1).float().mean(),
    }
