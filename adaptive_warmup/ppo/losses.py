"""PPO's losses and the KL estimators, as pure functions of tensors.

None branches on data or writes in place, so each also runs under `torch.func.vmap` (many runs stacked in one tensor).
Shapes: B sequences, T response positions, V vocabulary. Masks are True at the tokens that count.

Sources: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347); Schulman 2020,
"Approximating KL divergence" (joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Total = Callable[[Tensor], Tensor]


def own(sums: Tensor) -> Tensor:
    """The `Total` of one process: its own sums. Of several it adds them up over all, so that means are over all."""
    return sums


def k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """KL(policy || other) per token, -log r with r = other / policy: unbiased, of high variance, either sign.

    Its mean is non-negative only over tokens sampled from the policy itself, so a mean clearly below zero says that
    other tokens were counted. In nats, of the inputs' shape; `logprobs` belongs to the policy that sampled.
    """
    return logprobs - other_logprobs


def k2(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """KL(policy || other) per token, (log r)^2 / 2: biased, of low variance, never negative. In nats."""
    return (other_logprobs - logprobs).square() / 2


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """KL(policy || other) per token, (r - 1) - log r: unbiased, of low variance, never negative. In nats."""
    log_r = other_logprobs - logprobs
    return log_r.expm1() - log_r  # expm1: near r = 1 the plain form loses every digit


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, else 0. No `where` with a number: on a GPU that copies it there, and waits."""
    return values.masked_fill(~mask, 0.0)


def masked_mean(values: Tensor, mask: Tensor, total: Total = own) -> Tensor:
    """The mean of `values` where `mask` is True, over all dimensions; 0 where the mask is empty."""
    return total(masked(values, mask).sum()) / total(mask.sum()).clamp(min=1)


def ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The importance ratio of each token, 1 off the mask: what overflows there would make NaN of every gradient."""
    return masked(logprobs_BT - old_logprobs_BT, mask_BT).exp()


def policy_loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip_range: float
) -> Tensor:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), negated and averaged over the response tokens."""
    ratio_BT = ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    return -masked_mean((ratio_BT * advantages_BT).minimum(clipped_BT * advantages_BT), mask_BT)


def clip_fraction(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip_range: float
) -> Tensor:
    """The share of response tokens at which the clipped branch of the surrogate is the smaller (no gradient there)."""
    ratio_BT = ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    return masked_mean((clipped_BT * advantages_BT < ratio_BT * advantages_BT).float(), mask_BT)


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip_range: float
) -> Tensor:
    """Half the squared error to the return, the worse of the value and the value clipped to its old one +- the range.

    The clipping is that of the PPO authors' own code (openai/baselines, ppo2), not of the paper.
    """
    clipped_BT = values_BT.clamp(old_values_BT - clip_range, old_values_BT + clip_range)
    error_BT = (values_BT - returns_BT).square().maximum((clipped_BT - returns_BT).square())
    return masked_mean(error_BT, mask_BT) / 2


def entropy(logits: Tensor) -> Tensor:
    """The entropy, in nats, of the softmax over the last dimension: (..., V) to (...)."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
