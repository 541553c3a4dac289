"""A `PPOTrainer` on two processes: trained, resumed, and compared with itself.

On CPUs Accelerate (1.15) takes no notice of its FSDP plugin and falls back on DDP, and of DeepSpeed's processes it
counts one. So `sharding` sets what Accelerate sets where there are GPUs, and `deep_speed` its state beforehand, as the
Trainer's `use_configured_state` has it, and that bf16 is to be had; all that follows from that is their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.integrations.trainers import same
from tests.processes import run_processes

PROCESS = """
import json, os, sys
from pathlib import Path
os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2ForCausalLM, training_args
from transformers.distributed import DistributedConfig
from adaptive_warmup.integrations.ppo_trainer import PPOTrainer
from adaptive_warmup.ppo import ValueHead
from tests.integrations.ppo_trainers import PROMPTS, Letters
from tests.integrations.tiny import logged, model, saved, settings, tokenizer

torch.set_num_threads(1)
saved()  # before the processes know of each other: then only the first would save
out, kind, wanted = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def sharding(args):
    state = Accelerator(cpu=True, mixed_precision="bf16" if args.bf16 else "no").state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if args.bf16:
        state.fsdp_plugin.set_mixed_precision("bf16")

def deep_speed():
    import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled first; gloo does as well
    training_args.is_torch_bf16_gpu_available = lambda: True
    AcceleratorState._reset_state(True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]

def tied():
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer()), "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))

def made():
    if "deepspeed" in wanted:
        deep_speed()
    args = settings(out, **{"max_steps": 4, "num_mini_batches": 2, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "max_completion_length": 12, "save_strategy": "steps", "save_steps": 3,
        **wanted})
    if args.fsdp:
        sharding(args)
    policy, critic = (tied(), ValueHead(16)) if kind == "tied" else (model(), None)
    policy = policy.to(torch.bfloat16) if kind == "half" else policy
    parts = {"environment": Letters(), "train_dataset": PROMPTS, "processing_class": tokenizer()}
    return PPOTrainer(policy, args, value_model=critic, **parts)

def weights(trainer):
    named = trainer.model.named_parameters()
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for name, p in named}

trainer = made()
trainer.train()
told = {name: logged(trainer, name) for name in (
    "objective/scores", "policy/kl", "policy/reference_kl", "val/ratio", "grad_norm", "value/grad_norm",
    "loss/value_avg", "loss", "value_lr", "learning_rate")}
told["kinds"] = sorted({type(p).__name__ for p in trainer.model.parameters()})
rank = trainer.args.process_index
(out / f"told{rank}.json").write_text(json.dumps(told))
torch.save(weights(trainer), out / f"weights{rank}.pt")
trainer.accelerator.wait_for_everyone()
again = made()
again.train(resume_from_checkpoint=str(out / "checkpoint-3"))
resumed, whole = weights(again), weights(trainer)
assert all(torch.equal(resumed[name], whole[name]) for name in whole)
if kind == "loaded sharded":
    policy = Qwen2ForCausalLM.from_pretrained(saved(), distributed_config=DistributedConfig(fsdp_size=2))
    try:
        PPOTrainer(policy, settings(out), environment=Letters(), processing_class=tokenizer())
    except ValueError as error:
        assert "sharded already: give PPOTrainer the whole model" in str(error)
    else:
        raise AssertionError("it was taken")
"""


class Run:
    """What two processes came to, which is the same in both."""

    def __init__(self, folder: Path, kind: str = "own critic", **arguments: Any) -> None:
        run_processes(PROCESS, folder, folder, kind, json.dumps(arguments), timeout=400)
        self.folder = folder
        self.told, other = (json.loads((folder / f"told{rank}.json").read_text()) for rank in range(2))
        self.named, others = (torch.load(folder / f"weights{rank}.pt") for rank in range(2))
        self.weights = list(self.named.values())
        assert self.told == other
        assert same(self.weights, list(others.values()))
