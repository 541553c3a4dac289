"""The policy's log-probabilities and the critic's values at the response tokens, from one forward of each.

Shapes: B sequences, S positions of prompt and response together, T response positions (the last T of S), V
vocabulary, D hidden size. What belongs to response token t is read at the position before it: its logits, and the
value of the state in which it was chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from adaptive_warmup.ppo.losses import entropy

_TRIED = 8  # tokens that a policy is tried on
_ROUNDING = 0.1  # of their log-probabilities' spread, in 16 bits; padding that counts moves them by more than twice it

LanguageModel = Callable[..., Any]
"""Called as a causal LM of transformers, and answers as one."""


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
        self.bias = nn.Parameter(torch.zeros(1))  # FSDP shards no scalars

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Values, (B, T), in fp32."""
        hidden_BTD = hidden_BTD.detach().lerp(hidden_BTD, self.trunk_gradient)
        # No matrix product: autocast would make it one of half precision, too coarse for a value.
        return (hidden_BTD.float() * self.weight_D.float()).sum(-1) + self.bias


class ValueModel(nn.Module):
    """A critic with a transformer of its own (Search-R1's kind): `backbone`, any transformers model without a head."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ValueHead(width(backbone), trunk_gradient=1.0).to(backbone.device)

    @classmethod
    def copy_of(cls, policy: PreTrainedModel) -> ValueModel:
        """A critic that starts from what the policy knows: a copy of the policy's transformer.

        Raises:
            ValueError: a policy with an adapter of peft's.
        """
        if hasattr(policy, "peft_config"):
            raise ValueError("the policy has an adapter, which a critic of its own has no use for: give a ValueHead")
        return cls(copy.deepcopy(cast(PreTrainedModel, policy.base_model)))

    def forward(self, token_ids_BS: Tensor, attention_mask_BS: Tensor, response_length: int) -> Tensor:
        """Values, (B, T), in fp32."""
        positions_BS = position_ids(attention_mask_BS)
        output = self.backbone(
            input_ids=token_ids_BS, attention_mask=attention_mask_BS, position_ids=positions_BS, use_cache=False
        )
        return cast(Tensor, self.head(output.last_hidden_state[:, -response_length - 1 : -1]))


def width(model: PreTrainedModel) -> int:
    """Of the last hidden states of its language model."""
    config = model.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)  # OPT's may be projected


def check_apart(policy: nn.Module, reference: object = None, critic: object = None) -> None:
    """Raise ValueError where the reference, which is frozen, or the critic has parameters that the policy trains.

    Call it before the reference is frozen. A `ValueHead` is part of no trunk, and so is always apart.
    """
    trained = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    frozen, own = _identities(reference), _identities(critic)
    if not trained:
        raise ValueError("the policy has no parameter to train: all have requires_grad=False")
    if trained & frozen:
        raise ValueError(
            "the reference shares parameters with the policy, which would freeze them: give copy.deepcopy(policy)"
        )
    if own & (trained | frozen):
        whose = "policy" if own & trained else "reference"
        raise ValueError(
            f"the critic shares parameters with the {whose}: give a model of its own, or a ValueHead, which reads the"
            " policy's trunk"
        )


def check_vocabulary(tokens: int, policy: PreTrainedModel, reference: object = None, critic: object = None) -> None:
    """Raise ValueError where reference or critic knows fewer tokens than the policy has of a tokenizer with `tokens`.

    What an embedding has beyond the tokenizer's is padding, and may differ.
    """
    needed = min(tokens, _vocabulary(policy))
    for name, model in ("reference", reference), ("critic", getattr(critic, "backbone", None)):
        if isinstance(model, PreTrainedModel) and _vocabulary(model) < needed:
            raise ValueError(
                f"the {name} knows {_vocabulary(model)} tokens, and the policy may write {needed}: give one with the"
                f" policy's vocabulary, or call its resize_token_embeddings({needed})"
            )


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _identities(model: object) -> set[int]:
    return {id(parameter) for parameter in model.parameters()} if isinstance(model, nn.Module) else set()


class ActorCritic(nn.Module):
    """Policy and critic behind one call; the critic is a `ValueModel`, or a `ValueHead` on the policy's own trunk."""

    def __init__(self, policy: PreTrainedModel, critic: ValueModel | ValueHead, temperature: float = 1.0) -> None:
        super().__init__()
        self.policy, self.critic, self.temperature = policy, critic, temperature

    @property
    def shared(self) -> bool:
        """Whether the critic reads the policy's trunk, so that there are no values without a forward of the policy."""
        return self.value_head is not None

    @property
    def value_head(self) -> ValueHead | None:
        """The critic, where it reads the policy's trunk."""
        return self.critic if isinstance(self.critic, ValueHead) else None

    def forward(
        self, token_ids_BS: Tensor, attention_mask_BS: Tensor, response_length: int, entropy_gradient: bool = True
    ) -> Prediction:
        """Log-probabilities, entropies and values at the last `response_length` positions.

        Without `entropy_gradient` the entropy is a number to report, and nothing is kept for its backward.
        """
        inputs = token_ids_BS, attention_mask_BS, response_length
        logits_BTV, hidden_BTD = _response_logits(self.policy, *inputs, self.shared)
        logits_BTV = logits_BTV / self.temperature
        values_BT = self.critic(*inputs) if hidden_BTD is None else self.critic(hidden_BTD)
        chosen_BT = _chosen_logprobs(logits_BTV, token_ids_BS[:, -response_length:])
        return Prediction(chosen_BT, entropy(logits_BTV if entropy_gradient else logits_BTV.detach()), values_BT)


def response_logprobs(
    policy: LanguageModel,
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


@torch.no_grad()
def check_padding(policy: PreTrainedModel) -> None:
    """Raise ValueError where padding on the left changes what a policy says of the tokens after it.

    Decoders of BART's kind take no `position_ids`: they count the padding, so that a row would be read otherwise in
    each batch, and by whoever loads the policy.
    """
    if any(parameter.is_meta or not parameter.numel() for parameter in policy.parameters()):
        return  # its weights are elsewhere
    config, training = policy.config.get_text_config(), policy.training
    padding = getattr(config, "pad_token_id", None) or 0
    ids_1S = torch.arange(_TRIED, device=policy.device)[None] % config.vocab_size
    inputs = ids_1S, torch.ones_like(ids_1S)
    policy.train(False)
    try:
        alone_1T, padded_1T = (
            response_logprobs(policy, pad(ids_1S, (left, 0), value=padding), pad(inputs[1], (left, 0)), _TRIED - 1)
            for left in (0, _TRIED // 2)
        )
    finally:
        policy.train(training)
    if (padded_1T - alone_1T).norm() > _ROUNDING * (alone_1T - alone_1T.mean()).norm() + 1e-3:
        raise ValueError(
            f"{type(policy).__name__} reads a text otherwise where padding stands before it, as prompts of different"
            " lengths need: give a policy that heeds position_ids and attention_mask"
        )


def _response_logits(
    policy: LanguageModel, token_ids_BS: Tensor, attention_mask_BS: Tensor, response_length: int, hidden: bool
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
