"""`AdaptiveWarmup` on a real torch optimizer: the lrs that the updates run at."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    OneCycleLR,
    PolynomialLR,
    StepLR,
)
from transformers import get_cosine_schedule_with_warmup

from adaptive_warmup import AdaptiveWarmup
from tests.optimizers import any_value, drive, lively, lrs_of, optimizer_of, streams

pytestmark = [  # torch 2.4 and 2.5 warn of the way in which they themselves unpickle a tensor
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`:FutureWarning"),
]
SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "cosine": partial(CosineAnnealingLR, T_max=60, eta_min=1e-5),
    "cosine_restarts": partial(CosineAnnealingWarmRestarts, T_0=7),
    "cyclic": partial(CyclicLR, base_lr=1e-4, max_lr=1e-3, step_size_up=5, cycle_momentum=False),
    "exponential": partial(ExponentialLR, gamma=0.93),
    "lambda": partial(LambdaLR, lr_lambda=lambda t: 1.0 / (1.0 + 0.02 * t)),
    "multiplicative": partial(MultiplicativeLR, lr_lambda=lambda t: 0.9),
    "one_cycle": partial(OneCycleLR, max_lr=1e-2, total_steps=60, cycle_momentum=False),
    "polynomial": partial(PolynomialLR, total_iters=50, power=2.0),
    "step": partial(StepLR, step_size=7, gamma=0.5),
}


@given(st.integers(1, 200), st.lists(st.floats(1e-8, 10.0), min_size=1, max_size=3), st.integers(1, 220))
def test_without_signals_the_lr_is_the_nominal_ramp_exactly(warmup: int, bases: list[float], steps: int) -> None:
    scheduler = AdaptiveWarmup(optimizer_of(*bases), warmup_steps=warmup)
    for t, lrs in enumerate(drive(scheduler, [{}] * steps)):
        assert lrs == [base * min(1.0, (t + 1) / warmup) for base in bases]


@pytest.mark.parametrize("warmup", [2, 7, 100, 286])
def test_without_signals_it_is_torchs_linear_warmup(warmup: int) -> None:
    ours, theirs = optimizer_of(1e-3, 3e-5), optimizer_of(1e-3, 3e-5)
    linear = LinearLR(theirs, start_factor=1 / warmup, total_iters=warmup - 1)
    for mine, reference in zip(drive(AdaptiveWarmup(ours, warmup), [{}] * 300), drive(linear, [{}] * 300), strict=True):
        assert mine == pytest.approx(reference, rel=1e-12, abs=0.0)


def test_a_warmup_of_one_step_is_none() -> None:
    assert drive(AdaptiveWarmup(optimizer_of(0.1), warmup_steps=1), [{}] * 3) == [[0.1]] * 3


@given(streams, st.lists(any_value, min_size=25, max_size=25), st.booleans())
def test_whatever_the_signals_the_lr_is_positive_and_at_most_the_schedules(
    stream: list[dict[str, Any]], norms: list[float | None], per_group: bool
) -> None:
    ours, theirs = optimizer_of(1e-3, 0.2), optimizer_of(1e-3, 0.2)
    schedule = ExponentialLR(theirs, 0.95)
    scheduler = AdaptiveWarmup(ExponentialLR(ours, 0.95), warmup_steps=[10, 3] if per_group else 10)
    checked = [s if n is None else {**s, "norm": n} for s, n in zip(stream, norms, strict=False)]
    for mine, top in zip(drive(scheduler, checked), drive(schedule, [{}] * len(stream)), strict=True):
        assert all(0.0 < lr <= high for lr, high in zip(mine, top, strict=True))


@pytest.mark.parametrize("name", SCHEDULES)
def test_over_a_schedule_the_lr_is_the_schedules_times_the_factor(name: str) -> None:
    ours, theirs = optimizer_of(1e-3, 0.2), optimizer_of(1e-3, 0.2)
    scheduler, reference = AdaptiveWarmup(SCHEDULES[name](ours), warmup_steps=10), SCHEDULES[name](theirs)
    moved = set()
    for signals in lively(50):
        factor = scheduler.decision.factor
        moved.add(factor)
        assert lrs_of(ours) == [lr * factor for lr in lrs_of(theirs)] == scheduler.get_last_lr()
        drive(scheduler, [signals])
        drive(reference, [{}])
    assert len(moved) >= 5


def test_the_momentum_that_a_schedule_cycles_is_left_to_it() -> None:
    ours, theirs = (torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1e-3) for _ in range(2))
    scheduler, reference = (OneCycleLR(o, 1e-2, total_steps=30) for o in (ours, theirs))
    adaptive = AdaptiveWarmup(scheduler, warmup_steps=5)
    for _ in range(29):
        drive(adaptive, [{}])
        drive(reference, [{}])
        assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"]


def test_a_warmup_built_into_the_schedule_is_replaced_and_gives_the_nominal_length() -> None:
    ours, theirs = optimizer_of(1e-3), optimizer_of(1e-3)
    scheduler = AdaptiveWarmup(get_cosine_schedule_with_warmup(ours, 10, 50))
    assert scheduler.regulators[0].config.warmup_steps == 10
    reference = get_cosine_schedule_with_warmup(theirs, 10, 50)
    mine, reference_lrs = drive(scheduler, [{}] * 50), drive(reference, [{}] * 50)
    assert mine[:10] == [[1e-3 * ((t + 1) / 10)] for t in range(10)]  # and not multiplied by t / 10
    assert mine[10:] == reference_lrs[10:]


def test_another_nominal_length_than_the_schedules_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = AdaptiveWarmup(get_cosine_schedule_with_warmup(optimizer_of(1e-3), 10, 50), warmup_steps=4)
    assert [lrs for (lrs,) in drive(scheduler, [{}] * 10)] == [2.5e-4, 5e-4, 7.5e-4, *[1e-3] * 7]
    assert "own warmup of 10 steps is replaced by warmup_steps=4" in caplog.text


def test_the_kl_is_read_against_what_the_schedule_left_of_the_peak() -> None:
    scheduler = AdaptiveWarmup(StepLR(optimizer_of(1e-3), step_size=3, gamma=0.5), warmup_steps=10)
    scales = []
    for _ in range(6):
        drive(scheduler, [{"kl": 0.01}])
        signals = scheduler.regulators[0].signals
        assert signals is not None
        scales.append(signals.lr_scale)
    assert scales == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_the_peak_of_one_cycle_is_its_max_lr_not_where_it_begins() -> None:
    optimizer = optimizer_of(1e-3)
    scheduler = AdaptiveWarmup(OneCycleLR(optimizer, max_lr=1e-2, total_steps=11, pct_start=0.5), warmup_steps=1)
    scales = []
    for _ in range(10):
        drive(scheduler, [{"kl": 0.001}])
        signals = scheduler.regulators[0].signals
        assert signals is not None
        scales.append(signals.lr_scale)
    assert scales[0] == pytest.approx(1 / 25)  # OneCycleLR's div_factor
    assert max(scales) == pytest.approx(1.0, rel=0.05)


def test_a_schedule_that_rises_above_the_peak_known_of_it_raises_no_kl_target(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = optimizer_of(1e-4)
    rising = LambdaLR(optimizer, lambda t: min(1.0 + 0.2 * t, 10.0))
    scheduler = AdaptiveWarmup(rising, warmup_steps=10, min_target_kl=0.01)
    kls = []
    for _ in range(100):
        kls.append(0.5 * (lrs_of(optimizer)[0] / 1e-3) ** 2)  # 50 targets at its top
        drive(scheduler, [{"kl": kls[-1]}])
    assert max(kls) < 0.02
    assert kls[-1] == pytest.approx(0.01, rel=0.1)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("the schedule's lr 0.00012 is above the peak that is known of it, 0.0001")


def test_a_frozen_first_group_does_not_hide_the_others() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(0.0, 1e-3), warmup_steps=100)
    drive(scheduler, [{"kl": 1e-5}] * 5)
    assert scheduler.decision.ceiling is not None
    assert lrs_of(scheduler.optimizer)[0] == 0.0


# An outlying gradient

CALM = [{"grad_norm": 1.0 + 0.1 * math.sin(t), "norm": 1.0 + 0.1 * math.sin(t)} for t in range(20)]


def test_an_outlying_gradient_cuts_this_update_only() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-3, 1e-2), warmup_steps=20)
    drive(scheduler, CALM)
    assert lrs_of(scheduler.optimizer) == [1e-3, 1e-2]
    cut = scheduler.check_gradient(100.0)
    assert cut == pytest.approx(0.01, rel=0.1)  # to the size of a usual gradient
    assert lrs_of(scheduler.optimizer) == [1e-3 * cut, 1e-2 * cut]
    scheduler.optimizer.step()
    scheduler.observe(kl=1e-6, task_reward=0.5)
    scheduler.step()
    signals = scheduler.regulators[0].signals
    assert signals is not None
    assert (signals.kl, signals.task_reward) == (None, 0.5)  # the KL of a cut update does not count for the full lr
    assert scheduler.decision.ceiling is None
    assert lrs_of(scheduler.optimizer) == [1e-3, 1e-2]


def test_of_several_updates_in_a_step_each_is_cut_by_its_own_gradient() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=20)
    drive(scheduler, CALM)
    assert [scheduler.check_gradient(norm) for norm in (1.0, 1000.0, 1.0)][::2] == [1.0, 1.0]
    assert lrs_of(scheduler.optimizer) == [1e-3]


def test_a_gradient_that_is_not_finite_leaves_next_to_no_lr_until_the_next_step() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=20)
    assert scheduler.check_gradient(math.nan) == 1e-3
    assert 0.0 < lrs_of(scheduler.optimizer)[0] <= 1e-7
    drive(scheduler, [{}])
    assert lrs_of(scheduler.optimizer) == [1e-4]


def test_a_gradient_of_which_nothing_is_known_is_not_cut_and_what_is_no_norm_is_refused() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-3), warmup_steps=20)
    drive(scheduler, CALM)
    assert scheduler.check_gradient(None) == 1.0
    assert lrs_of(scheduler.optimizer) == [1e-3]
    with pytest.raises(ValueError, match=r"signal 'grad_norm' has shape \(3,\): report one number"):
        scheduler.check_gradient(torch.ones(3))
    with pytest.raises(TypeError, match=r"signal 'grad_norm' is '100': report a number"):
        scheduler.check_gradient("100")
    assert scheduler.check_gradient(torch.tensor(100.0)) == pytest.approx(0.01, rel=0.1)


def test_the_critics_gradient_cuts_only_the_critic() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1e-3, 1e-2), warmup_steps=[20, 20])
    drive(scheduler, CALM)
    cut = scheduler.check_gradient(100.0, group=1)
    assert lrs_of(scheduler.optimizer) == [1e-3, 1e-2 * cut]
    drive(scheduler, [{"kl": 0.01}])
    assert [r.signals and r.signals.kl for r in scheduler.regulators] == [0.01, None]


def test_of_a_gradient_over_all_groups_the_deepest_cut_is_told() -> None:
    """Norms of 1 are usual for the one, and of 100 for the other."""
    scheduler = AdaptiveWarmup(optimizer_of(1e-3, 1e-2), warmup_steps=[1, 1])
    for _ in range(10):
        scheduler.optimizer.step()
        for group, norm in enumerate((1.0, 100.0)):
            scheduler.observe(grad_norm=norm, group=group)
        scheduler.step()
    assert scheduler.check_gradient(100.0) == pytest.approx(0.01)
    assert lrs_of(scheduler.optimizer) == pytest.approx([1e-5, 1e-2])


# As a torch scheduler


def test_a_schedule_that_breaks_off_leaves_no_lr_above_the_warmup() -> None:
    """`Ctrl-C` may come there, too, and training go on."""

    def interrupted(step: int) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return 1.0

    scheduler = AdaptiveWarmup(LambdaLR(optimizer_of(1.0), interrupted), warmup_steps=100)
    drive(scheduler, [{}] * 2)
    with pytest.raises(KeyboardInterrupt):
        drive(scheduler, [{}])
    assert drive(scheduler, [{}] * 2) == [[0.04], [0.05]]


def test_get_lr_outside_of_step_changes_nothing() -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1.0), warmup_steps=10)
    scheduler.observe(kl=0.1)
    before = scheduler.state_dict()
    assert scheduler.get_lr() == [0.1] == scheduler.get_last_lr()
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("target", [lambda o: o, partial(CosineAnnealingLR, T_max=60)])
def test_a_copy_lives_a_life_of_its_own(
    duplicate: Callable[[AdaptiveWarmup], AdaptiveWarmup], target: Callable[[Optimizer], Any]
) -> None:
    scheduler = AdaptiveWarmup(target(optimizer_of(torch.tensor(1e-3), 1e-2)), warmup_steps=10)
    drive(scheduler, lively(7))
    twin = duplicate(scheduler)
    assert drive(twin, lively(20)) == drive(scheduler, lively(20))


def test_the_pure_parts_import_no_torch_and_the_package_nothing_heavy() -> None:
    for program in (
        "import adaptive_warmup.controller, adaptive_warmup.regulator, sys; assert 'torch' not in sys.modules",
        "import adaptive_warmup, sys; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)",
    ):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
