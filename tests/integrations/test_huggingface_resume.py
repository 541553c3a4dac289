"""Checkpoints of the real `transformers.Trainer` with `AdaptiveWarmupCallback`: exact, and fit to go on without it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerState

from adaptive_warmup import Config, Regulator
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.stored import Stored
from tests.integrations.trainers import (
    ON_A_METRIC,
    PEAK,
    RAMP,
    SCHEDULES,
    STEPS,
    WARMUP,
    Plant,
    Record,
    arguments,
    same,
    scheduled,
    step_logs,
    trainer,
    weights,
)


def resumed(tmp_path: Path, schedule: str, signals: bool, **extra: Any) -> tuple[Any, ...]:
    warmup = AdaptiveWarmupCallback(WARMUP)
    record = Record(warmup)
    plants = [Plant(record, warmup, bears=0.7 * PEAK, wiggle=0.5)] if signals else []
    settings = {**arguments(schedule), "save_strategy": "steps", "save_steps": 6, **extra}
    run = trainer(tmp_path, [record, *plants, warmup], **settings)
    return run, record, warmup


@pytest.mark.parametrize("signals", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resume_is_exact(tmp_path: Path, schedule: str, signals: bool) -> None:
    whole, record, warmup = resumed(tmp_path, schedule, signals)
    whole.train()
    assert len(record.lrs) == STEPS
    again, after, fresh = resumed(tmp_path, schedule, signals)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert after.lrs == record.lrs[6:]
    assert step_logs(after.logs) == step_logs(record.logs)[6:]
    assert step_logs(again.state.log_history) == step_logs(whole.state.log_history)
    assert after.decisions[-5:] == record.decisions[-5:]
    assert fresh.decision == warmup.decision
    assert fresh.regulator.state == warmup.regulator.state
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("schedule", ["linear", ON_A_METRIC[-1]])
def test_resume_is_exact_where_the_trainer_restores_callbacks(tmp_path: Path, schedule: str) -> None:
    """And the callback that the user holds is still the one that hears what is observed."""
    whole, record, _ = resumed(tmp_path, schedule, True)
    whole.train()
    again, after, fresh = resumed(tmp_path, schedule, True, restore_callback_states_from_checkpoint=True)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert fresh in again.callback_handler.callbacks
    assert after.lrs == record.lrs[6:]
    assert step_logs(after.logs) == step_logs(record.logs)[6:]
    assert same(weights(again), weights(whole))


def test_resume_twice_and_on_the_same_trainer(tmp_path: Path) -> None:
    run, record, _ = resumed(tmp_path, "cosine", True, save_steps=4)
    run.train()
    first = list(record.lrs)
    for start in (4, 8):
        record.groups.clear()
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{start}"))
        assert record.lrs == first[start:]


@pytest.mark.parametrize("schedule", ["linear", *ON_A_METRIC])
@pytest.mark.parametrize("restore", [False, True])
def test_a_checkpoint_resumes_without_the_callback(tmp_path: Path, schedule: str, restore: bool) -> None:
    run, _, _ = resumed(tmp_path, schedule, True)
    run.train()
    record = Record()
    settings = {**arguments(schedule), "save_strategy": "steps", "save_steps": 6}
    bare = trainer(tmp_path, [record], restore_callback_states_from_checkpoint=restore, **settings)
    bare.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert record.lrs == pytest.approx(scheduled(schedule)[6:], rel=1e-12)


def test_updates_of_a_run_without_us_count_in_decisions() -> None:
    state, regulator = TrainerState(), Regulator(Config(10))
    state.global_step = 8
    Stored(state).resume(regulator, None, period=4)
    assert (regulator.decision.step, regulator.decision.factor) == (2, 0.3)


@pytest.mark.parametrize("schedule", ["linear", *ON_A_METRIC])
def test_a_checkpoint_without_the_callback_resumes_on_the_nominal_warmup(
    tmp_path: Path, schedule: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**arguments(schedule), "save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path, **settings).train()
    record = Record()
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        trainer(tmp_path, [record, AdaptiveWarmupCallback(8)], **settings).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-6")
        )
    assert "going on from the nominal warmup" in caplog.text
    up = [7 / 8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert record.lrs == pytest.approx([lr * f for lr, f in zip(scheduled(schedule)[6:], up, strict=True)])


def test_a_state_of_before_steps_without_the_callback_is_none(tmp_path: Path) -> None:
    """With it to step 4, without it to 8, with it again: update 8 runs at nine tenths, not at five."""
    settings = {**arguments("constant"), "save_strategy": "steps", "save_steps": 4}
    resume: dict[str, Any] = {}
    for until, adaptive in ((4, True), (8, False), (12, True)):
        record = Record()
        callbacks = [record, AdaptiveWarmupCallback(10)] if adaptive else [record]
        trainer(tmp_path, callbacks, **{**settings, "max_steps": until}).train(**resume)
        resume = {"resume_from_checkpoint": str(tmp_path / f"checkpoint-{until}")}
    assert record.lrs == pytest.approx([0.9 * PEAK, PEAK, PEAK, PEAK])


class StopAt(TrainerCallback):
    """Asks for a checkpoint, and the end, in the midst of a step, as SIGTERM does with `enable_jit_checkpoint`."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.handler: Any = None

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            manager = next(c.jit_manager for c in self.handler.callbacks if hasattr(c, "jit_manager"))
            manager.is_checkpoint_requested = True


@pytest.mark.parametrize("schedule", ["cosine", ON_A_METRIC[-1]])
def test_a_checkpoint_in_the_midst_of_a_step_holds_the_schedules_own_lr(tmp_path: Path, schedule: str) -> None:
    settings = {**arguments(schedule), "gradient_accumulation_steps": 2}
    stop, until = StopAt(1), Record()
    run = trainer(tmp_path, [until, AdaptiveWarmupCallback(WARMUP), stop], enable_jit_checkpoint=True, **settings)
    stop.handler = run.callback_handler
    run.train()
    assert until.lrs == pytest.approx([0.25 * PEAK, 0.5 * PEAK])  # the update that it was in the midst of as well
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"][0]["lr"]
    own = torch.load(checkpoint / "scheduler.pt", weights_only=True)["_last_lr"][0]
    assert saved == own
    record = Record()
    trainer(tmp_path, [record, AdaptiveWarmupCallback(WARMUP)], **settings).train(
        resume_from_checkpoint=str(checkpoint)
    )
    expected = [lr * up for lr, up in zip(scheduled(schedule), RAMP, strict=True)]
    # the aborted update is made again (in the metric-driven ones evaluations count from the same steps)
    assert record.lrs == pytest.approx(expected[STEPS - len(record.lrs) :])


def test_the_checkpoint_is_plain_json(tmp_path: Path) -> None:
    run, _, warmup = resumed(tmp_path, "linear", True)
    run.train()
    stored = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert json.loads(json.dumps(warmup.regulator.state_dict())) in _values(stored["stateful_callbacks"])


def _values(tree: Any) -> list[Any]:
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [tree, *(value for child in inner for value in _values(child))]
