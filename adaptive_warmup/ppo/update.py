"""What PPO learns from one rollout: the batch that the updates read, and the loss of a mini-batch.

Shapes: B episodes, T response positions, S positions of prompt and response together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adaptive_warmup.ppo.advantages import gae, kl_penalised_rewards, whiten
from adaptive_warmup.ppo.config import PPOConfig
from adaptive_warmup.ppo.generators import permutation
from adaptive_warmup.ppo.losses import (
    Total,
    clip_fraction,
    k1,
    k2,
    k3,
    masked,
    masked_mean,
    own,
    policy_loss,
    ratio,
    value_loss,
)
from adaptive_warmup.ppo.model import ActorCritic, LanguageModel, response_logprobs
from adaptive_warmup.ppo.rollout import Rollout

_ROUNDING = 1e-6  # returns that differ by less than this, relative to their mean or to 1, are the same


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

    def rows(self, index: Tensor | slice) -> Batch:
        """The episodes at `index`, such as a mini-batch."""
        return Batch(*(tensor[index] for tensor in self))


@torch.no_grad()
def assess(
    config: PPOConfig,
    model: ActorCritic,
    reference: LanguageModel,
    rollout: Rollout,
    rows: int | None = None,
    total: Total = own,
) -> Batch:
    """The log-probabilities, values, advantages and returns of a rollout, before any update.

    The policy's log-probabilities are those that it sampled with, where the rollout has them; and so are the values of
    a critic on its trunk.

    Args:
        rows: episodes in one forward; None for all.
        total: adds up over processes, whose advantages are whitened together.
    """
    mask_BT = rollout.response_mask_BT
    length, inputs = mask_BT.shape[1], (rollout.token_ids_BS, rollout.attention_mask_BS)
    logprobs_BT, values_BT = rollout.logprobs_BT, rollout.values_BT
    if logprobs_BT is None or (model.shared and values_BT is None):
        predicted_BT2 = _in_parts(rows, lambda *part: torch.stack(model(*part, length)[::2], -1), *inputs)
        logprobs_BT, values_BT = predicted_BT2.unbind(-1)
    elif values_BT is None:
        values_BT = _in_parts(rows, lambda *part: model.critic(*part, length), *inputs)
    reference_BT = _logprobs(reference, inputs, length, config.temperature, rows)
    kl_coef = config.kl_coef if config.kl_in == "reward" else 0.0
    rewards_BT = kl_penalised_rewards(rollout.scores_B, logprobs_BT, reference_BT, mask_BT, kl_coef)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, total, shift=False)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.gamma, config.lam)
    whitened_BT = whiten(advantages_BT, mask_BT, total)
    return Batch(*inputs, mask_BT, logprobs_BT, reference_BT, values_BT, whitened_BT, returns_BT)


def mini_batches(config: PPOConfig, episodes: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the episodes of each update: every episode once per epoch, in a new order."""
    for _ in range(config.epochs):
        yield from permutation(episodes, generator).chunk(config.mini_batches)


def mini_batch_losses(config: PPOConfig, model: ActorCritic, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The policy's loss, the critic's loss, and the in-loop metrics; all are means over the response tokens."""
    mask_BT, old_BT = batch.response_mask_BT, batch.old_logprobs_BT
    now = model(batch.token_ids_BS, batch.attention_mask_BS, mask_BT.shape[1], bool(config.entropy_coef))
    surrogate_inputs = now.logprobs_BT, old_BT, batch.advantages_BT, mask_BT, config.clip_range
    mean_entropy = masked_mean(now.entropy_BT, mask_BT)
    loss = policy_loss(*surrogate_inputs)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * mean_entropy
    if config.kl_in == "loss":
        pair = (masked(logprobs_BT, mask_BT) for logprobs_BT in (now.logprobs_BT, batch.reference_logprobs_BT))
        loss = loss + config.kl_coef * masked_mean(k3(*pair), mask_BT)
    critic_loss = value_loss(now.values_BT, batch.old_values_BT, batch.returns_BT, mask_BT, config.value_clip_range)
    with torch.no_grad():
        metrics = {
            "loss/policy_avg": loss.detach(),
            "loss/value_avg": critic_loss.detach(),
            "policy/entropy_avg": mean_entropy.detach(),
            "policy/approxkl_avg": masked_mean(k2(old_BT, now.logprobs_BT), mask_BT),
            "policy/clipfrac_avg": clip_fraction(*surrogate_inputs),
            "val/ratio": masked_mean(ratio(now.logprobs_BT, old_BT, mask_BT), mask_BT),
        }
    return loss, critic_loss, metrics


@torch.no_grad()
def policy_kl(
    config: PPOConfig, policy: LanguageModel, batch: Batch, rows: int | None = None, total: Total = own
) -> Tensor:
    """The step's policy KL: call it after the last mini-batch. One forward over the batch."""
    mask_BT = batch.response_mask_BT
    inputs = batch.token_ids_BS, batch.attention_mask_BS
    after_BT = _logprobs(policy, inputs, mask_BT.shape[1], config.temperature, rows)
    return masked_mean(k3(batch.old_logprobs_BT, after_BT), mask_BT, total)


@torch.no_grad()
def rollout_metrics(config: PPOConfig, scores_B: Tensor, batch: Batch, total: Total = own) -> dict[str, Tensor]:
    """The metrics of the rollout itself."""
    mask_BT, old_BT = batch.response_mask_BT, batch.old_logprobs_BT
    unforeseen_BT = batch.returns_BT - batch.old_values_BT
    tokens_3BT = torch.stack([k1(old_BT, batch.reference_logprobs_BT), batch.returns_BT, unforeseen_BT])
    counts = scores_B.new_tensor(len(scores_B)), scores_B.sum(), -masked(old_BT, mask_BT).sum(), mask_BT.sum()
    sums = total(torch.cat([masked(tokens_3BT, mask_BT).sum((-2, -1)), torch.stack(counts)]))
    score, surprise, length, kl = (sums[[4, 5, 6, 0]] / sums[3]).unbind()
    reference_kl, *centres = (sums[:3] / sums[6].clamp(min=1)).unbind()
    centred_2BT = tokens_3BT[1:] - torch.stack(centres)[:, None, None]
    spread, unexplained = total(masked(centred_2BT, mask_BT).square().sum((-2, -1))).unbind()
    least = sums[6] * _ROUNDING**2 * (1.0 + centres[0].square())
    kl_reward = -config.kl_coef * kl if config.kl_in == "reward" else torch.zeros_like(kl)
    return {
        "objective/scores": score,
        "objective/kl": kl,
        "objective/non_score_reward": kl_reward,
        "objective/rlhf_reward": score + kl_reward,
        "objective/entropy": surprise,
        "policy/reference_kl": reference_kl,
        "value/explained_variance": masked(1 - unexplained / spread, spread > least),
        "response_length": length,
    }


def _logprobs(
    policy: LanguageModel, inputs: tuple[Tensor, Tensor], length: int, temperature: float, rows: int | None
) -> Tensor:
    return _in_parts(rows, lambda ids, mask: response_logprobs(policy, ids, mask, length, temperature), *inputs)


def _in_parts(rows: int | None, function: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> Tensor:
    """`function` of so many rows at a time: the logits of all of them at once may not fit."""
    parts = zip(*(torch.split(tensor, rows or len(tensor)) for tensor in inputs), strict=True)
    return torch.cat([function(*part) for part in parts])
