"""Faults in a real `transformers.Trainer`: training goes on to its last step, and the callback says what it saw."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import TrainerCallback

from adaptive_warmup import Decision
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.faults.catalogue import fault
from tests.integrations.trainers import FLAT, PEAK, Line, Plant, Record, rows, trainer

STEPS, FROM, UNTIL = 24, 10, 13  # the fault lasts for three steps
Loss = Callable[[int, Tensor], Tensor]


class Broken(Line):
    """Its loss at update t is `loss(t, loss)`."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss, self.step = loss, -1

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.step += 1
        out = super().forward(x, labels)
        return {**out, "loss": self.loss(self.step, out["loss"])}


class Each(TrainerCallback):
    """Notes the decision after each step, behind the callback that takes it."""

    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        self.warmup, self.decisions = warmup, list[Decision]()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.warmup.decision is not None
        self.decisions.append(self.warmup.decision)


class Says(TrainerCallback):
    """Reports `signals` while the fault lasts, after the honest report."""

    def __init__(self, warmup: AdaptiveWarmupCallback, signals: dict[str, float]) -> None:
        self.warmup, self.signals = warmup, signals

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if FROM <= state.global_step - 1 < UNTIL:
            self.warmup.observe(**self.signals)


class Course:
    """A run that bears six tenths of its peak lr."""

    def __init__(self, folder: Path, loss: Loss = lambda step, loss: loss, log: str | None = None, data: Any = None,
                 **says: float) -> None:  # fmt: skip
        self.warmup = AdaptiveWarmupCallback(20, target_kl=0.01, probe=None, log=log)
        self.record, self.each = Record(self.warmup), Each(self.warmup)
        self.model = Broken(loss)
        honest, fault = Plant(self.record, self.warmup, 0.6 * PEAK), Says(self.warmup, says)
        callbacks = [self.record, honest, fault, self.warmup, self.each]
        self.run = trainer(folder, callbacks, model=self.model, data=data, max_steps=STEPS, **FLAT)
        self.run.train()

    def check(self) -> None:
        assert self.run.state.global_step == STEPS
        assert all(bool(p.isfinite().all()) for p in self.model.parameters())
        assert all(0.0 < decision.factor <= 1.0 for decision in self.each.decisions)

    def held(self, words: str) -> None:
        during = self.each.decisions[FROM:UNTIL]
        assert max(decision.factor for decision in during) <= self.each.decisions[FROM - 1].factor * (1 + 1e-12)
        assert all(words in alarm.message for decision in during for alarm in decision.alarms[:1])
        assert all(decision.alarms for decision in during)
        assert self.each.decisions[-1].factor > 0.2 * self.each.decisions[FROM - 1].factor


def broken(how: Callable[[Tensor], Tensor]) -> Loss:
    return lambda step, value: how(value) if FROM <= step < UNTIL else value


@pytest.mark.parametrize("value", [math.nan, math.inf])
@fault("values", "Trainer", "NaN or infinite loss, three steps", "updates skipped, lr held, then on as before")
def test_loss(tmp_path: Path, value: float) -> None:
    run = Course(tmp_path, broken(lambda loss: loss * value))
    run.check()
    run.held("loss is")


@fault("values", "Trainer", "NaN gradient under a finite loss, three steps", "updates skipped, lr held")
def test_gradient(tmp_path: Path) -> None:
    def poison(loss: Tensor) -> Tensor:
        loss = loss.clone()
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    run = Course(tmp_path, broken(poison))
    run.check()
    run.held("grad_norm is nan")


@pytest.mark.parametrize("name", ["kl", "task_reward"])
@fault("values", "Trainer", "NaN KL or reward reported, three steps", "lr held, then on as before")
def test_reported_nan(tmp_path: Path, name: str) -> None:
    run = Course(tmp_path, **{name: math.nan})
    run.check()
    run.held(f"{name} is nan")


@fault(
    "values",
    "Trainer",
    "reward a thousand times too large, three steps",
    "lr within a factor of five of what it would be",
)
def test_reward_glitch(tmp_path: Path) -> None:
    run, undisturbed = Course(tmp_path / "one", task_reward=1e3), Course(tmp_path / "other")
    run.check()
    assert run.record.lrs[-1] > 0.2 * undisturbed.record.lrs[-1]


@fault(
    "reports",
    "Trainer",
    "a corrupted batch: labels ten thousand times too large",
    "training goes on, the weights below 10",
)
def test_corrupted_batch(tmp_path: Path) -> None:
    run = Course(tmp_path, data=rows(96, outlier=50))
    run.check()
    assert bool(run.model.weight.abs().max() < 10)


@pytest.mark.parametrize("log", ["/dev/full", "/proc/no/run.jsonl"])
@fault(
    "disks", "Trainer", "decision log on a full disk, or in a folder that takes none", "one warning; training goes on"
)
def test_disks(tmp_path: Path, log: str, caplog: pytest.LogCaptureFixture) -> None:
    run = Course(tmp_path, log=log)
    run.check()
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1
