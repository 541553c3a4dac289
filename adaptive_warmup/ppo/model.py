"""The policy's log-probabilities and the critic's values at the response tokens, from one forward of each.

Shapes: B sequences, S positions of prompt and response together, T response positions (the last T of S), V
vocabulary, D hidden size. What belongs to response token t is read at the position before it: its logits, and the
value of the state in which it was chosen.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptive_warmup.ppo.losses import entropy


class Prediction(NamedTuple):
    """What PPO needs of policy and critic at each response token, each (B, T) in fp32.

    Attributes:
        logprobs_BT: log-probability, in nats, of the token that stands there.
        entropy_BT: entropy, in nats, of the distribution that it was drawn from.
        values_BT: the critic's estimate of the return from there on.
    """

    logprobs_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor


class ValueHead(nn.Module):
    """A scalar head. As a critic by itself it reads the policy's last hidden states: a shared trunk.

    It starts at zero, so that the first advantages are the returns and not the noise of an untrained critic.

    Args:
        hidden_size: the width D of what it reads.
        trunk_gradient: the share of the value loss's gradient that goes on into the trunk; 0 leaves a shared trunk to
            the policy alone. The default is the `vf_coef` of TRL's PPO.
    """

    def __init__(self, hidden_size: int, trunk_gradient: float = 0.1) -> None:
        super().__init__()
        self.trunk_gradient = trunk_gradient
        self.weight_D = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Values, (B, T), in fp32."""
        hidden_BTD = hidden_BTD.detach().lerp(hidden_BTD, self.trunk_gradient)
        return hidden_BTD.float() @ self.weight_D.float() + self.bias


class ValueModel(nn.Module):
    """A critic with a transformer of its own (Search-R1's kind): `backbone`, any transformers model without a head."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ValueHead(backbone.config.hidden_size, trunk_gradient=1.0).to(backbone.device)

    @classmethod
    def copy_of(cls, policy: PreTrainedModel) -> ValueModel:
        """A critic that starts from what the policy knows: a copy of the policy's transformer."""
        return cls(copy.deepcopy(cast(PreTrainedModel, policy.base_model)))

    def forward(self, token_ids_BS: Tensor, attention_mask_BS: Tensor, response_length: int) -> Tensor:
        """Values, (B, T), in fp32."""
        positions_BS = position_ids(attention_mask_BS)
        output = self.backbone(
            input_ids=token_ids_BS, attention_mask=attention_mask_BS, position_ids=positions_BS, use_cache=False
        )
        return cast(Tensor, self.head(output.last_hidden_state[:, -response_length - 1 : -1]))


class ActorCritic(nn.Module):
    """Policy and critic behind one call; the critic is a `ValueModel`, or a `ValueHead` on the policy's own trunk."""

    def __init__(self, policy: PreTrainedModel, critic: ValueModel | ValueHead, temperature: float = 1.0) -> None:
        super().__init__()
        self.policy, self.critic, self.temperature = policy, critic, temperature

    def forward(self, token_ids_BS: Tensor, attention_mask_BS: Tensor, response_length: int) -> Prediction:
        """Log-probabilities, entropies and values at the last `response_length` positions."""
        shared = isinstance(self.critic, ValueHead)
        logits_BTV, hidden_BTD = _response_logits(self.policy, token_ids_BS, attention_mask_BS, response_length, shared)
        logits_BTV = logits_BTV / self.temperature
        if hidden_BTD is not None:
            values_BT = self.critic(hidden_BTD)
        else:
            values_BT = self.critic(token_ids_BS, attention_mask_BS, response_length)
        chosen_BT = _chosen_logprobs(logits_BTV, token_ids_BS[:, -response_length:])
        return Prediction(chosen_BT, entropy(logits_BTV), values_BT)


def response_logprobs(
    policy: PreTrainedModel,
    token_ids_BS: Tensor,
    attention_mask_BS: Tensor,
    response_length: int,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probabilities, in nats, of the last `response_length` tokens under the policy alone: (B, T) in fp32."""
    logits_BTV, _ = _response_logits(policy, token_ids_BS, attention_mask_BS, response_length, hidden=False)
    return _chosen_logprobs(logits_BTV / temperature, token_ids_BS[:, -response_length:])


def position_ids(attention_mask_BS: Tensor) -> Tensor:
    """Positions counted from each row's first real token, (B, S), so that left padding moves nothing."""
    return (attention_mask_BS.cumsum(-1) - 1).clamp(min=0)


def _response_logits(
    policy: PreTrainedModel, token_ids_BS: Tensor, attention_mask_BS: Tensor, response_length: int, hidden: bool
) -> tuple[Tensor, Tensor | None]:
    output = policy(
        input_ids=token_ids_BS,
        attention_mask=attention_mask_BS,
        position_ids=position_ids(attention_mask_BS),
        use_cache=False,
        logits_to_keep=response_length + 1,
        output_hidden_states=hidden,
    )
    before = slice(-response_length - 1, -1)
    return output.logits[:, before].float(), output.hidden_states[-1][:, before] if hidden else None


def _chosen_logprobs(logits_BTV: Tensor, token_ids_BT: Tensor) -> Tensor:
    return logits_BTV.gather(-1, token_ids_BT.unsqueeze(-1)).squeeze(-1) - logits_BTV.logsumexp(-1)
