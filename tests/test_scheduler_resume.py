"""Saving `AdaptiveWarmup` and going on: to the bit, or not at all."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from adaptive_warmup import AdaptiveWarmup
from tests.optimizers import drive, lively, lrs_of, optimizer_of, streams

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step"),  # torch 2.4's own SequentialLR
]
Build = Callable[[Optimizer], LRScheduler]


def linear_then_cosine(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.5, 1.0, 3), CosineAnnealingLR(optimizer, 40)], [3])


BUILDS: dict[str, Build] = {
    "optimizer": lambda o: AdaptiveWarmup(o, warmup_steps=10),
    "per_group": lambda o: AdaptiveWarmup(o, warmup_steps=[10, 3], law=["feedback", "linear"]),
    "guard_off": lambda o: AdaptiveWarmup(o, warmup_steps=5, guard=False),
    "transformers_cosine": lambda o: AdaptiveWarmup(get_cosine_schedule_with_warmup(o, 5, 40)),
    "transformers_wsd": lambda o: AdaptiveWarmup(get_wsd_schedule(o, 5, 10, num_stable_steps=10), warmup_steps=8),
    "cosine": lambda o: AdaptiveWarmup(CosineAnnealingLR(o, 40, 1e-5), warmup_steps=10),
    "exponential_per_group": lambda o: AdaptiveWarmup(ExponentialLR(o, 0.9), warmup_steps=[10, 20]),
    "one_cycle": lambda o: AdaptiveWarmup(OneCycleLR(o, 1e-2, 60, cycle_momentum=False), warmup_steps=10),
    "cyclic": lambda o: AdaptiveWarmup(CyclicLR(o, 1e-4, 1e-3, 5, cycle_momentum=False), warmup_steps=10),
    "lambda": lambda o: AdaptiveWarmup(LambdaLR(o, lambda t: 1 / (1 + t)), warmup_steps=10),
    "sequential": lambda o: AdaptiveWarmup(linear_then_cosine(o), warmup_steps=10),
    "chained": lambda o: AdaptiveWarmup(
        ChainedScheduler([ExponentialLR(o, 0.97), StepLR(o, 6)], optimizer=o), warmup_steps=10
    ),
    "in_sequential": lambda o: SequentialLR(o, [AdaptiveWarmup(o, 4), CosineAnnealingLR(o, 30)], [6]),
    "second_in_sequential": lambda o: SequentialLR(o, [StepLR(o, 2), AdaptiveWarmup(ExponentialLR(o, 0.9), 4)], [6]),
    "first_in_chain": lambda o: ChainedScheduler([AdaptiveWarmup(o, 10), ExponentialLR(o, 0.9)]),
    "last_in_chain": lambda o: ChainedScheduler([ExponentialLR(o, 0.9), AdaptiveWarmup(o, [10, 12])]),
}


def by_torch(state: Any) -> Any:
    """By way of a file that is loaded as transformers and Accelerate load theirs."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


ORDERS = (
    "build optimizer scheduler",
    "build scheduler optimizer",
    "build scheduler",
    "optimizer build scheduler",
)


def resume(build: Build, saved: dict[str, Any], order: str) -> Any:
    """A new process, which loads in one of the orders that people load in."""
    optimizer, scheduler = optimizer_of(1e-3, 0.2), cast("Any", None)
    for part in order.split():
        if part == "build":
            scheduler = build(optimizer)
        else:
            {"optimizer": optimizer, "scheduler": scheduler}[part].load_state_dict(saved[part])
    return scheduler


@pytest.mark.parametrize("name", BUILDS)
@settings(max_examples=15)
@given(streams, streams, st.sampled_from((by_torch, by_json, copy.deepcopy)), st.sampled_from(ORDERS))
def test_a_resumed_run_has_the_lrs_of_the_uninterrupted_one_to_the_bit(
    name: str, before: list[Any], after: list[Any], way: Callable[[Any], Any], order: str
) -> None:
    whole = cast("Any", BUILDS[name](optimizer_of(1e-3, 0.2)))
    drive(whole, before)
    saved = {"optimizer": copy.deepcopy(whole.optimizer.state_dict()), "scheduler": way(whole.state_dict())}
    rest = resume(BUILDS[name], saved, order)
    assert rest.get_last_lr() == whole.get_last_lr()
    assert drive(rest, after) == drive(whole, after)
    assert json.dumps(rest.state_dict()) == json.dumps(whole.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["optimizer", "cosine", "first_in_chain"])
@pytest.mark.parametrize("order", ORDERS)
def test_with_tensor_lrs_too(dtype: torch.dtype, name: str, order: str) -> None:
    def build(optimizer: Optimizer) -> LRScheduler:
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=dtype)
        return BUILDS[name](optimizer)

    whole = cast("Any", build(optimizer_of(1e-3, 0.2)))
    drive(whole, lively(13))
    saved = {"optimizer": copy.deepcopy(whole.optimizer.state_dict()), "scheduler": by_torch(whole.state_dict())}
    rest = resume(build, saved, order)
    assert drive(rest, lively(20)) == drive(whole, lively(20))
    assert str(rest.state_dict()) == str(whole.state_dict())
    assert all(isinstance(group["lr"], torch.Tensor) for group in rest.optimizer.param_groups)


def test_what_was_observed_and_cut_before_saving_counts_after_loading() -> None:
    whole = AdaptiveWarmup(optimizer_of(1e-3, 0.2), warmup_steps=20)
    drive(whole, [{"grad_norm": 1.0}] * 12)
    whole.observe(kl=torch.tensor(0.3), kl_source="in_loop", grad_norm=float("nan"))
    assert whole.check_gradient(50.0) < 0.1
    rest = AdaptiveWarmup(optimizer_of(1e-3, 0.2), warmup_steps=20)
    rest.load_state_dict(by_torch(whole.state_dict()))
    assert lrs_of(rest.optimizer) == lrs_of(whole.optimizer)
    for scheduler in (whole, rest):
        scheduler.optimizer.step()
        scheduler.step()
    assert rest.decision == whole.decision
    assert lrs_of(rest.optimizer) == lrs_of(whole.optimizer)


class Remembering:
    """A schedule for LambdaLR that keeps things which go into its state, and are not all plain."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.mark = object()

    def __call__(self, epoch: int) -> float:
        self.asked.append(epoch)
        return 0.98 ** len(self.asked)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: CyclicLR(o, 1e-4, 1e-3, 5, cycle_momentum=False),
        lambda o: LambdaLR(o, Remembering()),
    ],
)
def test_a_state_is_a_snapshot_and_may_be_loaded_twice(build: Build) -> None:
    scheduler = AdaptiveWarmup(build(optimizer_of(1e-3)), warmup_steps=10)
    drive(scheduler, lively(5))
    state = scheduler.state_dict()
    runs = []
    for _ in range(3):
        runs.append(drive(scheduler, lively(12)))
        scheduler.load_state_dict(state)
    assert runs[0] == runs[1] == runs[2]
    scheduler.load_state_dict(copy.deepcopy(state))
    assert drive(scheduler, lively(12)) == runs[0]


# What cannot be loaded


def leaves(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(state, (dict, list)):
        for key in state if isinstance(state, dict) else range(len(state)):
            yield from leaves(state[key], (*path, key))
    else:
        yield path


def unlike(value: Any) -> Any:
    """Another value, near it: one digit of a number is wrong."""
    if value is None or isinstance(value, bool):
        return not value
    return value + "?" if isinstance(value, str) else value + (1 if isinstance(value, int) else 1e-3 * (value or 1.0))


@given(st.data())
def test_a_damaged_state_is_refused_and_nothing_is_changed(data: st.DataObject) -> None:
    def build() -> AdaptiveWarmup:
        return AdaptiveWarmup(CosineAnnealingLR(optimizer_of(1e-3, 0.2), 40), warmup_steps=[10, 20])

    saved, here = build(), build()
    drive(saved, lively(9))
    drive(here, lively(4))
    state = by_json(saved.state_dict())  # as lists, which can be written into
    *way, last = data.draw(st.sampled_from(list(leaves(state))))
    holder = state
    for key in way:
        holder = holder[key]
    holder[last] = unlike(holder[last])
    before, lrs = json.dumps(here.state_dict()), lrs_of(here.optimizer)
    with pytest.raises(ValueError, match=r"damaged|reads states of version 4, found"):
        here.load_state_dict(state)
    assert json.dumps(here.state_dict()) == before
    assert lrs_of(here.optimizer) == lrs


@pytest.mark.parametrize(
    ("saved", "here"),
    [
        ("optimizer", "cosine"),
        ("cosine", "optimizer"),
        ("cosine", "one_cycle"),
        ("optimizer", "per_group"),
        ("per_group", "optimizer"),
    ],
)
def test_a_state_of_another_make_is_refused_and_nothing_is_changed(saved: str, here: str) -> None:
    state = BUILDS[saved](optimizer_of(1e-3, 0.2)).state_dict()
    scheduler = BUILDS[here](optimizer_of(1e-3, 0.2))
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="build it as it was when the state was saved"):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("warmup", [10, [10, 10], [10, 10, 10]])
def test_a_state_of_other_groups_is_refused(warmup: Any) -> None:
    state = AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=10 if warmup == 10 else [10]).state_dict()
    groups = 3 if warmup == 10 else len(warmup)
    scheduler = AdaptiveWarmup(optimizer_of(*[1e-3] * groups), warmup_steps=warmup)
    with pytest.raises(ValueError, match=f"of 1 param groups, .*; this scheduler has {groups}, "):
        scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match=f"of {groups} param groups"):
        AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=10 if warmup == 10 else [10]).load_state_dict(
            scheduler.state_dict()
        )


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (None, None),
        ({}, None),
        ([1], r"\[1\]"),
        ({"version": 99}, 99),
        (LinearLR(optimizer_of(1e-3)).state_dict(), None),
    ],
)
def test_what_is_no_state_of_ours_is_refused(state: Any, found: Any) -> None:
    with pytest.raises(ValueError, match=f"reads states of version 4, found {found}: .*start without this state"):
        AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=10).load_state_dict(state)


def test_other_settings_than_those_saved_are_said_and_go_on(caplog: pytest.LogCaptureFixture) -> None:
    state = AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=10).state_dict()
    AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=20).load_state_dict(state)
    assert "resuming with Config(warmup_steps=20" in caplog.text


# Groups added later


@pytest.mark.parametrize("warmup", [20, [20]])
def test_groups_added_before_saving_are_added_before_loading(warmup: int | list[int]) -> None:
    def build() -> AdaptiveWarmup:
        return AdaptiveWarmup(ExponentialLR(optimizer_of(1e-3), 0.95), warmup_steps=warmup)

    def add(scheduler: AdaptiveWarmup) -> None:
        scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5})

    whole, rest = build(), build()
    drive(whole, lively(4))
    add(whole)
    drive(whole, lively(4))
    add(rest)
    rest.optimizer.load_state_dict(whole.optimizer.state_dict())
    rest.load_state_dict(by_torch(whole.state_dict()))
    assert drive(rest, lively(10)) == drive(whole, lively(10))
    assert len(rest.regulators) == len(whole.regulators) == (1 if warmup == 20 else 2)


@pytest.mark.parametrize("warmup", [20, [20]])
@pytest.mark.parametrize("add_first", [True, False])
def test_groups_added_after_saving_join_in_whether_added_before_or_after_loading(
    warmup: int | list[int], add_first: bool
) -> None:
    def add(scheduler: AdaptiveWarmup) -> None:
        scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5})

    whole, rest = (AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=warmup) for _ in range(2))
    drive(whole, lively(4))
    state = whole.state_dict()
    add(whole)
    for act in (add, lambda s: s.load_state_dict(state)) if add_first else (lambda s: s.load_state_dict(state), add):
        act(rest)
    assert drive(rest, lively(10)) == drive(whole, lively(10))
