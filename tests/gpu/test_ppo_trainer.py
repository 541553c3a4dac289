"""`PPOTrainer` on the device, with the callback: no KL where nothing moves, and an exact resume within an RL step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.ppo_trainer import PPOTrainer
from tests.gpu.device import CPU, DEVICE, needs_cuda
from tests.integrations.tiny import logged, low_bytes, model, settings, tokenizer
from tests.integrations.trainers import same, weights

PROMPTS = [{"prompt": f"one {i}"} for i in range(64)]


def make(folder: Path, device: torch.device = DEVICE, **arguments: Any) -> tuple[PPOTrainer, AdaptiveWarmupCallback]:
    longer: dict[str, Any] = {"max_steps": 6, "num_ppo_epochs": 2, "use_cpu": device.type == "cpu"}
    args, warmup = settings(folder, **{**longer, **arguments}), AdaptiveWarmupCallback(4)
    given: dict[str, Any] = {"reward_funcs": low_bytes, "train_dataset": PROMPTS, "processing_class": tokenizer()}
    return PPOTrainer(model(), args, callbacks=[warmup], **given), warmup  # type: ignore[arg-type]


@pytest.mark.parametrize("bf16", [False, True])
def test_it_runs_and_the_callback_hears_of_its_kl(tmp_path: Path, bf16: bool) -> None:
    trainer, warmup = make(tmp_path, bf16=bf16)
    trainer.train()
    assert {p.device.type for p in trainer.model.parameters()} == {trainer.tokens.device.type} == {DEVICE.type}
    kls = logged(trainer, "policy/kl")
    assert len(kls) == 3
    assert all(math.isfinite(kl) and kl > 0.0 for kl in kls)
    assert warmup.decision is not None
    assert warmup.decision.step == 3  # RL steps
    assert warmup.regulator is not None
    assert warmup.regulator.signals is not None
    assert warmup.regulator.signals.kl == pytest.approx(kls[-1])


@pytest.mark.parametrize(("bf16", "rounding"), [(False, 1e-9), (True, 1e-3)])
def test_an_untouched_policy_has_no_kl(tmp_path: Path, bf16: bool, rounding: float) -> None:
    trainer, _ = make(tmp_path, bf16=bf16, learning_rate=1e-30, max_steps=2)
    trainer.train()
    assert logged(trainer, "policy/kl") == [pytest.approx(0.0, abs=rounding)]
    assert logged(trainer, "policy/reference_kl") == [pytest.approx(0.0, abs=1e-4 if not bf16 else 1e-2)]


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, step: int, deterministic: None) -> None:
    """Step 3 is amid an RL step, whose rollout is in the checkpoint."""
    whole, warmup = make(tmp_path, save_strategy="steps", save_steps=step)
    whole.train()
    again, resumed = make(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert same(weights(again), weights(whole))
    assert resumed.decision == warmup.decision
    assert logged(again, "policy/kl") == logged(whole, "policy/kl")


@needs_cuda
@pytest.mark.parametrize(("first", "second"), [(DEVICE, CPU), (CPU, DEVICE)], ids=str)
def test_a_run_goes_on_on_another_device(tmp_path: Path, first: torch.device, second: torch.device) -> None:
    begun, _ = make(tmp_path, first, save_strategy="steps", save_steps=3)
    begun.train()
    again, warmup = make(tmp_path, second)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert warmup.decision is not None
    assert warmup.decision.step == 3
    assert all(math.isfinite(kl) for kl in logged(again, "policy/kl"))
