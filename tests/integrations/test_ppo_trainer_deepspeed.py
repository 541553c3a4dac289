"""`PPOTrainer` under DeepSpeed, if it is installed: two processes, ZeRO-1 and -2.

Not in the development environment: `pip install -c constraints.txt deepspeed`, and run this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.integrations.ppo_processes import Run
from tests.integrations.ppo_trainers import close
from tests.integrations.trainers import same

pytest.importorskip("deepspeed")

LRS = {"learning_rate": 1e-2, "value_learning_rate": 3e-3, "lr_scheduler_type": "linear"}
SAME = ("objective/scores", "policy/kl", "loss/value_avg", "loss")


def deepspeed(stage: int, configured: bool) -> dict[str, Any]:
    auto = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    config: dict[str, Any] = {"zero_optimization": {"stage": stage}, **dict.fromkeys(auto, "auto")}
    config |= {"zero_allow_untested_optimizer": True, "bf16": {"enabled": "auto"}}
    if configured:
        params = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        config["optimizer"] = {"type": "AdamW", "params": {**params, "torch_adam": True}}
    # With use_cpu Accelerate would leave DeepSpeed out.
    return {"deepspeed": config, "use_cpu": False, "accelerator_config": {"use_configured_state": True}}


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("ddp"), max_grad_norm=1e6, **LRS)


@pytest.mark.parametrize(("stage", "configured"), [(1, False), (1, True), (2, False), (2, True)])
def test_it_computes_what_ddp_computes_and_resumes_to_the_bit(
    ddp: Run, tmp_path: Path, stage: int, configured: bool
) -> None:
    run = Run(tmp_path, max_grad_norm=1e6, **deepspeed(stage, configured), **LRS)
    for name in SAME:
        assert run.told[name] == pytest.approx(ddp.told[name], rel=1e-4, abs=1e-6), name
    assert close(run.weights, ddp.weights, atol=1e-4)
    assert run.told["grad_norm"][0] > ddp.told["grad_norm"][0]  # the critic's is in it
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert same(list(policy.parameters()), [run.named[f"policy.{name}"] for name, _ in policy.named_parameters()])


def test_it_clips_policy_and_critic_together(tmp_path: Path) -> None:
    """An SGD step is the lr times the gradient, whose norm is then the limit."""
    run = Run(tmp_path, max_steps=4, max_grad_norm=1e-3, **deepspeed(2, False), optim="sgd", learning_rate=1.0)
    assert min(run.told["grad_norm"]) > 0.1  # as it was before
    assert max(run.told["policy/kl"]) < 1e-5


def test_weights_of_16_bits_are_trained_as_the_copy_in_32_that_it_keeps(tmp_path: Path) -> None:
    """At an lr whose updates bf16 would round away; of such weights there is thus no warning."""
    small = {"learning_rate": 1e-5, "value_learning_rate": 1e-5, "max_steps": 40, "save_steps": 3}
    run = Run(tmp_path, "half", bf16=True, **deepspeed(2, False), **small)
    assert run.told["policy/kl"][-1] > 0
    assert "weights are of 16 bits" not in (tmp_path / "rank0.log").read_text()
