"""That the tests here would notice: the watches ring when the device is waited for."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE, busy, needs_cuda, no_waits, waits

pytestmark = needs_cuda


def test_a_read_rings() -> None:
    value = torch.ones((), device=DEVICE)
    with no_waits(), pytest.raises(RuntimeError, match="synchronizing"):
        float(value)
    float(value)  # and no more afterwards


def test_reads_are_counted() -> None:
    value = torch.ones((), device=DEVICE)
    with waits() as count:
        assert count() == 0
        value.mul_(2.0)
        assert count() == 0
        float(value)
        value.tolist()
        assert count() == 2


def test_the_device_is_busy_for_a_while() -> None:
    event = busy()
    assert not event.query()
    event.synchronize()
    assert event.query()
