"""The PPO loop on the device: an untouched policy has no KL, runs repeat, and resume to the bit."""

from __future__ import annotations

import copy
import io
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.ppo import METRICS, PPO, PPOConfig, ValueHead, rollout
from adaptive_warmup.ppo.advantages import gae, kl_penalised_rewards, whiten
from adaptive_warmup.ppo.losses import clip_fraction, policy_loss, value_loss
from tests.gpu.device import CPU, DEVICE, needs_cuda, no_waits

SMALL: dict[str, Any] = {"batch_size": 16, "mini_batches": 2, "max_response_tokens": 12, "learning_rate": 1e-3}


@pytest.fixture
def make(make_policy: Any, tokenizer: Any, tool_task: Any) -> Callable[..., PPO]:
    """A run on a task whose prompts are padded on the left, with adaptive warmup."""

    def made(shared: bool = False, device: torch.device = DEVICE, dtype: Any = torch.float32, **settings: Any) -> PPO:
        policy = make_policy().to(device, dtype)
        critic = ValueHead(32).to(device) if shared else None
        config = PPOConfig(**{**SMALL, **settings})
        reference = copy.deepcopy(policy)
        return PPO(config, policy, reference, tool_task, tokenizer, critic, lambda o: AdaptiveWarmup(o, warmup_steps=5))

    return made


def parameters(ppo: PPO) -> Tensor:
    return torch.cat([p.detach().flatten() for p in ppo.model.parameters()]).clone()


@pytest.mark.parametrize("shared", [False, True])
def test_it_runs_there_and_reports_every_metric(make: Callable[..., PPO], shared: bool) -> None:
    ppo = make(shared)
    first, second = ppo.run(2, progress=False)
    assert {p.device.type for p in ppo.model.parameters()} == {ppo.tokens.device.type} == {DEVICE.type}
    assert second.keys() == METRICS.keys()
    assert all(math.isfinite(value) for value in (*first.values(), *second.values()))
    assert first["policy/kl"] > 1e-8
    assert second["skipped_updates"] == 0
    assert second["lr"] > first["lr"]
    assert ppo.scheduler.decision.step == 2


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-9), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("shared", [False, True])
def test_an_untouched_policy_has_no_kl(make: Callable[..., PPO], dtype: Any, rounding: float, shared: bool) -> None:
    """It samples with a cache, token by token, and is measured in one forward: on a GPU these round otherwise."""
    metrics = make(shared, dtype=dtype, learning_rate=0.0, mini_batches=1).step()
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=rounding)
    assert metrics["policy/reference_kl"] == pytest.approx(0.0, abs=1e-4 if dtype == torch.float32 else 1e-2)
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-4 if dtype == torch.float32 else 1e-2)


def test_it_learns_there(make_policy: Any, tokenizer: Any, copy_task: Any) -> None:
    policy = make_policy().to(DEVICE)
    config = PPOConfig(batch_size=64, mini_batches=2, max_response_tokens=2, learning_rate=0.01, kl_coef=0.0)
    ppo = PPO(config, policy, copy.deepcopy(policy), copy_task, tokenizer, None, lambda o: AdaptiveWarmup(o, 5))
    scores = [metrics["objective/scores"] for metrics in ppo.run(40, progress=False)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.1


def test_tokens_come_from_the_generator_alone(make_policy: Any, tokenizer: Any, tool_task: Any) -> None:
    policy = make_policy().to(DEVICE)

    def tokens(seed: int) -> Tensor:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        problems = tool_task.sample(8, seed=0)
        return rollout(policy, tokenizer, tool_task, problems, max_response_tokens=12, generator=generator).token_ids_BS

    torch.manual_seed(0)
    before = torch.rand(3, device=DEVICE), torch.rand(3)
    torch.manual_seed(0)
    first = tokens(1)
    assert torch.equal(torch.rand(3, device=DEVICE), before[0])
    assert torch.equal(torch.rand(3), before[1])
    assert torch.equal(tokens(1), first)
    assert not torch.equal(tokens(2)[:, : first.shape[1]], first[:, : tokens(2).shape[1]])


@pytest.mark.parametrize("shared", [False, True])
def test_a_resumed_run_is_the_same_to_the_bit(make: Callable[..., PPO], shared: bool, deterministic: None) -> None:
    whole = make(shared)
    metrics = list(whole.run(4, progress=False))
    first, saved = make(shared), io.BytesIO()
    list(first.run(2, progress=False))
    torch.save(first.state_dict(), saved)
    for location in (DEVICE, CPU):  # where the checkpoint is loaded to makes no difference
        saved.seek(0)
        second = make(shared)
        second.load_state_dict(torch.load(saved, map_location=location, weights_only=True))
        assert list(second.run(2, progress=False)) == metrics[2:]
        assert torch.equal(parameters(second), parameters(whole))


@needs_cuda
@pytest.mark.parametrize(("first", "second"), [(DEVICE, CPU), (CPU, DEVICE)], ids=str)
def test_a_run_goes_on_on_another_device(
    make: Callable[..., PPO], first: torch.device, second: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    begun, saved = make(device=first), io.BytesIO()
    list(begun.run(2, progress=False))
    torch.save(begun.state_dict(), saved)
    runs = []
    for _ in range(2):
        saved.seek(0)
        ppo = make(device=second)
        with caplog.at_level(logging.WARNING, "adaptive_warmup"):
            ppo.load_state_dict(torch.load(saved, map_location=second, weights_only=True))
        assert f"another kind of device than {second.type}" in caplog.text
        assert torch.equal(parameters(ppo).cpu(), parameters(begun).cpu())
        assert ppo.scheduler.decision == begun.scheduler.decision
        runs.append(ppo.step()["response_length"])
    assert runs[0] == runs[1]


def test_evaluation_changes_nothing_and_repeats_itself(make: Callable[..., PPO], deterministic: None) -> None:
    ppo, undisturbed = make(), make()
    assert ppo.evaluate(40, seed=3) == ppo.evaluate(40, seed=3)
    assert ppo.step() == undisturbed.step()


def test_where_the_device_is_torchs_default(make: Callable[..., PPO], deterministic: None) -> None:
    """A generator of the CPU, as that of problems and mini-batches, cannot make numbers on another device."""
    plain = make().step()
    ppo = make()
    with torch.device(DEVICE):
        assert ppo.step() == plain


@needs_cuda
def test_advantages_and_losses_wait_for_nothing() -> None:
    """A wait for each token is what `where` with a number came to."""
    old, now, reference, values, later = torch.randn(5, 4, 16, device=DEVICE).unbind()
    scores, mask = torch.randn(4, device=DEVICE), torch.rand(4, 16, device=DEVICE) < 0.7
    now, later = now.requires_grad_(), later.requires_grad_()
    with no_waits():
        advantages, returns = gae(kl_penalised_rewards(scores, old, reference, mask, 0.1), values, mask, 0.9, 0.95)
        surrogate = now, old, whiten(advantages, mask), mask, 0.2
        (policy_loss(*surrogate) + value_loss(later, values, returns, mask, 0.2)).backward()
        skipped = clip_fraction(*surrogate)
    assert now.grad is not None
    assert later.grad is not None
    assert torch.isfinite(now.grad).all()
    assert 0.0 < float(skipped) < 1.0
