"""What is found out about the user's own schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from accelerate.scheduler import AcceleratedScheduler
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
    ReduceLROnPlateau,
    SequentialLR,
)

from adaptive_warmup.schedules import (
    built_in_warmup,
    nominal_warmup,
    peak_lrs,
    scheduled_lrs,
    unwrap,
    wants_a_metric,
)
from tests.optimizers import drive, lrs_of, optimizer_of

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step"),  # torch 2.4's own SequentialLR
]
# GreedyLR is transformers' own, and not in its oldest version that we run with.
ON_A_METRIC = (ReduceLROnPlateau, *filter(None, [getattr(transformers.optimization, "GreedyLR", None)]))
WITH_WARMUP: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "get_constant_schedule_with_warmup": lambda o: transformers.get_constant_schedule_with_warmup(o, 6),
    "get_linear_schedule_with_warmup": lambda o: transformers.get_linear_schedule_with_warmup(o, 6, 30),
    "get_cosine_schedule_with_warmup": lambda o: transformers.get_cosine_schedule_with_warmup(o, 6, 30),
    "get_cosine_with_hard_restarts_schedule_with_warmup": (
        lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 6, 30, 2)
    ),
    "get_cosine_with_min_lr_schedule_with_warmup": (
        lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, 6, 30, min_lr_rate=0.1)
    ),
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate": (
        lambda o: transformers.get_scheduler(
            "cosine_warmup_with_min_lr", o, 6, 30, scheduler_specific_kwargs={"min_lr_rate": 0.1}
        )
    ),
    "get_polynomial_decay_schedule_with_warmup": (
        lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, 6, 30, lr_end=1e-5)
    ),
    "get_inverse_sqrt_schedule": lambda o: transformers.get_inverse_sqrt_schedule(o, 6),
    "get_wsd_schedule": lambda o: transformers.get_wsd_schedule(o, 6, 10, num_stable_steps=10),
}
WITHOUT: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "constant": transformers.get_constant_schedule,
    "no_steps": lambda o: transformers.get_cosine_schedule_with_warmup(o, 0, 30),
    "cosine": partial(CosineAnnealingLR, T_max=30),
    "lambda": partial(LambdaLR, lr_lambda=lambda t: 0.9**t),
    "sequential": lambda o: SequentialLR(o, [ExponentialLR(o, 0.9), CosineAnnealingLR(o, 30)], [3]),
}


@pytest.mark.parametrize("name", WITH_WARMUP)
def test_the_warmup_of_transformers_schedules_is_found_and_taken_out(name: str) -> None:
    optimizer = optimizer_of(1e-3, 0.2)
    schedule = WITH_WARMUP[name](optimizer)
    assert built_in_warmup(schedule) == 6
    for t in range(30):
        assert scheduled_lrs(schedule) == ([1e-3, 0.2] if t < 6 else lrs_of(optimizer))
        if t < 5:  # one of them is at its peak a step early
            assert lrs_of(optimizer)[0] < 1e-3
        drive(schedule, [{}])


def warming(num_warmup_steps: Any, peak: float = 1.0, then: float = 1.0) -> Callable[[int], float]:
    """A lambda as verl's are: its warmup is in its closure."""
    return lambda t: peak * (t / num_warmup_steps if t < num_warmup_steps else then ** (t - num_warmup_steps))


def test_each_group_is_at_its_own_schedules_peak_while_its_own_warmup_lasts() -> None:
    optimizer = optimizer_of(1.0, 1.0, 1.0)
    lambdas = [warming(2, 0.5, then=0.1), warming(4, 0.25), lambda t: 0.5**t]
    schedule = LambdaLR(optimizer, lambdas)
    assert built_in_warmup(schedule) == 4
    assert peak_lrs(schedule, schedule.base_lrs) == [0.5, 0.25, 1.0]
    found = []
    for _ in range(5):
        found.append(scheduled_lrs(schedule))
        drive(schedule, [{}])
    assert found == [
        [0.5, 0.25, 1.0],
        [0.5, 0.25, 0.5],
        [0.5, 0.25, 0.25],
        [pytest.approx(0.05), 0.25, 0.125],
        [pytest.approx(0.005), 0.25, 0.0625],
    ]


def test_the_peak_of_a_warmup_as_long_as_the_run_is_its_last_step() -> None:
    schedule = transformers.get_linear_schedule_with_warmup(optimizer_of(1.0), 5, 5)
    assert scheduled_lrs(schedule) == [0.8]  # and not what follows, 0


@pytest.mark.parametrize("steps", [[5, 5], "many", float("inf"), object()])
def test_a_setting_of_that_name_that_is_no_number_is_no_warmup(steps: Any) -> None:
    def constant(t: int, *, num_warmup_steps: Any) -> float:
        return 1.0

    def closure(num_warmup_steps: Any) -> Callable[[int], float]:
        return lambda t: constant(t, num_warmup_steps=num_warmup_steps)

    for fn in (partial(constant, num_warmup_steps=steps), closure(steps)):
        assert built_in_warmup(LambdaLR(optimizer_of(1.0), fn)) == 0


def test_a_closure_that_is_not_filled_yet_is_no_warmup() -> None:
    schedule = LambdaLR(optimizer_of(1.0), lambda t: later(t) if t else 1.0)
    assert built_in_warmup(schedule) == 0

    def later(t: int) -> float:
        return 0.5


@pytest.mark.parametrize("name", WITHOUT)
def test_others_are_taken_as_they_are(name: str) -> None:
    optimizer = optimizer_of(1e-3, 0.2)
    schedule = WITHOUT[name](optimizer)
    assert built_in_warmup(schedule) == 0
    for _ in range(10):
        assert scheduled_lrs(schedule) == lrs_of(optimizer)
        drive(schedule, [{}])


@pytest.mark.parametrize(
    ("warmup_steps", "name", "nominal", "says"),
    [
        (None, "get_wsd_schedule", 6, ""),
        (20, "get_wsd_schedule", 20, "own warmup of 6 steps is replaced by warmup_steps=20"),
        ([5, 6], "get_wsd_schedule", [5, 6], r"replaced by warmup_steps=[5, 6]"),
        (20, "cosine", 20, ""),
        (20, "sequential", 20, ""),
    ],
)
def test_the_nominal_warmup_is_settled_and_a_second_one_never_silent(
    warmup_steps: Any, name: str, nominal: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = {**WITH_WARMUP, **WITHOUT}[name](optimizer_of(1e-3))
    assert nominal_warmup(warmup_steps, schedule) == nominal
    assert says in caplog.text
    assert bool(says) == bool(caplog.records)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: SequentialLR(o, [LinearLR(o, 0.01, 1.0, 5), CosineAnnealingLR(o, 30)], [5]),
        lambda o: LambdaLR(o, lambda t: min(1.0, t / 5)),
        lambda o: OneCycleLR(o, 1e-2, total_steps=30),
        lambda o: SequentialLR(o, [OneCycleLR(o, 1e-2, total_steps=30), ExponentialLR(o, 0.9)], [30]),
    ],
)
def test_a_schedule_that_begins_low_is_said_to_warm_up_besides(
    build: Callable[[Optimizer], LRScheduler], caplog: pytest.LogCaptureFixture
) -> None:
    assert nominal_warmup(20, build(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1e-3, momentum=0.9))) == 20
    assert "begins below its peak: if it warms up, it and this warmup multiply" in caplog.text


def test_of_a_lambda_that_returns_whole_lrs_the_remedy_is_named(caplog: pytest.LogCaptureFixture) -> None:
    nominal_warmup(20, LambdaLR(optimizer_of(1.0), lambda t: 1e-4))
    assert "if its lambda returns whole lrs, give the optimizer the peak lr" in caplog.text


@pytest.mark.parametrize(("begins", "low"), [(0.99, True), (0.9995, False)])
def test_a_schedule_begins_low_from_a_thousandth_below_its_peak_on(
    begins: float, low: bool, caplog: pytest.LogCaptureFixture
) -> None:
    nominal_warmup(20, LinearLR(optimizer_of(1.0), start_factor=begins))
    assert ("LinearLR begins below its peak" in caplog.text) is low


def test_a_schedule_that_has_come_down_is_not_said_to_begin_low(caplog: pytest.LogCaptureFixture) -> None:
    schedule = ExponentialLR(optimizer_of(1e-3), 0.5)
    drive(schedule, [{}] * 5)
    nominal_warmup(20, schedule)
    assert not caplog.records


@pytest.mark.parametrize("schedule", [None, CosineAnnealingLR(optimizer_of(1e-3), 30)])
def test_a_nominal_warmup_must_come_from_somewhere(schedule: LRScheduler | None) -> None:
    with pytest.raises(ValueError, match=r"warmup_steps is missing .* say warmup_steps=100"):
        nominal_warmup(None, schedule)


def test_the_peak_is_where_the_cycle_says_or_the_schedule_began() -> None:
    began = [1e-3, 0.2]
    one_cycle = OneCycleLR(optimizer_of(*began), [1e-2, 0.5], total_steps=30, cycle_momentum=False)
    cyclic = CyclicLR(optimizer_of(*began), began, [3e-3, 0.6], cycle_momentum=False)
    assert peak_lrs(one_cycle, began) == [1e-2, 0.5]
    assert peak_lrs(cyclic, began) == [3e-3, 0.6]
    assert peak_lrs(ExponentialLR(optimizer_of(*began), 0.9), [torch.tensor(0.5), 0.2]) == [0.5, 0.2]
    assert peak_lrs(None, began) == began


@pytest.mark.parametrize(
    "compose",
    [
        lambda o, part: SequentialLR(o, [part, ExponentialLR(o, 0.9)], [30]),
        lambda o, part: ChainedScheduler([part, ExponentialLR(o, 0.9)]),
        lambda o, part: ChainedScheduler([SequentialLR(o, [ExponentialLR(o, 0.9), part], [30])]),
    ],
)
def test_the_peak_of_a_composite_is_its_highest_parts(compose: Callable[[Optimizer, LRScheduler], LRScheduler]) -> None:
    optimizer = optimizer_of(1e-3, 0.2)
    one_cycle = OneCycleLR(optimizer, [1e-2, 0.5], total_steps=30, cycle_momentum=False)
    assert peak_lrs(compose(optimizer, one_cycle), [1e-3, 0.2]) == [1e-2, 0.5]


# What can be wrapped


def test_an_optimizer_or_a_schedule_on_one_can_be_wrapped() -> None:
    optimizer = optimizer_of(1e-3)
    schedule = ExponentialLR(optimizer, 0.9)
    assert unwrap(optimizer) == (optimizer, None)
    assert unwrap(schedule) == (optimizer, schedule)


@pytest.mark.parametrize("scheduled", [True, False])
def test_an_optimizer_that_makes_its_own_lr_is_refused(scheduled: bool) -> None:
    adafactor = transformers.Adafactor([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=r"lr=(None|0\.0) of Adafactor, relative_step=True: .* lr=1e-3; .*_step=False"):
        unwrap(transformers.optimization.AdafactorSchedule(adafactor) if scheduled else adafactor)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        *((kind(optimizer_of(1e-3)), f"not {kind.__name__}.* wrap the optimizer, and go on") for kind in ON_A_METRIC),
        (AcceleratedScheduler(ExponentialLR(optimizer_of(1e-3), 0.9), []), "Accelerate has prepared: wrap before"),
        (1e-3, "wraps an optimizer or a schedule, not float"),
        (None, "not NoneType"),
    ],
)
def test_nothing_else_can_be_and_the_remedy_is_named(target: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        unwrap(target)


def test_schedules_on_a_metric_are_told_from_those_on_the_step() -> None:
    optimizer = optimizer_of(1e-3)
    assert all(wants_a_metric(kind(optimizer)) for kind in ON_A_METRIC)
    assert not wants_a_metric(CosineAnnealingLR(optimizer, 10))
    assert not wants_a_metric(SequentialLR(optimizer, [ExponentialLR(optimizer, 0.9)], []))
