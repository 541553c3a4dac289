"""Signals on the device under a Trainer: copied while it works, read late, and an update cut by the device itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from adaptive_warmup import Config, Regulator
from adaptive_warmup.integrations.reading import Reader, limit, unlimited
from tests.gpu.device import DEVICE, busy, needs_cuda, no_waits
from tests.integrations.test_reading import CUTS, settled

READ: Any = "auto" if DEVICE.type == "cuda" else "late"


def test_what_is_taken_is_as_it_was_then_of_any_kind() -> None:
    reader = Reader(READ)
    given = {
        "loss": torch.tensor(0.3, device=DEVICE),
        "grad_norm": torch.tensor([2.5], device=DEVICE, dtype=torch.bfloat16),
        "entropy": torch.tensor(1.25, device=DEVICE, dtype=torch.float64, requires_grad=True),
    }
    for _ in range(3):  # the memory of the copies is used again
        expected = {"loss": float(given["loss"]), "grad_norm": 2.5, "entropy": 1.25}
        with no_waits():
            assert reader.take({**given, "kl": 0.5}, 0) == {"kl": 0.5}
            given["loss"].mul_(2.0)
        assert reader.arrived() == expected
        assert reader.arrived() == {}


@needs_cuda
def test_nothing_is_waited_for_but_the_copies() -> None:
    """Taken while the device is at work, which goes on; read when that is done, while it is at work again."""
    reader, value = Reader("auto"), torch.zeros((), device=DEVICE)
    reader.take({"loss": value}, 0)
    reader.arrived()
    earlier = busy()
    value.fill_(3.0)  # behind it
    reader.take({"loss": value}, 0)
    assert not earlier.query()
    later = busy()
    value.fill_(4.0)
    assert reader.arrived() == {"loss": 3.0}
    assert earlier.query()
    assert not later.query()
    later.synchronize()


@needs_cuda
def test_on_the_stream_that_is_at_work() -> None:
    reader, value, beside = Reader("auto"), torch.zeros((), device=DEVICE), torch.cuda.Stream()
    with torch.cuda.stream(beside):
        event = busy()
        value.fill_(7.0)
        reader.take({"loss": value}, 0)
        assert not event.query()
    assert reader.arrived() == {"loss": 7.0}


def test_a_kl_is_read_late_with_its_step() -> None:
    reader, regulator = Reader(READ), Regulator(Config(100))
    regulator.decide()
    kl = torch.tensor(0.04, device=DEVICE)
    assert reader.take({"kl": kl, "kl_source": "probe", "entropy": 2.0}, 1) == {"entropy": 2.0}
    regulator.decide()
    regulator.supply(**reader.arrived())
    assert regulator.decide().ceiling == pytest.approx(0.01)
    assert regulator.signals is not None
    assert (regulator.signals.kl_source, regulator.signals.kl_lr) == ("probe", 0.02)


@pytest.mark.parametrize(("norm", "moved"), CUTS)
def test_an_outlier_is_cut_by_the_device(norm: float, moved: float) -> None:
    """Nothing is waited for."""
    parameter = nn.Parameter(torch.zeros(1, device=DEVICE))
    optimizer = SGD([parameter], lr=1.0, fused=True)
    parameter.grad = torch.tensor([norm], device=DEVICE)
    of_it, regulator = torch.tensor(norm, device=DEVICE), settled()
    with no_waits():
        limit(optimizer, of_it, regulator)
        optimizer.step()
        unlimited(optimizer)
    assert -parameter.item() == pytest.approx(moved)
    parameter.grad = torch.tensor([20.0], device=DEVICE)
    optimizer.step()  # the next one is as it was
    assert -parameter.item() == pytest.approx(moved + 20.0)


def test_a_skipped_update_leaves_adam_as_it_was() -> None:
    parameter = nn.Parameter(torch.ones(3, device=DEVICE))
    optimizer = AdamW([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones(3, device=DEVICE)
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[parameter].items()} | {"": parameter.clone()}
    parameter.grad = torch.tensor([1.0, math.nan, math.inf], device=DEVICE)
    norm, regulator = torch.linalg.vector_norm(parameter.grad), settled()
    with no_waits():
        limit(optimizer, norm, regulator)
        optimizer.step()
        unlimited(optimizer)
    after = {**optimizer.state[parameter], "": parameter}
    assert all(torch.equal(after[name], value) for name, value in before.items())
