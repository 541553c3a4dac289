"""The param groups under `AdaptiveWarmup`: tensor lrs, signals and lrs on a device, own controllers, late comers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from adaptive_warmup import AdaptiveWarmup
from tests.optimizers import drive, lrs_of, optimizer_of

pytestmark = pytest.mark.filterwarnings("error")

# Signals on a device


class OnDevice(Tensor):
    """A tensor that claims to be on a GPU, and counts how often the host reads its value."""

    reads = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("item", "__float__", "tolist", "numpy", "__bool__", "__int__"):
            OnDevice.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def on_device(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype).as_subclass(OnDevice)


def test_a_signal_on_a_device_is_read_once_in_step_and_not_before() -> None:
    scheduler, before = AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=100), OnDevice.reads
    kl = on_device(0.5).requires_grad_()
    scheduler.observe(kl=kl, grad_norm=on_device(3.0))
    kl.data.fill_(7.0)  # the caller goes on using its buffer
    assert OnDevice.reads == before
    scheduler.optimizer.step()
    scheduler.step()
    assert OnDevice.reads == before + 2
    signals = scheduler.regulators[0].signals
    assert signals is not None
    assert (signals.kl, signals.grad_norm) == (0.5, 3.0)


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="the step of this torch's LRScheduler reads it itself")
def test_an_lr_on_a_device_is_filled_and_never_read() -> None:
    lr = on_device(1e-3)
    scheduler = AdaptiveWarmup(optimizer_of(lr), warmup_steps=10)
    reads = 0
    for _ in range(20):
        scheduler.optimizer.step()  # reads it, on the host as it really is
        before = OnDevice.reads
        scheduler.check_gradient(1.0)
        scheduler.observe(kl=0.0001)
        scheduler.step()
        reads += OnDevice.reads - before
    assert reads == 0
    assert scheduler.optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == np.float32(1e-3)


# Tensor lrs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_lr_is_filled_in_place_and_does_not_drift(dtype: torch.dtype) -> None:
    lr = torch.tensor(1e-3, dtype=dtype)
    base = float(lr)
    scheduler = AdaptiveWarmup(optimizer_of(lr), warmup_steps=100)
    for t, (at,) in enumerate(drive(scheduler, [{}] * 150)):
        assert at == float(torch.tensor(base * min(1.0, (t + 1) / 100), dtype=dtype))
    assert scheduler.optimizer.param_groups[0]["lr"] is lr


def test_what_a_tensor_lr_holds_is_known_whatever_torchs_default_device() -> None:
    """On that device, where it is a GPU, it would have to be waited for; `meta` has no value to give at all."""
    optimizer = optimizer_of(torch.tensor(1e-3))
    scheduler = AdaptiveWarmup(optimizer, warmup_steps=10)
    with torch.device("meta"):
        optimizer.step()
        scheduler.step()
    assert lrs_of(optimizer) == pytest.approx([2e-4])


def test_a_wrapped_schedule_works_on_a_tensor_lr_too() -> None:
    ours, theirs = torch.tensor(1e-3), torch.tensor(1e-3)
    scheduler = AdaptiveWarmup(CosineAnnealingLR(optimizer_of(ours), 40), warmup_steps=5)
    reference = CosineAnnealingLR(optimizer_of(theirs), 40)
    for _ in range(30):
        assert float(ours) == np.float32(float(theirs) * scheduler.decision.factor)
        drive(scheduler, [{}])
        drive(reference, [{}])


@pytest.mark.parametrize("late", [True, False])
def test_groups_that_share_a_tensor_lr_run_at_a_factor_each(late: bool) -> None:
    lr = torch.tensor(1.0, dtype=torch.float64)
    groups: list[dict[str, Any]] = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(3)]
    optimizer = torch.optim.Adam(groups[:2] if late else groups, lr=lr)
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"] is lr
    scheduler = AdaptiveWarmup(optimizer, warmup_steps=[10, 2] if late else [10, 2, 4])
    if late:
        drive(scheduler, [{}] * 9)
        optimizer.add_param_group(groups[2] | {"lr": lr})  # now at 1: its own from the next step on
        assert drive(scheduler, [{}] * 2)[1] == [1.0, 1.0, 0.5]
    else:
        assert drive(scheduler, [{}] * 3) == [[0.1, 0.5, 0.25], [0.2, 1.0, 0.5], [pytest.approx(0.3), 1.0, 0.75]]
    assert optimizer.param_groups[0]["lr"] is lr


# Groups with controllers of their own


def test_groups_may_have_a_warmup_and_a_law_each() -> None:
    optimizer = optimizer_of(1e-6, 1e-5)
    scheduler = AdaptiveWarmup(optimizer, warmup_steps=[286, 15], law=["feedback", "linear"])
    assert scheduler.per_group
    for t in range(20):
        assert lrs_of(optimizer)[1] == 1e-5 * min(1.0, (t + 1) / 15)
        optimizer.step()
        scheduler.observe(group=0, kl=1e-4, grad_norm=1.0)
        scheduler.observe(group=1, grad_norm=1e6)
        scheduler.step()
    actor, critic = scheduler.regulators
    assert actor.decision.factor > 0.9  # a tenth of the budget: long past the nominal 21 / 286
    assert scheduler.decision is actor.decision
    assert actor.signals is not None
    assert critic.signals is not None
    assert (actor.signals.grad_norm, critic.signals.grad_norm, critic.signals.kl) == (1.0, 1e6, None)


def test_without_a_group_all_controllers_are_told() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-6, 1e-5), warmup_steps=[100, 100])
    drive(scheduler, [{"kl": 0.02}])
    assert [r.signals and r.signals.kl for r in scheduler.regulators] == [0.02, 0.02]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"warmup_steps": [10, 20, 30]}, ValueError, r"warmup_steps=\[10, 20, 30\] has 3 entries for 2 param groups"),
        ({"warmup_steps": 10, "law": ["linear"]}, ValueError, r"law=\['linear'\] has 1 entries for 2"),
        ({"warmup_steps": 0}, ValueError, "warmup_steps=0 must be"),
        ({"warmup_steps": [10, None]}, ValueError, "warmup_steps=None must be"),
        ({}, ValueError, "say warmup_steps=100"),
        ({"warmup_steps": 10, "warmup": 3}, TypeError, "unknown setting 'warmup': known are warmup_steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        AdaptiveWarmup(optimizer_of(1e-6, 1e-5), **settings)


@pytest.mark.parametrize("warmup", [10, [10, 10]])
@pytest.mark.parametrize("group", [2, -1, "policy"])
def test_a_group_that_is_none_is_refused(warmup: int | list[int], group: Any) -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-6, 1e-5), warmup_steps=warmup)
    with pytest.raises(ValueError, match=f"group={group!r} is not among the 2 param groups"):
        scheduler.observe(group=group, kl=0.1)
    with pytest.raises(ValueError, match=f"group={group!r}"):
        scheduler.check_gradient(1.0, group)


# Groups added later


@pytest.mark.parametrize(("target", "gamma"), [(lambda o: o, 1.0), (partial(ExponentialLR, gamma=0.9), 0.9)])
def test_a_group_added_later_joins_the_common_controller(target: Callable[[Optimizer], Any], gamma: float) -> None:
    optimizer = optimizer_of(1.0)
    scheduler = AdaptiveWarmup(target(optimizer), warmup_steps=10)
    drive(scheduler, [{}] * 3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5})
    assert drive(scheduler, [{}] * 3)[1:] == [
        pytest.approx([1.0 * gamma**4 * 0.5, 0.5 * gamma * 0.5]),
        pytest.approx([1.0 * gamma**5 * 0.6, 0.5 * gamma**2 * 0.6]),
    ]


def test_a_group_added_later_gets_a_controller_that_begins_at_the_beginning() -> None:
    optimizer = optimizer_of(1.0, 0.1)
    scheduler = AdaptiveWarmup(optimizer, warmup_steps=[10, 4])
    drive(scheduler, [{}] * 3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 8.0})
    assert drive(scheduler, [{}] * 4)[1:] == [[0.5, 0.1, 2.0], [0.6, 0.1, 4.0], [0.7, 0.1, 6.0]]
    scheduler.observe(group=2, kl=0.1)


def test_a_late_kl_is_of_the_same_step_for_a_group_that_was_added_later() -> None:
    """At step 7 of the first group, 4 of the added one: its step 2 is the scheduler's step 5, at half of its peak."""
    scheduler = AdaptiveWarmup(optimizer_of(1.0, 0.1), warmup_steps=[10, 4], min_target_kl=0.01)
    drive(scheduler, [{}] * 3)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 8.0})
    drive(scheduler, [{}] * 3)
    scheduler.observe(kl=0.01, of_step=5)
    drive(scheduler, [{}])
    ceilings = [regulator.decision.ceiling for regulator in scheduler.regulators]
    assert ceilings == pytest.approx([0.6, 1.0, 0.5])
    with pytest.raises(ValueError, match="is still to come"):
        scheduler.observe(kl=0.01, of_step=8)
