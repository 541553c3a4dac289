"""FSDP2 under a `PPOTrainer`: parameters whole where policy and critic are called by themselves, the reference sharded.

FSDP gathers parameters when the forward of the model that it was given begins, and layer by layer, on all processes at
once. Policy and critic are parts of that model, and sampling takes as many forwards as the longest episode of a process
has tokens: with a gather in each of them, the processes would wait for each other in vain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from adaptive_warmup.integrations.ppo_trainer.model import PolicyAndValue
from adaptive_warmup.ppo.model import LanguageModel


def check_plugin(plugin: Any) -> None:
    """Refuse FSDP1, and have what the model says left in fp32: log-probabilities in bf16 are off by a hundredth."""
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version={plugin.fsdp_version!r}: PPOTrainer runs under FSDP2, so set it to 2")
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def place_reference(reference: LanguageModel, model: PolicyAndValue, accelerator: Accelerator) -> LanguageModel:
    """The reference on this process's device; sharded as `model` will be, where Accelerate shards that."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if not isinstance(reference, nn.Module):
        return reference  # the policy, without its adapter
    if plugin is None:
        return cast(PreTrainedModel, reference.to(accelerator.device))
    from accelerate.utils import fsdp2_prepare_model

    plugin.set_auto_wrap_policy(model)  # or it would be settled by the reference's layers
    return cast(PreTrainedModel, fsdp2_prepare_model(accelerator, reference))


@contextmanager
def whole(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """With all parameters of `model` on each process, so that forwards need no other process."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if "ready" not in vars(model):
        register_fsdp_forward_method(model, "ready")
    model.ready()  # type: ignore[operator]
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    inner = [part for part in parts if part is not model]
    try:
        for part in inner:
            part.set_reshard_after_forward(False, recurse=False)
        for part in parts:
            part.unshard()
        yield
    finally:
        for part in parts:
            part.reshard()
        for part in inner:
            part.set_reshard_after_forward(plugin.reshard_after_forward, recurse=False)
