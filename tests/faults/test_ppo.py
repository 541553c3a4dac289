"""Faults in the PPO loop: training goes on, the weights stay finite, the lr does not rise on them, and comes back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from adaptive_warmup import AdaptiveWarmup, Decision
from adaptive_warmup.ppo import PPO, PPOConfig, Problem
from tests.faults.catalogue import fault

STEPS, FROM, UNTIL = 16, 8, 11  # the fault lasts for three RL steps
Inject = Callable[[PPO, pytest.MonkeyPatch], Any]  # a hook that it gives back is removed when the fault is over


class Course:
    """What an RL run went through."""

    def __init__(self, ppo: PPO) -> None:
        self.ppo, self.decisions, self.metrics = ppo, list[Decision](), list[dict[str, float]]()

    def go(self, steps: int) -> None:
        for metrics in self.ppo.run(steps, progress=False):
            self.metrics.append(metrics)
            self.decisions.append(self.ppo.scheduler.decision)  # type: ignore[attr-defined]

    @property
    def factors(self) -> list[float]:
        return [decision.factor for decision in self.decisions]


@pytest.fixture
def course(make_policy: Any, tokenizer: Any, copy_task: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Course]:
    def make(inject: Inject | None = None) -> Course:
        policy = make_policy()
        config = PPOConfig(
            batch_size=8, mini_batches=1, max_response_tokens=2, kl_coef=0.05, learning_rate=0.05,
            value_learning_rate=1e-3,
        )  # fmt: skip
        warmup = lambda optimizer: AdaptiveWarmup(optimizer, 30, target_kl=0.01)  # noqa: E731
        run = Course(PPO(config, policy, copy.deepcopy(policy), copy_task, tokenizer, scheduler=warmup))
        run.go(FROM)
        with monkeypatch.context() as patch:
            hook = inject(run.ppo, patch) if inject else None
            run.go(UNTIL - FROM)
        if hook:
            hook.remove()
        run.go(STEPS - UNTIL)
        return run

    return make


def check(run: Course) -> None:
    """What holds whatever the fault."""
    assert all(bool(p.isfinite().all()) for p in run.ppo.model.parameters())
    assert all(0.0 < factor <= 1.0 for factor in run.factors)
    assert run.metrics[-1]["skipped_updates"] == 0
    assert math.isfinite(run.metrics[-1]["policy/kl"])


def held(run: Course, signal: str) -> None:
    """Not one rise while the fault lasted; said by name; the run goes on below its ceiling afterwards."""
    during = run.decisions[FROM:UNTIL]
    assert max(decision.factor for decision in during) <= run.factors[FROM - 1] * (1 + 1e-12)
    assert all("non_finite" in [alarm.name for alarm in decision.alarms] for decision in during)
    assert all(f"{signal} is" in " ".join(alarm.message for alarm in decision.alarms) for decision in during)
    assert not run.decisions[-1].alarms
    assert run.factors[-1] > 0.2 * run.factors[FROM - 1]


def score(value: float) -> Inject:
    return lambda ppo, patch: patch.setattr(ppo.environment, "score", lambda problem, response: value, raising=True)


@fault("values", "PPO", "NaN reward, three steps", "updates skipped, lr held, then on as before")
def test_nan_reward(course: Callable[..., Course]) -> None:
    run = course(score(math.nan))
    check(run)
    held(run, "task_reward")
    assert all(metrics["skipped_updates"] == 1 for metrics in run.metrics[FROM:UNTIL])


@fault("values", "PPO", "infinite reward, three steps", "updates skipped, lr held, then on as before")
def test_infinite_reward(course: Callable[..., Course]) -> None:
    run = course(score(math.inf))
    check(run)
    held(run, "task_reward")


@fault("values", "PPO", "NaN gradient, three steps", "updates skipped, lr held, then on as before")
def test_nan_gradient(course: Callable[..., Course]) -> None:
    run = course(lambda ppo, patch: next(ppo.policy.parameters()).register_hook(lambda gradient: gradient * math.nan))
    check(run)
    held(run, "grad_norm")
    assert all(metrics["skipped_updates"] == 1 for metrics in run.metrics[FROM:UNTIL])


@fault("values", "PPO", "NaN KL, three steps", "lr held, then on as before")
def test_nan_kl(course: Callable[..., Course]) -> None:
    def inject(ppo: PPO, patch: pytest.MonkeyPatch) -> None:
        scheduler: Any = ppo.scheduler
        observe = scheduler.observe
        patch.setattr(scheduler, "observe", lambda **signals: observe(**{**signals, "kl": math.nan}))

    run = course(inject)
    check(run)
    held(run, "kl")


@fault("values", "PPO", "infinite loss, three steps", "updates skipped, lr held, then on as before")
def test_infinite_loss(course: Callable[..., Course]) -> None:
    def inject(ppo: PPO, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("adaptive_warmup.ppo.update.policy_loss", lambda now, *rest: (now * math.inf).sum())

    run = course(inject)
    check(run)
    held(run, "loss")


@fault(
    "values",
    "PPO",
    "reward a thousand times too large, three steps",
    "training goes on, the lr within a factor of ten of before",
)
def test_reward_glitch(course: Callable[..., Course]) -> None:
    def inject(ppo: PPO, patch: pytest.MonkeyPatch) -> None:
        honest = ppo.environment.score
        patch.setattr(ppo.environment, "score", lambda *args: 1e3 * (0.5 + honest(*args)))

    run = course(inject)
    check(run)
    assert run.factors[-1] > 0.1 * run.factors[FROM - 1]


@fault(
    "reports",
    "PPO",
    "a corrupted batch: prompts of noise, three steps",
    "training goes on, the lr within a factor of ten of before",
)
def test_corrupted_batch(course: Callable[..., Course]) -> None:
    def inject(ppo: PPO, patch: pytest.MonkeyPatch) -> None:
        noise = [Problem("#<x?q" * 3, "none")] * 8
        patch.setattr(ppo.environment, "sample", lambda *args, **kwargs: noise)

    run = course(inject)
    check(run)
    assert run.factors[-1] > 0.1 * run.factors[FROM - 1]


@fault("reports", "PPO", "the critic is reset", "training goes on, the policy's KL below 1")
def test_critic_reset(course: Callable[..., Course]) -> None:
    def inject(ppo: PPO, patch: pytest.MonkeyPatch) -> None:
        with torch.no_grad():
            for parameter in ppo.critic.parameters():
                parameter.normal_(std=0.3)

    run = course(inject)
    check(run)
    assert max(metrics["policy/kl"] for metrics in run.metrics[UNTIL:]) < 1.0
