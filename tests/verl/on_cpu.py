"""verl without a GPU: a platform, by verl's own registry of them, and trainers that need no inference engine.

verl's rollouts come from vLLM or SGLang, which this environment has not. All else of a run here is verl's: Ray, the
driver's loop, TransferQueue, the workers, FSDP, the optimizers and schedules, the losses, the checkpoints.
"""

from __future__ import annotations

import os
import types
from contextlib import nullcontext
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
import transfer_queue  # noqa: E402
from transformers import AutoModelForTokenClassification  # noqa: E402
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput  # noqa: E402
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead  # noqa: E402

from adaptive_warmup.integrations.verl.engine import WarmedLanguageModel, WarmedValueModel  # noqa: E402
from adaptive_warmup.integrations.verl.trainer import AdaptiveWarmupTrainer  # noqa: E402


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
    None: (FSDPEngineWithLMHead, _ValueModel),
    "adaptive_warmup": (WarmedLanguageModel, _WarmedValueModel),
}.items():
    for _kind, _engine in zip(("language_model", "value_model"), _engines, strict=True):
        EngineRegistry.register(model_type=_kind, backend=["fsdp", "fsdp2"], device="cpu", vendor=_vendor)(_engine)


class _NoInference:
    """verl's trainers where no inference engine is to be told of new weights."""

    _enable_hybrid_replicas = False  # verl's own switch: the workers train, and generate nothing

    def on_init_end(self) -> None: ...
    def on_step_end(self) -> None: ...


@register_trainer("adaptive_warmup_on_cpu")
class WarmedOnCPU(_NoInference, AdaptiveWarmupTrainer): ...


@register_trainer("sync_on_cpu")
class SyncOnCPU(_NoInference, PPOTrainerSync):
    def __init__(self, config: Any) -> None:
        config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)


class RandomTokens:
    """An agent-loop manager, which verl lets its users choose: responses are drawn at random, by the step's number.

    The score is the share of even tokens. A third of a response is marked as not the policy's own, as a tool's words.
    """

    length, vocabulary = 12, 64

    @classmethod
    def create(cls, config: Any, **kwargs: Any) -> RandomTokens:
        transfer_queue.init()
        return cls()

    def generate_sequences(self, prompts: Any) -> None:
        step = int(prompts["global_steps"])
        generator = torch.Generator().manual_seed(step)
        for uid in prompts["uid"]:
            response = torch.randint(3, self.vocabulary, (self.length,), generator=generator)
            output = AgentLoopOutput(
                prompt_ids=[3, 4, 5],
                response_ids=response.tolist(),
                response_mask=[1] * (self.length - 4) + [0] * 4,
                reward_score=float((response % 2 == 0).float().mean()),
                num_turns=2,
                metrics=AgentLoopMetrics(),
            )
            self._put(str(uid), step, output)

    def _put(self, uid: str, step: int, output: AgentLoopOutput) -> None:
        row = output.as_dict()
        row["input_ids"] = torch.cat([row["prompts"], row["responses"]])
        row |= {"loss_mask": row["response_mask"], "uid": uid, "multi_modal_inputs": {}}
        row["position_ids"] = torch.arange(len(row["input_ids"]))
        size = len(row["input_ids"])
        tag = {"status": "success", "prompt_len": 3, "response_len": size - 3, "seq_len": size}
        tag |= {"global_steps": step, "min_global_steps": step, "max_global_steps": step}
        rows = list_of_dict_to_tensordict([row])
        transfer_queue.kv_batch_put(keys=[f"{uid}_0_0"], fields=rows, tags=[tag], partition_id="train")
        transfer_queue.kv_batch_put(keys=[uid], partition_id="train", tags=[{"is_prompt": True, "status": "finished"}])
