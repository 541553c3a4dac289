"""Whatever is observed, stepped, saved, loaded and added, in whatever order: what was interrupted is what was not."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adaptive_warmup import AdaptiveWarmup
from tests.faults.catalogue import fault
from tests.optimizers import any_signals, likely_kl, lrs_of, optimizer_of


def fresh(groups: int, per_group: bool) -> AdaptiveWarmup:
    """As it is built before a state of so many groups is loaded: groups added later are added again."""
    scheduler = AdaptiveWarmup(optimizer_of(0.5, 0.1), [10, 5] if per_group else 10, target_kl=0.01)
    for _ in range(groups - 2):
        add(scheduler)
    return scheduler


def add(scheduler: AdaptiveWarmup) -> None:
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.3})


class Interrupted(RuleBasedStateMachine):
    """`whole` is never interrupted; `other` is saved and loaded into a new one at any moment, also between signals."""

    per_group = False

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.other = fresh(2, self.per_group), fresh(2, self.per_group)
        self.kept: tuple[dict[str, Any], dict[str, Any], int, int] | None = None

    @property
    def both(self) -> tuple[AdaptiveWarmup, AdaptiveWarmup]:
        return self.whole, self.other

    @rule(signals=any_signals, group=st.sampled_from([None, 0, 1]))
    def observe(self, signals: dict[str, Any], group: int | None) -> None:
        for scheduler in self.both:
            scheduler.observe(group=group, **signals)

    @rule(kl=likely_kl, late=st.integers(0, 5), group=st.sampled_from([None, 0, 1]))
    def observe_late(self, kl: float, late: int, group: int | None) -> None:
        for scheduler in self.both:
            scheduler.observe(group=group, kl=kl, of_step=scheduler.decision.step - late)

    @rule(norm=st.floats(0.01, 1e3) | st.just(float("nan")))
    def check_gradient(self, norm: float) -> None:
        assert self.whole.check_gradient(norm) == self.other.check_gradient(norm)

    @rule()
    def step(self) -> None:
        for scheduler in self.both:
            scheduler.optimizer.step()
            scheduler.step()

    @precondition(lambda self: len(self.whole.optimizer.param_groups) < 4)
    @rule()
    def add_group(self) -> None:
        for scheduler in self.both:
            add(scheduler)

    @rule(through=st.sampled_from([copy.deepcopy, lambda state: json.loads(json.dumps(state))]))
    def save_and_load(self, through: Any) -> None:
        optimizer, state = copy.deepcopy(self.other.optimizer.state_dict()), through(self.other.state_dict())
        self.other = fresh(len(self.other.optimizer.param_groups), self.per_group)
        self.other.optimizer.load_state_dict(optimizer)
        self.other.load_state_dict(state)

    @invariant()
    def the_same(self) -> None:
        assert lrs_of(self.whole.optimizer) == lrs_of(self.other.optimizer)
        assert repr(self.whole.decision) == repr(self.other.decision)
        assert json.dumps(self.whole.state_dict()) == json.dumps(self.other.state_dict())

    @invariant()
    def in_bounds(self) -> None:
        assert all(0.0 < regulator.decision.factor <= 1.0 for regulator in self.whole.regulators)
        peaks = [0.5, 0.1, 0.3, 0.3]
        assert all(0.0 < lr <= peak for lr, peak in zip(lrs_of(self.whole.optimizer), peaks, strict=False))


class InterruptedPerGroup(Interrupted):
    """With a controller for each group."""

    per_group = True


for machine in (Interrupted, InterruptedPerGroup):
    machine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestInterrupted = Interrupted.TestCase
TestInterruptedPerGroup = InterruptedPerGroup.TestCase
fault(
    "states", "scheduler", "observe, cut, step, save, load and add groups in any order (state machine)",
    "saved and loaded, it is what was never interrupted, to the bit",
)(TestInterrupted)  # fmt: skip
