"""What `AdaptiveWarmupCallback` promises, case by case, of every trainer and schedule.

`test_huggingface*.py` has the plain Trainer under all schedules, and more cases; here the same few hold everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor
from transformers import Trainer, TrainerCallback

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import (
    PEAK,
    RAMP,
    STEPS,
    WARMUP,
    Record,
    arguments,
    same,
    scheduled,
    step_logs,
    weights,
)
from tests.integrations.trl_trainers import HOSTS, ON_POLICY, run

HALF = STEPS // 2
SCHEDULES = ("linear", "cosine", "reduce_lr_on_plateau")
# OnlineDPO cannot evaluate (TRL 1.16: its batches of prompts go to the model as they are), so nothing moves a plateau.
CASES = [(h, s) for h in HOSTS for s in SCHEDULES if (h, s) != ("OnlineDPO", "reduce_lr_on_plateau")]
PROBED = ("Trainer", "SFT", "DPO", "KTO", "RLOO", "GRPO")  # their models predict words, and show their inputs
every_case = pytest.mark.parametrize(("host", "schedule"), CASES)


class Moves(TrainerCallback):
    """Reports a KL quadratic in the lr, .01 at `bears`, that wiggles: what decisions are made of."""

    def __init__(self, record: Record, warmup: AdaptiveWarmupCallback, bears: float = 0.4 * PEAK) -> None:
        self.record, self.warmup, self.bears = record, warmup, bears

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        noise = math.exp(0.3 * math.sin(5.0 * state.global_step))
        self.warmup.observe(kl=0.01 * (self.record.lrs[-1] / self.bears) ** 2 * noise)


class StopsHalfway(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == HALF:
            control.should_save = control.should_training_stop = True


class Run(NamedTuple):
    trainer: Trainer
    record: Record
    warmup: AdaptiveWarmupCallback
    folder: Path


def adaptive(host: str, schedule: str, folder: Path, **extra: Any) -> Run:
    warmup = AdaptiveWarmupCallback(WARMUP)
    record = Record(warmup)
    callbacks = [record, Moves(record, warmup), warmup]
    return Run(run(host, folder, callbacks, **settings(schedule), **extra), record, warmup, folder)


def probed(host: str, folder: Path, resume: Path | None = None) -> Run:
    """A finished run in which nobody reports a post-update KL, so the probe does."""
    warmup = AdaptiveWarmupCallback(WARMUP, target_kl=0.001)
    record = Record(warmup)
    extra = {"save_strategy": "steps", "save_steps": HALF, **({"beta": 0.0} if host == "GRPO" else {})}
    made = Run(run(host, folder, [record, warmup], **settings("cosine"), **extra), record, warmup, folder)
    made.trainer.train(resume_from_checkpoint=resume and str(resume))
    return made


def settings(schedule: str) -> dict[str, Any]:
    return {**arguments(schedule), "max_steps": STEPS, "learning_rate": PEAK}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run from end to end with a checkpoint halfway, made once for each case."""
    done: dict[tuple[str, str], Run] = {}

    def whole(host: str, schedule: str) -> Run:
        if (host, schedule) not in done:
            folder = tmp_path_factory.mktemp(f"{host}-{schedule}")
            made = adaptive(host, schedule, folder, save_strategy="steps", save_steps=HALF)
            made.trainer.train()
            done[host, schedule] = made
        return done[host, schedule]

    yield whole
    done.clear()


@every_case
def test_the_lr_is_the_schedules_times_the_factor_and_it_is_the_one_logged(
    finished: Any, host: str, schedule: str
) -> None:
    record = finished(host, schedule).record
    factors = record.logged("adaptive_warmup/factor")
    assert len(record.lrs) == STEPS
    assert record.lrs == pytest.approx([lr * f for lr, f in zip(scheduled(schedule), factors, strict=True)], rel=1e-12)
    assert record.logged("learning_rate") == record.lrs
    assert factors[0] == RAMP[0]
    assert max(factors) < 0.8  # it bears four tenths of the peak, more or less
    assert len(set(factors)) > HALF


@every_case
def test_resume_is_exact_to_the_bit(finished: Any, tmp_path: Path, host: str, schedule: str) -> None:
    whole = finished(host, schedule)
    again = adaptive(host, schedule, tmp_path)
    again.trainer.train(resume_from_checkpoint=str(whole.folder / f"checkpoint-{HALF}"))
    assert again.record.lrs == whole.record.lrs[HALF:]
    assert ours(again.record) == ours(whole.record)[HALF:]
    assert again.warmup.decision == whole.warmup.decision
    assert same(weights(again.trainer), weights(whole.trainer))


@pytest.mark.parametrize("host", PROBED)
def test_with_the_probe_at_its_defaults_a_run_repeats_and_resumes_to_the_bit(tmp_path: Path, host: str) -> None:
    whole, repeated = probed(host, tmp_path / "whole"), probed(host, tmp_path / "repeated")
    resumed = probed(host, tmp_path / "resumed", whole.folder / f"checkpoint-{HALF}")
    measured = [signals is not None and signals.kl is not None for signals in whole.record.signals]
    assert any(measured[HALF:])
    for other, begin in ((repeated, 0), (resumed, HALF)):
        assert other.record.lrs == whole.record.lrs[begin:]
        assert other.record.signals == whole.record.signals[begin:]
        assert ours(other.record) == ours(whole.record)[begin:]
        assert other.warmup.decision == whole.warmup.decision
        assert same(weights(other.trainer), weights(whole.trainer))


@every_case
def test_a_checkpoint_with_it_resumes_without(finished: Any, tmp_path: Path, host: str, schedule: str) -> None:
    record = Record()
    bare = run(host, tmp_path, [record], **settings(schedule))
    bare.train(resume_from_checkpoint=str(finished(host, schedule).folder / f"checkpoint-{HALF}"))
    assert record.lrs == pytest.approx(scheduled(schedule)[HALF:], rel=1e-12)


@every_case
def test_a_checkpoint_without_it_resumes_with_it(tmp_path: Path, host: str, schedule: str) -> None:
    run(host, tmp_path, [StopsHalfway()], **settings(schedule)).train()
    record = Record()
    late = run(host, tmp_path, [record, AdaptiveWarmupCallback(HALF + 2, law="linear")], **settings(schedule))
    late.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{HALF}"))
    up = [7 / 8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert record.lrs == pytest.approx([lr * f for lr, f in zip(scheduled(schedule)[HALF:], up, strict=True)])


EXPONENTIAL = [min(WARMUP ** (t / (WARMUP - 1) - 1), 1.0) for t in range(STEPS)]


@every_case
def test_without_a_kl_it_is_nominal_and_a_broken_gradient_is_skipped(tmp_path: Path, host: str, schedule: str) -> None:
    after: list[list[Tensor]] = []

    class Looks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            after.append(weights(made))

    broken = STEPS - 3
    record = Record()
    made = run(
        host,
        tmp_path,
        [record, AdaptiveWarmupCallback(WARMUP, probe=None), Looks()],
        **settings(schedule),
        **({"measure_kl": False} if host == "PPO" else {}),
        reward=steady,
    )
    train = made.training_step

    def breaks(*args: Any, **kwargs: Any) -> Any:
        loss = train(*args, **kwargs)
        if made.state.global_step == broken:
            next(p for p in made.model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss

    made.training_step = breaks
    made.train()
    ramp = EXPONENTIAL if host in ("PPO", *ON_POLICY) else RAMP  # these tell the task reward
    expected = [lr * up for lr, up in zip(scheduled(schedule), ramp, strict=True)]
    others = [t for t in range(STEPS) if t != broken]
    assert [record.lrs[t] for t in others] == pytest.approx([expected[t] for t in others], rel=1e-12)
    assert same(after[broken], after[broken - 1])
    assert not same(after[broken + 1], after[broken])
    assert all(tensor.isfinite().all() for tensor in after[-1])


@pytest.mark.parametrize("host", HOSTS)
def test_two_on_one_trainer_are_refused_and_nothing_has_moved(tmp_path: Path, host: str) -> None:
    made = run(host, tmp_path, [AdaptiveWarmupCallback(), AdaptiveWarmupCallback()])
    before = weights(made)
    with pytest.raises(ValueError, match=r"two AdaptiveWarmupCallbacks on one Trainer.*remove one of them"):
        made.train()
    assert same(weights(made), before)


def steady(completions: list[str], **_: Any) -> list[float]:
    """The same rewards, in turns, at every step."""
    return [float(i % 2) for i in range(len(completions))]


def ours(record: Record) -> list[dict[str, float]]:
    """What is logged but for the hosts' clocks, and the tokens that some of them count from zero again."""
    names = ("loss", "grad_norm", "learning_rate")
    return [
        {name: value for name, value in logs.items() if name in names or name.startswith("adaptive_warmup/")}
        for logs in step_logs(record.logs)
    ]
