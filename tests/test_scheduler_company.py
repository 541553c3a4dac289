"""`AdaptiveWarmup` among what others make of schedulers: torch's composites and compiler, Accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from adaptive_warmup import AdaptiveWarmup
from tests.optimizers import drive, lively, lrs_of, optimizer_of

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step"),  # torch 2.4's own SequentialLR
]
BASES = (1e-3, 0.2)


def both(ours: AdaptiveWarmup, scheduler: LRScheduler, signals: dict[str, float]) -> float:
    """One update in which the composite is stepped and ours is told; the factor that it ran at."""
    factor = ours.decision.factor
    ours.optimizer.step()
    ours.observe(**signals)
    scheduler.step()
    return factor


# SequentialLR


def test_a_peak_that_a_schedule_has_built_in_is_found_once() -> None:
    """SequentialLR begins its schedules a second time."""

    def whole(num_warmup_steps: int) -> Any:
        return lambda step: 0.01 * min(step / num_warmup_steps, 1.0)  # lrs, on an optimizer of lr 1

    optimizer = optimizer_of(1.0)
    ours = AdaptiveWarmup(LambdaLR(optimizer, whole(10)))
    SequentialLR(optimizer, [ours, ExponentialLR(optimizer, 0.9)], milestones=[30])
    assert ours.base_lrs == [0.01]


def test_first_in_sequential_it_warms_up_and_hands_over() -> None:
    optimizer = optimizer_of(*BASES)
    ours = AdaptiveWarmup(optimizer, warmup_steps=4)
    scheduler = SequentialLR(optimizer, [ours, CosineAnnealingLR(optimizer, 20)], milestones=[6])
    reference = drive(CosineAnnealingLR(optimizer_of(*BASES), 20), [{}] * 14)
    lrs = drive(scheduler, [{}] * 20)
    assert lrs[:6] == [[base * min(1.0, (t + 1) / 4) for base in BASES] for t in range(6)]
    assert lrs[6:] == reference


def test_what_takes_over_is_no_scheduler_at_odds_with_it(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = optimizer_of(1.0)
    ours = AdaptiveWarmup(optimizer, warmup_steps=10)
    scheduler = SequentialLR(optimizer, [ours, ExponentialLR(optimizer, 0.9)], milestones=[3])
    assert drive(scheduler, [{}] * 5) == [[pytest.approx(lr)] for lr in (0.1, 0.2, 0.3, 1.0, 0.9)]
    assert caplog.records == []


def test_first_in_sequential_it_listens() -> None:
    optimizer = optimizer_of(*BASES)
    ours = AdaptiveWarmup(optimizer, warmup_steps=4)
    scheduler = SequentialLR(optimizer, [ours, ExponentialLR(optimizer, 0.9)], milestones=[30])
    for signals in lively(29):
        assert lrs_of(optimizer) == [base * ours.decision.factor for base in BASES]
        both(ours, scheduler, signals)
    assert ours.decision.factor < 1.0


def test_after_handing_over_a_cut_lasts_one_update() -> None:
    optimizer = optimizer_of(1.0)
    ours = AdaptiveWarmup(optimizer, warmup_steps=4)
    scheduler = SequentialLR(optimizer, [ours, ExponentialLR(optimizer, 0.5)], milestones=[12])
    for _ in range(13):
        both(ours, scheduler, {"grad_norm": 1.0})
    assert lrs_of(optimizer) == [0.5]
    assert ours.check_gradient(1000.0) < 0.01
    optimizer.step()
    scheduler.step()
    assert ours.check_gradient(1.0) == 1.0
    assert lrs_of(optimizer) == [pytest.approx(0.25)]


SECOND: dict[str, Callable[[Optimizer], Any]] = {
    "optimizer": lambda optimizer: optimizer,
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda t: 0.5 / (1 + t)),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, 1e-2, total_steps=20, cycle_momentum=False),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_in_sequential_it_begins_when_its_turn_comes(name: str) -> None:
    optimizer, other = optimizer_of(*BASES), optimizer_of(*BASES)
    ours = AdaptiveWarmup(SECOND[name](optimizer), warmup_steps=4)
    scheduler = SequentialLR(optimizer, [ConstantLR(optimizer, 0.1, 100), ours], milestones=[5])
    alone = AdaptiveWarmup(SECOND[name](other), warmup_steps=4)
    ours.observe(kl_reward=1.0)  # of a step that was not ours: forgotten when we begin
    drive(scheduler, [{}] * 5)
    for signals in lively(12):
        assert ours.regulators[0].state_dict() == alone.regulators[0].state_dict()
        assert lrs_of(optimizer) == lrs_of(other)
        both(ours, scheduler, signals)
        both(alone, alone, signals)


def nested(optimizer: Optimizer, warmup: LRScheduler) -> LRScheduler:
    inner = SequentialLR(optimizer, [warmup, StepLR(optimizer, 3, 0.5)], milestones=[5])
    chain = ChainedScheduler([inner, ExponentialLR(optimizer, 0.95)])
    return SequentialLR(optimizer, [chain, ExponentialLR(optimizer, 0.5)], milestones=[9])


@pytest.mark.skipif(torch.__version__ < (2, 5), reason="torch 2.4 puts no ChainedScheduler into a SequentialLR")
def test_without_signals_torchs_composites_treat_it_as_torchs_own_linear_warmup() -> None:
    ours, theirs = optimizer_of(*BASES), optimizer_of(*BASES)
    with pytest.warns(UserWarning, match="Detected call"):
        mine = nested(ours, AdaptiveWarmup(ours, warmup_steps=4))
    with pytest.warns(UserWarning, match="Detected call"):  # torch steps a chain as it puts it in a sequence
        reference = nested(theirs, LinearLR(theirs, 1 / 4, total_iters=3))
    assert drive(mine, [{}] * 12) == [pytest.approx(lrs) for lrs in drive(reference, [{}] * 12)]


# Beside other schedules

BESIDE: dict[str, tuple[Callable[[Optimizer], LRScheduler], Callable[[int], float]]] = {
    "exponential": (lambda o: ExponentialLR(o, 0.9), lambda t: 0.9**t),
    "cosine": (lambda o: CosineAnnealingLR(o, 25), lambda t: (1 + math.cos(math.pi * t / 25)) / 2),
    "step": (lambda o: StepLR(o, 7, 0.1), lambda t: 0.1 ** (t // 7)),
}


def test_over_another_one_it_is_refused() -> None:
    with pytest.raises(TypeError, match="AdaptiveWarmup over AdaptiveWarmup: two warmups would multiply, wrap once"):
        AdaptiveWarmup(AdaptiveWarmup(optimizer_of(1e-3), 10), 10)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("tensor", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_in_a_chain_the_factors_multiply_in_either_order(name: str, tensor: bool, checks: bool, first: bool) -> None:
    optimizer = optimizer_of(*(torch.tensor(b, dtype=torch.float64) if tensor else b for b in BASES))
    ours, (build, shape) = AdaptiveWarmup(optimizer, warmup_steps=10), BESIDE[name]
    other = build(optimizer)
    scheduler = ChainedScheduler([ours, other] if first else [other, ours])
    for t, signals in enumerate(lively(24)):
        if checks:
            assert ours.check_gradient(1.0) == 1.0
        expected = [base * shape(t) * ours.decision.factor for base in BASES]
        assert lrs_of(optimizer) == pytest.approx(expected, rel=1e-9)
        both(ours, scheduler, signals)
        seen = ours.regulators[0].signals
        assert seen is not None
        assert seen.lr_scale == pytest.approx(shape(t), rel=1e-9)


@pytest.mark.parametrize("over_a_schedule", [True, False])
def test_a_plateau_schedule_that_the_user_steps_composes(over_a_schedule: bool) -> None:
    optimizer = optimizer_of(*BASES)
    ours = AdaptiveWarmup(ExponentialLR(optimizer, 0.9) if over_a_schedule else optimizer, warmup_steps=10)
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    reduced = 1.0
    for t, signals in enumerate(lively(20)):
        both(ours, ours, signals)
        if t in (4, 11):
            plateau.step(1.0)
            reduced *= 0.5 if t == 11 else 1.0  # the first metric is the best so far
        shape = 0.9 ** (t + 1) if over_a_schedule else 1.0
        expected = [base * reduced * shape * ours.decision.factor for base in BASES]
        assert lrs_of(optimizer) == pytest.approx(expected, rel=1e-9)
    assert reduced == 0.5


@pytest.mark.parametrize("shape", [lambda t: 1.0, lambda t: min(1.0, t / 5)])
def test_a_schedule_beside_that_sets_the_lr_cannot_lift_it_above_ours(
    shape: Callable[[int], float], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = optimizer_of(*BASES)
    other = LambdaLR(optimizer, shape)
    ours = AdaptiveWarmup(optimizer, warmup_steps=10, min_target_kl=0.01)
    scheduler = ChainedScheduler([other, ours])
    for _ in range(30):
        both(ours, scheduler, {"kl": 0.04 * ours.decision.factor**2})
        assert all(lr <= base * ours.decision.factor for lr, base in zip(lrs_of(optimizer), BASES, strict=True))
    assert ours.decision.factor == pytest.approx(0.5)
    assert [r.getMessage().endswith("wrap that one") for r in caplog.records if "another" in r.message] == [True]


def test_from_an_lr_of_zero_another_schedule_may_rise_again() -> None:
    optimizer = optimizer_of(1.0)
    ours = AdaptiveWarmup(optimizer, warmup_steps=1)
    lrs = drive(ChainedScheduler([ours, CosineAnnealingLR(optimizer, 4)]), [{}] * 9)
    assert lrs[4] == [pytest.approx(0.0, abs=1e-12)]
    assert lrs[8] == [pytest.approx(1.0)]


# Accelerate


@pytest.fixture
def _fresh_accelerate() -> Iterator[None]:
    _forget()  # what a Trainer has left
    yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(accelerator: Accelerator, prepared: tuple[Any, Any, Any], ours: AdaptiveWarmup, batches: int) -> list[float]:
    model, optimizer, scheduler = prepared
    lrs = []
    for _ in range(batches):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(2, 3)).square().mean())
            if accelerator.sync_gradients:
                norm = float(accelerator.clip_grad_norm_(model.parameters(), 1.0))
                ours.observe(kl=0.02 * ours.decision.factor, grad_norm=norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        lrs.append(scheduler.get_last_lr()[0])
    return lrs


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.parametrize("over_a_schedule", [True, False])
def test_under_accelerate_it_steps_with_the_updates_and_its_state_goes_along(
    tmp_path: Path, over_a_schedule: bool
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)

    def prepared() -> tuple[tuple[Any, Any, Any], AdaptiveWarmup]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = AdamW(model.parameters(), lr=1e-3)
        ours = AdaptiveWarmup(CosineAnnealingLR(optimizer, 30) if over_a_schedule else optimizer, warmup_steps=8)
        return accelerator.prepare(model, optimizer, ours), ours

    parts, ours = prepared()
    assert isinstance(parts[2], AcceleratedScheduler)
    lrs = train(accelerator, parts, ours, batches=12)
    assert ours.decision.step == ours.last_epoch == 4
    assert len(set(lrs[2::3])) == 4
    assert lrs[3] == lrs[2]  # between updates nothing moves
    accelerator.save_state(str(tmp_path))
    rest = train(accelerator, parts, ours, batches=12)
    accelerator.load_state(str(tmp_path))
    assert ours.decision.step == 4
    assert train(accelerator, parts, ours, batches=12) == rest
    accelerator.free_memory()
    parts, ours = prepared()
    accelerator.load_state(str(tmp_path))
    assert train(accelerator, parts, ours, batches=12) == rest


# torch.compile


def test_a_compiled_update_is_not_compiled_anew_as_a_tensor_lr_moves() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    lr = torch.tensor(1e-3)
    optimizer = AdamW([parameter], lr=lr, weight_decay=0.0)
    scheduler, counter = AdaptiveWarmup(optimizer, warmup_steps=50), CompileCounter()
    compiled = torch.compile(optimizer.step, backend=counter)
    moves, frames = [], []
    for _ in range(25):
        before = parameter.detach().clone()
        compiled()
        moves.append(float((before - parameter.detach()).mean()))
        frames.append(counter.frame_count)
        scheduler.step()
    assert frames == [1] * 25  # a float lr takes two
    assert moves == pytest.approx([1e-3 * (t + 1) / 50 for t in range(25)], rel=0.02)  # Adam moves by lr here


@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)], ids=["float", "tensor"])
def test_before_a_compiled_update_the_lrs_are_looked_at_without_compiling_that(lr: float | torch.Tensor) -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = AdamW([parameter], lr=lr)
    ours, counter = AdaptiveWarmup(optimizer, warmup_steps=50), CompileCounter()
    scheduler = ChainedScheduler([ours, ExponentialLR(optimizer, 0.9)])
    compiled = torch.compile(optimizer.step, backend=counter)
    for t in range(20):
        compiled()
        scheduler.step()
        seen = ours.regulators[0].signals
        assert seen is not None
        assert seen.lr_scale == pytest.approx(0.9**t, rel=1e-5)
    assert counter.frame_count <= (1 if isinstance(lr, torch.Tensor) else 2)
