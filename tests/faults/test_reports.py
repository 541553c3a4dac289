"""Signals that are missing, late, doubled or at odds, on a simulated run whose KL is on target at a known lr."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adaptive_warmup import AdaptiveWarmup
from tests.faults.catalogue import fault
from tests.optimizers import optimizer_of
from tests.plant import Plant

BEARS, STEPS = 0.2, 300  # the factor at which the KL is on target
Tell = Callable[[AdaptiveWarmup, int, float], None]


def factors(tell: Tell, warmup_steps: int = 100) -> list[float]:
    """A run in which `tell(scheduler, step, kl)` reports the KL that the step truly had."""
    scheduler = AdaptiveWarmup(optimizer_of(1.0), warmup_steps, target_kl=0.01, min_target_kl=0.01)
    plant = Plant(BEARS, noise=0.3)
    used = []
    for step in range(STEPS):
        used.append(scheduler.decision.factor)
        kl = plant.kl(step, used[-1])
        assert kl is not None
        scheduler.optimizer.step()
        tell(scheduler, step, kl)
        scheduler.step()
    return used


def honest(scheduler: AdaptiveWarmup, step: int, kl: float) -> None:
    scheduler.observe(kl=kl)


def level(used: list[float]) -> float:
    return statistics.median(used[100:])


@fault("reports", "scheduler", "no signal for 50 steps", "the lr stays under the last ceiling")
def test_missing() -> None:
    used = factors(lambda scheduler, step, kl: None if 100 <= step < 150 else honest(scheduler, step, kl))
    assert max(used[100:151]) <= 1.001 * max(used[90:101])
    assert level(used) == pytest.approx(BEARS, rel=0.4)


def late(by: int, dated: bool) -> list[float]:
    """`dated`: it is said which step each KL is of."""
    kls: list[float] = []

    def tell(scheduler: AdaptiveWarmup, step: int, kl: float) -> None:
        kls.append(kl)
        if step >= by:
            scheduler.observe(kl=kls[step - by], of_step=step - by if dated else None)

    return factors(tell)


@pytest.mark.parametrize("by", [3, 10])
@fault(
    "reports", "scheduler", "a KL late by 3 or 10 steps, given with the step that it is of (`of_step`)",
    "the lr comes later to where it should be, and stays there",
)  # fmt: skip
def test_late_and_dated(by: int) -> None:
    used, timely = late(by, dated=True), factors(honest)
    assert max(used) < 1.2 * BEARS
    assert used[2 * by :] == pytest.approx(timely[by:-by], rel=0.15)


@fault(
    "reports", "scheduler", "a KL of a step that has one, of one more than 64 steps ago, or of one before the start",
    "left out with one warning: the same decisions to the bit",
)  # fmt: skip
def test_out_of_date(caplog: pytest.LogCaptureFixture) -> None:
    def tell(scheduler: AdaptiveWarmup, step: int, kl: float) -> None:
        honest(scheduler, step, kl)
        for of_step in (step - 1, step - 65, -1):
            scheduler.observe(kl=1e3, of_step=of_step)

    assert factors(tell) == factors(honest)
    assert len(caplog.records) == 1


@fault("reports", "scheduler", "a KL late by 3 steps, undated", "one overshoot, then the lr is where it should be")
def test_late_by_3() -> None:
    used = late(3, dated=False)
    assert max(used[:50]) == 1.0
    assert max(used[50:]) < 1.5 * BEARS
    assert level(used) == pytest.approx(BEARS, rel=0.2)


@fault(
    "reports", "scheduler", "a KL late by 10 steps, undated",
    "**not borne**: the lr swings between its floor and its peak. Say `of_step`",
)  # fmt: skip
def test_late_by_10() -> None:
    used = late(10, dated=False)
    assert (min(used[100:]) < 0.01, max(used[100:])) == (True, 1.0)
    assert all(1e-3 <= factor <= 1.0 for factor in used)


@fault(
    "reports", "scheduler", "a KL that no lr lowers: a sampler's log-probabilities against the trainer's",
    "**not borne**: the lr goes to its floor, where the alarm `kl_unmoved` says why",
)  # fmt: skip
def test_unmoved(caplog: pytest.LogCaptureFixture) -> None:
    used = factors(lambda scheduler, step, kl: scheduler.observe(kl=0.02 + kl))
    assert used[-1] == 1e-3
    assert f"step {used.index(1e-3) + 1}, kl_unmoved" in caplog.text


@fault("reports", "scheduler", "every signal reported twice", "counts once: the same decisions to the bit")
def test_doubled() -> None:
    def tell(scheduler: AdaptiveWarmup, step: int, kl: float) -> None:
        honest(scheduler, step, kl)
        honest(scheduler, step, kl)

    assert factors(tell) == factors(honest)


@fault(
    "reports",
    "scheduler",
    "two sources of the KL, one reading 30 times too low, by turns",
    "lr within a factor of 2.5 of what is borne, of 3 on the way up",
)
def test_at_odds() -> None:
    used = factors(lambda scheduler, step, kl: scheduler.observe(kl=kl if step % 2 else kl / 30))
    assert max(used[:10]) < 3 * BEARS
    assert max(used[10:]) < 2.5 * BEARS
    assert BEARS / 2 < level(used) < 2 * BEARS


@fault("reports", "scheduler", "two sources of the KL in one step", "the last report counts, what a host adds does not")
def test_two_in_one_step() -> None:
    def tell(scheduler: AdaptiveWarmup, step: int, kl: float) -> None:
        scheduler.observe(kl=1e3, kl_source="in_loop")
        honest(scheduler, step, kl)
        scheduler.regulators[0].supply(kl=1e-9, kl_source="in_loop")

    assert factors(tell) == factors(honest)


@pytest.mark.parametrize("jump", [500, -20])
@fault("reports", "scheduler", "the clock of steps jumps, ahead or back", "one decision a call, as if it had not")
def test_clock_jumps(jump: int) -> None:
    def run(epochs: Iterator[int | None]) -> list[Any]:
        scheduler, seen = AdaptiveWarmup(optimizer_of(1.0), 100, target_kl=0.01), []
        for epoch in epochs:
            scheduler.optimizer.step()
            scheduler.observe(kl=0.01 * (scheduler.decision.factor / BEARS) ** 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's on the argument
                scheduler.step(epoch)
            seen.append((scheduler.decision, scheduler.get_last_lr()))
        return seen

    steady = run(itertools.repeat(None, 60))
    assert run(iter([jump + step if step == 30 else None for step in range(60)])) == steady
    assert [decision.step for decision, _ in steady] == list(range(1, 61))
