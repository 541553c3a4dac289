"""The Trainer's callback in runs on the device: what it waits for, what it skips, and that it resumes there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, Trainer, TrainerCallback

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.gpu.device import CPU, DEVICE, needs_cuda, waits
from tests.integrations.test_reading import Blows, Seen, Taken
from tests.integrations.trainers import FLAT, STEPS, Line, Record, rows, same, trainer, weights
from tests.test_probe import gpt as probed_gpt
from tests.test_probe import tokens

WARMUP = 4
FREE: dict[str, Any] = {"logging_steps": STEPS, "logging_nan_inf_filter": False}  # else each loss is waited for


def run(folder: Path, *callbacks: TrainerCallback, device: torch.device = DEVICE, **arguments: Any) -> Trainer:
    made = trainer(folder, callbacks, use_cpu=device.type == "cpu", **arguments)
    made.train()
    assert {parameter.device.type for parameter in made.model.parameters()} == {device.type}
    return made


def late(**settings: Any) -> AdaptiveWarmupCallback:
    return AdaptiveWarmupCallback(WARMUP, read="auto" if DEVICE.type == "cuda" else "late", **settings)


class Counted(TrainerCallback):
    """The waits in each step so far."""

    def __init__(self, count: Any) -> None:
        self.count, self.steps = count, [0]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(self.count())


def waited(folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> list[int]:
    """In each step, with callbacks that stand before the one that counts."""
    with waits() as count:
        counted = Counted(count)
        run(folder, *callbacks, counted, **arguments)
    return [after - before for before, after in pairwise(counted.steps)]


@pytest.mark.parametrize("bf16", [False, True])
def test_it_runs_and_logs(tmp_path: Path, bf16: bool) -> None:
    warmup = late()
    record, taken = Record(warmup), Taken(warmup)
    run(tmp_path, warmup, record, taken, bf16=bf16, **FLAT)
    assert record.logged("adaptive_warmup/factor") == pytest.approx([lr / 0.01 for lr in record.lrs])
    assert record.lrs[: WARMUP // 2] == pytest.approx([0.01 / WARMUP, 0.02 / WARMUP])
    assert [signals is not None and signals.loss is not None for signals in taken.signals] == [False] + [True] * 11
    assert warmup.decision is not None
    assert warmup.decision.step == STEPS


def test_decisions_are_those_of_the_cpu(tmp_path: Path) -> None:
    seen = []
    for device in (DEVICE, CPU):
        warmup = AdaptiveWarmupCallback(WARMUP, read="late")
        taken = Taken(warmup)
        run(tmp_path, warmup, taken, device=device, model=Line(), **FLAT)
        seen.append([(signals.loss, signals.grad_norm) for signals in taken.signals[1:] if signals])
    for mine, theirs in zip(*seen, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@needs_cuda
@pytest.mark.parametrize("arguments", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_it_waits_for_nothing_that_the_trainer_does_not_wait_for(tmp_path: Path, arguments: dict[str, Any]) -> None:
    waited(tmp_path, **FREE, **arguments)  # CUDA begins
    plain = waited(tmp_path, **FREE, **arguments)
    assert len(plain) == STEPS
    assert waited(tmp_path, late(probe=None), **FREE, **arguments) == plain
    at_once = waited(tmp_path, AdaptiveWarmupCallback(WARMUP, probe=None, read="now"), **FREE, **arguments)
    assert all(mine > theirs for mine, theirs in zip(at_once, plain, strict=True))


def gpt(dropout: float = 0.1) -> GPT2LMHeadModel:
    return probed_gpt(dropout, n_positions=32, n_layer=1)


def texts() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens(20, 24)]


class Measured(Taken):
    """In which steps the probe gave a KL, and which."""

    @property
    def kls(self) -> dict[int, float]:
        return {step: one.kl for step, one in enumerate(self.signals) if one is not None and one.kl is not None}


@needs_cuda
def test_the_probe_is_waited_for_where_it_measures_only(tmp_path: Path) -> None:
    waited(tmp_path, model=gpt(), data=texts(), **FREE)
    plain = waited(tmp_path, model=gpt(), data=texts(), **FREE)
    warmup = late()
    measured = Measured(warmup)
    probed = waited(tmp_path, warmup, measured, model=gpt(), data=texts(), **FREE)
    more = {step for step, (mine, theirs) in enumerate(zip(probed, plain, strict=True)) if mine > theirs}
    assert more == set(measured.kls)
    assert 0 < len(more) < STEPS


@pytest.mark.parametrize("bf16", [False, True])
def test_the_probe_reads_what_it_reads_on_the_cpu(tmp_path: Path, bf16: bool) -> None:
    """Of a model without dropout, whose random numbers would be others."""
    found = []
    for device in (DEVICE, CPU):
        warmup = AdaptiveWarmupCallback(WARMUP, read="late")
        measured = Measured(warmup)
        run(tmp_path, warmup, measured, device=device, model=gpt(dropout=0.0), data=texts(), bf16=bf16, **FREE, **FLAT)
        found.append(measured.kls)
    assert found[0].keys() == found[1].keys()
    assert found[0] == pytest.approx(found[1], rel=0.3 if bf16 else 0.05, abs=2e-4 if bf16 else 0.0)
    assert max(found[0].values()) > 1e-3


def test_an_update_that_is_not_finite_is_skipped_unread(tmp_path: Path) -> None:
    model, warmup = Blows(), late(probe=None)
    taken = Taken(warmup)
    run(tmp_path, warmup, taken, model=model, **FLAT)
    assert model.skipped == [step == 8 for step in range(STEPS - 1)]
    assert bool(model.weight.isfinite().all())
    assert taken.alarms == [["non_finite"] if step == 9 else [] for step in range(STEPS)]


@needs_cuda
def test_what_overflows_in_fp16_is_skipped_and_alarmed_a_step_late(tmp_path: Path) -> None:
    """A label of some 10,000, whose gradient times the loss scaler's 65,536 is more than fp16 holds."""
    model, warmup = Seen(), late(probe=None)
    taken = Taken(warmup)
    run(tmp_path, warmup, taken, model=model, data=rows(outlier=3), fp16=True, **FLAT)
    model.seen.append(model.weight.detach())
    skipped = model.skipped
    assert 2 <= sum(skipped) < STEPS
    assert [bool(alarms) for alarms in taken.alarms] == [False, *skipped[:-1]]
    assert bool(model.weight.isfinite().all())


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}], ids=str)
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, arguments: dict[str, Any], deterministic: None) -> None:
    warmup = late()
    whole = Taken(warmup)
    first = run(
        tmp_path, warmup, whole, model=gpt(), data=texts(), save_strategy="steps", save_steps=5, **arguments, **FREE
    )
    again = late()
    rest = Taken(again)
    second = trainer(
        tmp_path, [again, rest], use_cpu=DEVICE.type == "cpu", model=gpt(), data=texts(), **arguments, **FREE
    )
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert rest.signals == whole.signals[5:]
    assert any(signals is not None and signals.kl is not None for signals in rest.signals)  # the probe went on, too
    assert again.decision == warmup.decision
    assert same(weights(second), weights(first))


@pytest.mark.parametrize(("first", "second"), [(DEVICE, CPU), (CPU, DEVICE)], ids=str)
def test_a_run_goes_on_on_another_device(tmp_path: Path, first: torch.device, second: torch.device) -> None:
    settings = {**FREE, **FLAT, "data": texts()}
    warmup = AdaptiveWarmupCallback(WARMUP, read="late")
    whole = Measured(warmup)
    run(tmp_path, warmup, whole, device=first, model=gpt(), save_strategy="steps", save_steps=5, **settings)
    again = AdaptiveWarmupCallback(WARMUP, read="late")
    rest = Measured(again)
    made = trainer(tmp_path, [again, rest], use_cpu=second.type == "cpu", model=gpt(), **settings)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.decision is not None
    assert again.decision.step == STEPS
    first_known, last_known = rest.signals[0], whole.signals[5]
    assert first_known is not None
    assert last_known is not None
    assert first_known.loss == last_known.loss  # read before the checkpoint, and known after it
    assert {step + 5 for step in rest.kls} == {step for step in whole.kls if step >= 5}
