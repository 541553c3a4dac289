"""`PPOTrainer` on two processes: DDP, and FSDP2 by Accelerate's plugin.

Accelerate (1.15) takes no notice of its FSDP plugin on CPUs and falls back on DDP. So `sharding` sets what it sets
where there are GPUs; all that follows from that, as sharding, checkpoints and mixed precision, is Accelerate's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integrations.ppo_trainers import close, make
from tests.integrations.trainers import same
from tests.processes import run_processes

_PROCESS = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2ForCausalLM
from transformers.distributed import DistributedConfig
from adaptive_warmup.integrations.ppo_trainer import PPOTrainer
from adaptive_warmup.ppo import ValueHead
from tests.integrations.ppo_trainers import PROMPTS, Letters, logged, settings
from tests.integrations.trl_trainers import model, saved, tokenizer

torch.set_num_threads(1)
saved()  # before the processes know of each other: then only the first would save
out, kind, wanted = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def sharding(args):
    state = Accelerator(cpu=True, mixed_precision="bf16" if args.bf16 else "no").state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if args.bf16:
        state.fsdp_plugin.set_mixed_precision("bf16")

def tied():
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer()), "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))

def made():
    args = settings(out, **{"max_steps": 4, "num_mini_batches": 2, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "max_completion_length": 12, "save_strategy": "steps", "save_steps": 3,
        **wanted})
    if args.fsdp:
        sharding(args)
    policy, critic = (tied(), ValueHead(16)) if kind == "tied" else (model(), None)
    parts = {"environment": Letters(), "train_dataset": PROMPTS, "processing_class": tokenizer()}
    return PPOTrainer(policy, args, value_model=critic, **parts)

def weights(trainer):
    named = trainer.model.named_parameters()
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for name, p in named}

trainer = made()
trainer.train()
told = {name: logged(trainer, name) for name in (
    "objective/scores", "policy/kl", "policy/reference_kl", "val/ratio", "grad_norm", "value/grad_norm",
    "loss/value_avg", "loss")}
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
        run_processes(_PROCESS, folder, folder, kind, json.dumps(arguments), timeout=400)
        self.folder = folder
        self.told, other = (json.loads((folder / f"told{rank}.json").read_text()) for rank in range(2))
        self.named, others = (torch.load(folder / f"weights{rank}.pt") for rank in range(2))
        self.weights = list(self.named.values())
        assert self.told == other
        assert same(self.weights, list(others.values()))


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("ddp"))


def test_two_processes_train_one_model_and_resume_to_the_bit(ddp: Run, tmp_path: Path) -> None:
    assert not close(ddp.weights, list(make(tmp_path).model.parameters()), atol=1e-3)
    assert len(ddp.told["policy/kl"]) == 2
    assert min(ddp.told["policy/kl"]) > 0


def test_fsdp2_computes_what_ddp_computes(ddp: Run, tmp_path: Path) -> None:
    sharded = Run(tmp_path, "loaded sharded", fsdp=True)
    kinds = sharded.told.pop("kinds"), ddp.told["kinds"]
    assert kinds == (["DTensor"], ["Parameter"])
    for name, values in sharded.told.items():
        assert values == pytest.approx(ddp.told[name], rel=1e-4, abs=1e-6), name
    assert close(sharded.weights, ddp.weights, atol=1e-4)
    policy, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4", output_loading_info=True)
    assert not loading["missing_keys"]
    critic = load_file(tmp_path / "checkpoint-4" / "value_model.safetensors")
    saved = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    saved |= {f"critic.{name}": value for name, value in critic.items()}
    assert all(torch.equal(saved[name], value) for name, value in sharded.named.items())


def test_fsdp2_in_bf16_of_tied_embeddings_with_the_value_head_on_their_trunk(tmp_path: Path) -> None:
    """And with each process's shards in a checkpoint. What is compared between forwards stays in fp32."""
    run = Run(tmp_path, "tied", fsdp=True, fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"}, bf16=True)
    assert run.told["policy/reference_kl"][0] == 0.0  # to the bit: in bf16 it would be off by 2e-4
    assert run.told["policy/kl"][0] > 1e-4
    assert abs(run.told["val/ratio"][0] - 1.0) < 0.02
    assert (tmp_path / "checkpoint-3" / "pytorch_model_fsdp_0").is_dir()
