"""Reading late: nothing of the running step is read, decisions know it a step later, the device cuts and skips.

On CPUs, where `read="late"` takes the way of an accelerator but for the events.
"""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from adaptive_warmup import Config, Regulator, Signals
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.reading import Reader, limit, unlimited
from tests.integrations.trainers import FLAT, STEPS, Line, same, trainer, weights


class Reads(TorchDispatchMode):
    """Counts how often Python is given a tensor's value, for which an accelerator would be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads(folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> int:
    run = trainer(folder, callbacks, **{"logging_steps": STEPS, **arguments})
    with Reads() as seen:
        run.train()
    return seen.count


def warmup(read: Any = "late") -> AdaptiveWarmupCallback:
    return AdaptiveWarmupCallback(4, probe=None, read=read)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_nothing_is_read_beyond_what_the_trainer_reads(tmp_path: Path, accumulated: int) -> None:
    arguments = {"gradient_accumulation_steps": accumulated, "logging_nan_inf_filter": False}
    plain = reads(tmp_path, **arguments)
    assert reads(tmp_path, warmup("late"), **arguments) == plain
    assert reads(tmp_path, warmup("now"), **arguments) == plain + 2 * STEPS  # the loss and the norm
    assert reads(tmp_path, warmup("auto"), **arguments) == plain + 2 * STEPS  # free on a CPU


class Taken(TrainerCallback):
    """What each decision was taken on, behind the callback that takes it."""

    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        self.warmup = warmup
        self.signals: list[Signals | None] = []
        self.alarms: list[list[str]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.warmup.regulator
        self.signals.append(self.warmup.regulator.signals)
        self.alarms.append([alarm.name for alarm in self.warmup.regulator.decision.alarms])


def run(folder: Path, read: str = "late", **arguments: Any) -> tuple[Trainer, Taken]:
    taken = Taken(callback := warmup(read))
    return trainer(folder, [callback, taken], **arguments), taken


def test_decisions_know_the_loss_and_the_norm_a_step_later(tmp_path: Path) -> None:
    seen = {}
    for read in ("now", "late"):
        training, taken = run(tmp_path, read, **FLAT)
        training.train()
        seen[read] = [(signals.loss, signals.grad_norm) for signals in taken.signals if signals]
    assert seen["late"] == [(None, None), *seen["now"][:-1]]
    assert len(seen["now"]) == STEPS


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    first, whole = run(tmp_path, save_strategy="steps", save_steps=5)
    first.train()
    second, rest = run(tmp_path)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert rest.signals == whole.signals[5:]
    assert same(weights(second), weights(first))


class Seen(Line):
    """Its weights as they are at the begin of each update."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen.append(self.weight.detach().clone())
        return super().forward(x, labels)

    @property
    def skipped(self) -> list[bool]:
        """Whether each update, but for the last, left them as they were."""
        return [torch.equal(before, after) for before, after in pairwise(self.seen)]


class Blows(Seen):
    """The gradients of update 8 are NaN."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = super().forward(x, labels)
        if len(self.seen) == 9:
            out["loss"].register_hook(lambda gradient: gradient * math.nan)
        return out


def test_an_update_that_is_not_finite_is_skipped_unread(tmp_path: Path) -> None:
    """By the Trainer's own optimizer."""
    model = Blows()
    training, taken = run(tmp_path, model=model, **FLAT)
    training.train()
    assert model.skipped == [step == 8 for step in range(STEPS - 1)]
    assert bool(model.weight.isfinite().all())
    assert taken.alarms == [["non_finite"] if step == 9 else [] for step in range(STEPS)]


# Ten sd out; a millionfold to a thousandth, which is the least.
CUTS = [(1.2, 1.2), (20.0, 1.0), (1e6, 1e3), (math.nan, 0.0), (math.inf, 0.0)]


def settled() -> Regulator:
    """Gradient norms of 1 so far."""
    regulator = Regulator(Config(10))
    for _ in range(10):
        regulator.observe(grad_norm=1.0)
        regulator.decide()
    return regulator


@pytest.mark.parametrize(("norm", "moved"), CUTS)
def test_an_outlier_is_cut_to_a_usual_size_unread(norm: float, moved: float) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = SGD([parameter], lr=1.0, fused=True)
    parameter.grad = torch.tensor([norm])
    with Reads() as seen:
        limit(optimizer, torch.tensor(norm), settled())
        optimizer.step()
        unlimited(optimizer)
    assert seen.count == 0
    assert -parameter.item() == pytest.approx(moved)
    parameter.grad = torch.tensor([20.0])
    optimizer.step()  # the next one is as it was
    assert -parameter.item() == pytest.approx(moved + 20.0)


def test_an_optimizer_that_is_not_fused_is_left_alone_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = Line()
    optimizer = SGD(model.parameters(), lr=1e-3)
    trainer(tmp_path, [warmup()], model=model, optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0))).train()
    assert "no update is cut or skipped for its gradient: SGD is not fused; read='now' waits and does" in caplog.text
    caplog.clear()
    trainer(tmp_path, [warmup()]).train()
    assert "no update is cut" not in caplog.text


def test_a_kl_that_is_read_late_keeps_its_step() -> None:
    reader, regulator = Reader("late"), Regulator(Config(100))
    regulator.decide()
    at_once = reader.take({"kl": torch.tensor(0.04), "kl_source": "probe", "entropy": 2.0}, regulator.state.step)
    assert at_once == {"entropy": 2.0}
    regulator.decide()
    regulator.supply(**reader.arrived())
    decision = regulator.decide()
    assert (regulator.signals.kl_source, regulator.signals.kl_lr) == ("probe", 0.02)  # type: ignore[union-attr]
    assert decision.ceiling == pytest.approx(0.01)  # four times the target at .02
    assert reader.arrived() == {}


def test_an_unknown_way_of_reading_is_refused() -> None:
    with pytest.raises(ValueError, match="read='soon' is unknown: use 'auto', 'now' or 'late'"):
        AdaptiveWarmupCallback(read="soon")  # type: ignore[arg-type]
