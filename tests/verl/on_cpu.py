"""verl without a GPU: a platform, engines and a rollout, each by verl's own registry of them.

verl's rollouts come from vLLM or SGLang, which need a GPU; `drawn.py` is one that needs none. All else of a run here is
verl's: Ray, the driver's loop, TransferQueue, the workers, FSDP, the optimizers and schedules, the losses, the
checkpoints, and the hand-over of weights to the rollout.
"""

from __future__ import annotations

import os
import types
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase

_CPU = types.ModuleType("cpu")
_CPU.__dict__.update(vars(torch.cpu))
for _name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
    setattr(_CPU, _name, lambda *args: 0)
_CPU.empty_cache = lambda: None
_CPU.mem_get_info = lambda *args: (0, 0)
_CPU.set_device = lambda *args: None
_CPU.get_rng_state = torch.get_rng_state
_CPU.set_rng_state = torch.set_rng_state
_CPU.get_device_name = lambda *args: "cpu"


@platform_manager.PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """Says "GPU" to Ray, where it only counts workers."""

    device_name = vendor_name = "cpu"
    device_module = _CPU

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: Any = None) -> None: ...
    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...
    def cudart(self) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        """verl asks for it to make a group of `cpu:gloo,cpu:gloo`, which torch refuses; not where there is one."""
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return nullcontext()

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}

    def get_collective_module(self) -> None: ...


os.environ["VERL_PLATFORM"] = "cpu"

# From here on verl knows its device, which its own modules ask for while they are imported.
from transformers import AutoModelForTokenClassification  # noqa: E402
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead  # noqa: E402
from verl.workers.rollout.base import _ROLLOUT_REGISTRY  # noqa: E402
from verl.workers.rollout.replica import RolloutReplicaRegistry  # noqa: E402

from adaptive_warmup.integrations.verl.engine import WarmedLanguageModel, WarmedValueModel  # noqa: E402


class _Unpinned:
    """verl keeps a frozen reference model in pinned memory, which there is only beside a GPU."""

    engine_config: Any

    def _build_fsdp_module(self, module: Any) -> Any:
        theirs = self.engine_config
        self.engine_config = replace(theirs, forward_only=False)
        try:
            return super()._build_fsdp_module(module)  # type: ignore[misc]
        finally:
            self.engine_config = theirs


class _LanguageModel(_Unpinned, FSDPEngineWithLMHead): ...


class _WarmedLanguageModel(_Unpinned, WarmedLanguageModel): ...


class _AnyAttention:
    """A critic's engine of verl's insists on flash attention, which is for GPUs."""

    engine_config: Any
    model_config: Any

    def _build_module(self) -> Any:
        self.model_config.hf_config.num_labels = 1
        return AutoModelForTokenClassification.from_config(self.model_config.hf_config).float()


class _ValueModel(_AnyAttention, FSDPEngineWithValueHead): ...


class _WarmedValueModel(_AnyAttention, WarmedValueModel): ...


for _vendor, _engines in {
    None: (_LanguageModel, _ValueModel),
    "adaptive_warmup": (_WarmedLanguageModel, _WarmedValueModel),
}.items():
    for _kind, _engine in zip(("language_model", "value_model"), _engines, strict=True):
        EngineRegistry.register(model_type=_kind, backend=["fsdp", "fsdp2"], device="cpu", vendor=_vendor)(_engine)


def _replica() -> Any:
    from drawn import Replica

    return Replica


_ROLLOUT_REGISTRY["drawn", "async"] = "drawn.Rollout"
RolloutReplicaRegistry.register("drawn", _replica)
