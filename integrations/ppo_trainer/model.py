"""Policy, reference and critic of a `PPOTrainer`, from whatever the user gives for them."""

from __future__ import annotations

import copy
import logging
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.utils.import_utils import is_peft_available

from adaptive_warmup.ppo.model import ActorCritic, LanguageModel, ValueHead, ValueModel, check_apart, width

_log = logging.getLogger("adaptive_warmup")
_HALF = (torch.bfloat16, torch.float16)
_COARSE = (
    "the policy's weights are of 16 bits, and most updates at a usual lr are too small to change them: load it in"
    " float32, and have bf16=True compute in 16 bits"
)


class PolicyAndValue(ActorCritic):
    """The model of the Trainer: policy and critic, with what a Trainer asks of the one that it trains."""

    @property
    def config(self) -> Any:
        """The policy's."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """The policy's."""
        return self.policy.generation_config

    @property
    def device(self) -> Any:
        """The policy's."""
        return self.policy.device

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of the layers, which FSDP shards one by one."""
        models = self.policy, getattr(self.critic, "backbone", None)
        return sorted({name for model in models for name in getattr(model, "_no_split_modules", None) or ()})

    def tie_weights(self) -> None:
        """Of the policy: its embeddings, and what reads them again as its last layer."""
        self.policy.tie_weights()

    def ready(self) -> None:
        """A forward that computes nothing: upon it FSDP knows this model as the one that all sharded parts are of."""

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Of policy and critic. Forwards do not hold their activations, but compute them again in the backward."""
        for model in (self.policy, getattr(self.critic, "backbone", None)):
            if model is not None:
                model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """What older Trainers call it."""
        for model in (self.policy, getattr(self.critic, "backbone", None)):
            if model is not None:
                model.gradient_checkpointing_enable(**settings)


class AdapterOff:
    """The reference of a policy with a PEFT adapter: the same model without it."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, **inputs: Any) -> Any:
        """As the policy's, without the adapter."""
        wanted = [(parameter, parameter.requires_grad) for parameter in self.policy.parameters()]
        try:
            with self.policy.disable_adapter():
                return self.policy(**inputs)
        finally:  # peft leaves all of the adapter to be trained
            for parameter, trained in wanted:
                parameter.requires_grad_(trained)


def is_peft(model: Any) -> bool:
    """Whether it is a model with a PEFT adapter."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def make_policy(model: PreTrainedModel | str, init: dict[str, Any], peft_config: Any) -> PreTrainedModel:
    """The policy, loaded where it is a name or a path, with an adapter where `peft_config` asks for one."""
    policy = AutoModelForCausalLM.from_pretrained(model, **init) if isinstance(model, str) else model
    if any(hasattr(parameter, "full_tensor") for parameter in policy.parameters()):
        raise ValueError(
            "the policy's parameters are sharded already: give PPOTrainer the whole model, and have Accelerate shard it"
            " with its critic and its reference (accelerate launch with FSDP2, or fsdp=True in PPOConfig)"
        )
    if peft_config is not None:
        from peft import get_peft_model

        policy = get_peft_model(policy, peft_config)
    return cast(PreTrainedModel, with_fused_gelu(without_dropout(policy)))


def warn_of_coarse(policy: PreTrainedModel) -> None:
    """Warn where the optimizer is to train weights of 16 bits: not under DeepSpeed, which trains a copy in float32."""
    if any(parameter.requires_grad and parameter.dtype in _HALF for parameter in policy.parameters()):
        _log.warning(_COARSE)


def make_reference(model: PreTrainedModel | str | None, policy: PreTrainedModel, init: dict[str, Any]) -> LanguageModel:
    """The reference, frozen: what is given, else the policy without its adapter, else a copy of the policy."""
    if model is None and is_peft(policy):
        _check_trained(policy)
        return AdapterOff(policy)
    if isinstance(model, str):
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(model, **init))
    reference = with_fused_gelu(copy.deepcopy(policy) if model is None else model)
    check_apart(policy, reference)
    return cast(PreTrainedModel, reference.train(False).requires_grad_(False).to(policy.device))


def _check_trained(policy: Any) -> None:
    """Raise ValueError where more than the adapter is trained: without it the policy would not be the reference."""
    from peft import get_peft_model_state_dict

    if (bias := getattr(policy.active_peft_config, "bias", "none")) != "none":
        raise ValueError(f"peft_config has bias={bias!r}: those are the reference's too; say 'none', or give ref_model")
    own = {tensor.data_ptr() for tensor in get_peft_model_state_dict(policy, save_embedding_layers=False).values()}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in own:
            raise ValueError(
                f"{name} is trained and no part of the adapter, so that the reference would move with it, and no"
                " checkpoint would hold it: freeze it, or name it in the adapter's modules_to_save"
            )


def make_critic(
    model: ValueModel | ValueHead | PreTrainedModel | str | None, policy: PreTrainedModel, init: dict[str, Any]
) -> ValueModel | ValueHead:
    """The critic; by default a copy of the policy's transformer, or with an adapter a head on the policy's trunk."""
    if isinstance(model, str):
        model = cast(PreTrainedModel, AutoModel.from_pretrained(model, **init))
    if model is None:
        critic: Any = _head(policy) if is_peft(policy) else ValueModel.copy_of(policy)
    elif isinstance(model, PreTrainedModel):
        critic = ValueModel(cast(PreTrainedModel, model.base_model))
    else:
        critic = model
    return cast("ValueModel | ValueHead", with_fused_gelu(without_dropout(critic)))


def without_dropout(module: nn.Module) -> nn.Module:
    """`module` with every dropout at 0: with it the policy that is updated would not be the one that sampled.

    Raises:
        ValueError: experts that are chosen at random while it trains.
    """
    for part in module.modules():
        if hasattr(part, "router_jitter_noise"):  # it counts without training as well, so 0 would be another model
            raise ValueError(f"{type(part).__name__} chooses its experts at random in training: PPO cannot train that")
        for name, value in vars(part).items():
            if isinstance(value, float) and (name in ("p", "jitter_noise") or "drop" in name):
                setattr(part, name, 0.0)
            elif isinstance(value, dict) and "dropout" in name:  # peft's, by adapter
                value.update({key: 0.0 for key, one in value.items() if isinstance(one, float)})
    return module


def with_fused_gelu(module: nn.Module) -> nn.Module:
    """`module` with every tanh-GELU that is written out, as GPT-2's, computed in one pass by torch's kernel.

    The same function, but for rounding; written out it is a quarter of a small model's forward.
    """
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(part, name, nn.GELU("tanh"))
    return module


def _head(policy: PreTrainedModel) -> ValueHead:
    """Its gradient's share in the trunk is `vf_coef`, the weight of its loss."""
    return ValueHead(width(policy), trunk_gradient=1.0).to(policy.device)
