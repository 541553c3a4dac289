"""From scores to advantages: the KL in the reward, GAE, whitening.

Pure functions of tensors without branches on data or in-place writes: they also run under `torch.func.vmap`. Shapes:
B sequences, T response positions. `response_mask_BT` is True at the tokens that the policy sampled; the environment's
tokens between them and the padding after them are skipped, as if they were not there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptive_warmup.ppo.losses import Total, k1, masked, masked_mean, own


def last_response_token(response_mask_BT: Tensor) -> Tensor:
    """True at the last sampled token of each row, (B, T)."""
    remaining_BT = response_mask_BT.flip(-1).cumsum(-1).flip(-1)  # sampled tokens from here on, this one included
    return response_mask_BT & (remaining_BT == 1)


def kl_penalised_rewards(
    scores_B: Tensor,
    logprobs_BT: Tensor,
    reference_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    kl_coef: float,
) -> Tensor:
    """The reward of each token, (B, T): -kl_coef * k1 to the reference, and the score at the last response token.

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, spread over the tokens. Zero at tokens that the policy did not
    sample: k1 there is no estimate of a KL, and it can be driven below zero to earn reward.
    """
    penalty_BT = masked(kl_coef * k1(logprobs_BT, reference_logprobs_BT), response_mask_BT)
    return masked(scores_B.unsqueeze(-1), last_response_token(response_mask_BT)) - penalty_BT


def gae(
    rewards_BT: Tensor, values_BT: Tensor, response_mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, each (B, T) and zero off the mask (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    The state after a response token is the next *response* token, however many tokens the environment inserts between.
    An episode that ran out of tokens ends as any other: its score has been given, so nothing is bootstrapped.
    """
    next_value_B = next_advantage_B = torch.zeros_like(values_BT[..., 0])
    backwards: list[Tensor] = []
    for t in reversed(range(values_BT.shape[-1])):
        mask_B, value_B = response_mask_BT[..., t], values_BT[..., t]
        delta_B = rewards_BT[..., t] + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        backwards.append(advantage_B)
        next_value_B = value_B.where(mask_B, next_value_B)
        next_advantage_B = advantage_B.where(mask_B, next_advantage_B)
    advantages_BT = masked(torch.stack(backwards[::-1], dim=-1), response_mask_BT)
    return advantages_BT, advantages_BT + masked(values_BT, response_mask_BT)


def whiten(values_BT: Tensor, mask_BT: Tensor, total: Total = own, shift: bool = True) -> Tensor:
    """`values_BT` shifted and scaled to mean 0 and variance 1 over the mask; zero off it, and next to it if constant.

    Without `shift` the mean stays what it was.
    """
    mean = masked_mean(values_BT, mask_BT, total)
    centred_BT = values_BT - mean
    variance = masked_mean(centred_BT.square(), mask_BT, total)
    scaled_BT = centred_BT * (variance + 1e-8 + (1e-5 * mean).square()).rsqrt()  # the last: a large mean's rounding
    return masked(scaled_BT if shift else scaled_BT + mean, mask_BT)
