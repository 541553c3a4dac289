"""`PPOTrainer` on two processes: DDP, and FSDP2 by Accelerate's plugin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integrations.ppo_processes import Run
from tests.integrations.ppo_trainers import close, make
from tests.processes import run_processes

installed = Version(transformers.__version__)
resumes = pytest.mark.skipif(
    installed < Version("5.18"), reason="this Trainer resumes two processes on `cpu:0`, onto which no torch loads"
)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("ddp"))


@resumes
def test_two_processes_train_one_model_and_resume_to_the_bit(ddp: Run, tmp_path: Path) -> None:
    assert not close(ddp.weights, list(make(tmp_path).model.parameters()), atol=1e-3)
    assert len(ddp.told["policy/kl"]) == 2
    assert min(ddp.told["policy/kl"]) > 0


@resumes
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


@resumes
def test_fsdp2_in_bf16_of_tied_embeddings_with_the_value_head_on_their_trunk(tmp_path: Path) -> None:
    """And with each process's shards in a checkpoint. What is compared between forwards stays in fp32."""
    run = Run(tmp_path, "tied", fsdp=True, fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"}, bf16=True)
    assert run.told["policy/reference_kl"][0] == 0.0  # to the bit: in bf16 it would be off by 2e-4
    assert run.told["policy/kl"][0] > 1e-4
    assert abs(run.told["val/ratio"][0] - 1.0) < 0.02
    assert (tmp_path / "checkpoint-3" / "pytorch_model_fsdp_0").is_dir()


_ANOTHER = """
import sys
from tests.integrations.ppo_trainers import make
from tests.integrations.tiny import saved

saved()  # before the processes know of each other: then only the first would save
try:
    make(sys.argv[1], max_steps=4, num_mini_batches=2).train(resume_from_checkpoint=sys.argv[2])
except ValueError as error:
    print(error)
    assert "lies within an RL step of 1 processes" in str(error), error
else:
    raise AssertionError("it went on")
"""


def test_an_rl_step_under_way_does_not_go_on_with_another_number_of_processes(ddp: Run, tmp_path: Path) -> None:
    """It would hang, or weigh a part of the rollout as if it were all."""
    words = r"checkpoint-3 lies within an RL step of 2 processes.*here are 1 with 1.*at a multiple of 2 steps"
    with pytest.raises(ValueError, match=words):
        make(tmp_path, max_steps=4, num_mini_batches=2).train(resume_from_checkpoint=str(ddp.folder / "checkpoint-3"))
    one = make(tmp_path, max_steps=1, num_mini_batches=2, save_strategy="steps", save_steps=1)
    one.train()
    run_processes(_ANOTHER, tmp_path, tmp_path / "two", tmp_path / "checkpoint-1", timeout=200)


_SEEING = """
import sys
from transformers import AutoModelForCausalLM
from tests.integrations.ppo_trainers import make, seeing
from tests.integrations.tiny import logged, tokenizer

trainer = make(sys.argv[1], AutoModelForCausalLM.from_config(seeing(len(tokenizer()))), max_steps=2, save_strategy="no")
trainer.train()
assert trainer.args.ddp_find_unused_parameters
assert all(kl > 0 for kl in logged(trainer, "policy/kl"))
"""


@pytest.mark.skipif(installed < Version("5.6"), reason="this Gemma 3 trains on images only")
def test_parts_that_text_does_not_reach_stop_no_process(tmp_path: Path) -> None:
    run_processes(_SEEING, tmp_path, tmp_path)
    assert not make(tmp_path).args.ddp_find_unused_parameters
