"""`AdaptiveWarmup` around an optimizer on the device: nothing is waited for, and all is as on the CPU."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from adaptive_warmup import AdaptiveWarmup, Decision
from tests.gpu.device import CPU, DEVICE, needs_cuda, no_waits, waits
from tests.optimizers import lively

PEAK, WARMUP, STEPS = 0.01, 8, 40
SIGNALS = lively(STEPS)
KINDS: list[dict[str, Any]] = [{}, {"fused": True}, {"capturable": True}, {"capturable": True, "fused": True}]
OF_TENSORS = [kind for kind in KINDS if kind]  # torch refuses an lr on a device without either


class Loop:
    """A small training, told recorded signals; its decisions, and the lrs as they stand when it is over."""

    def __init__(self, device: torch.device, lr: float | Tensor = PEAK, schedule: bool = False, **kind: Any) -> None:
        self.model = nn.Linear(4, 4).to(device)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(0.1)
        self.x = torch.linspace(-1.0, 1.0, 32, device=device).view(8, 4)
        self.optimizer = AdamW(self.model.parameters(), lr=lr, **kind)
        target = CosineAnnealingLR(self.optimizer, 2 * STEPS) if schedule else self.optimizer
        self.scheduler = AdaptiveWarmup(target, WARMUP)
        self.decisions: list[Decision] = []

    def step(self, signals: dict[str, Any]) -> None:
        self.model(self.x).square().mean().backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        if isinstance(norm := signals.get("grad_norm"), float):
            self.scheduler.check_gradient(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.observe(**signals)
        self.scheduler.step()
        self.decisions.append(self.scheduler.decision)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def on_cpu(signals: list[dict[str, Any]] = SIGNALS, schedule: bool = False) -> Loop:
    loop = Loop(CPU, schedule=schedule)
    for one in signals:
        loop.step(one)
    assert len({decision.factor for decision in loop.decisions}) > STEPS // 2  # it rises and falls
    return loop


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("schedule", [False, True])
def test_floats_are_never_waited_for_and_decide_as_on_the_cpu(kind: dict[str, Any], schedule: bool) -> None:
    loop = Loop(DEVICE, schedule=schedule, **(kind if DEVICE.type == "cuda" else {}))
    outlier = {**SIGNALS[20], "grad_norm": 1e3}
    stream = [*SIGNALS[:20], outlier, *SIGNALS[21:]]
    loop.step(stream[0])  # CUDA and the optimizer begin
    with no_waits():
        for signals in stream[1:]:
            loop.step(signals)
    same = on_cpu(stream, schedule)
    assert loop.decisions == same.decisions
    assert loop.lr == same.lr
    for mine, theirs in zip(loop.model.parameters(), same.model.parameters(), strict=True):
        assert torch.allclose(mine.cpu(), theirs, atol=1e-4)


def held(value: float) -> Tensor:
    return torch.tensor(value, device=DEVICE)


def test_tensors_are_read_in_step_and_decide_as_their_values_would() -> None:
    loop = Loop(DEVICE)
    rounded = [{name: float(torch.tensor(value)) for name, value in signals.items()} for signals in SIGNALS]
    plain = Loop(CPU)
    for signals in rounded:
        tensors = {name: held(value) for name, value in signals.items()}
        with no_waits():
            loop.scheduler.observe(**tensors)
            for tensor in tensors.values():
                tensor.fill_(math.nan)  # what was observed is what it was then
        loop.step({})
        plain.optimizer.step()
        plain.scheduler.observe(**signals)
        plain.scheduler.step()
        assert loop.decisions[-1] == plain.scheduler.decision
    assert loop.lr == plain.lr


@needs_cuda
def test_step_waits_once_for_each_tensor() -> None:
    loop = Loop(DEVICE)
    loop.step({})
    tensors, loss = {name: held(value) for name, value in SIGNALS[0].items()}, held(1.0).bfloat16()
    with waits() as count:
        loop.step({})
        assert count() == 0
        loop.scheduler.observe(**tensors)
        assert count() == 0
        loop.step({})
        assert count() == len(tensors)
        loop.step({"loss": loss, "kl": 0.01})
        assert count() == len(tensors) + 1


@pytest.mark.parametrize("by_default", [False, True])
@pytest.mark.parametrize("kind", OF_TENSORS, ids=str)
def test_an_lr_on_the_device_is_written_in_place_and_never_waited_for(kind: dict[str, Any], by_default: bool) -> None:
    """Also where that is torch's default device, on which `torch.tensor` would put what it makes."""
    lr = held(PEAK)
    loop = Loop(DEVICE, lr, **(kind if DEVICE.type == "cuda" else {"fused": True}))
    with torch.device(DEVICE if by_default else CPU):
        loop.step(SIGNALS[0])
        with no_waits():
            for signals in SIGNALS[1:]:
                loop.step(signals)
    assert loop.optimizer.param_groups[0]["lr"] is lr
    assert lr.device.type == DEVICE.type
    same = on_cpu()
    assert loop.decisions == same.decisions
    assert float(lr) == float(torch.tensor(same.lr))
    for mine, theirs in zip(loop.model.parameters(), same.model.parameters(), strict=True):
        assert torch.allclose(mine.cpu(), theirs, atol=1e-4)


@pytest.mark.parametrize("schedule", [False, True])
def test_an_lr_on_the_device_is_cut_restored_and_lies_under_a_schedule(schedule: bool) -> None:
    loops = [Loop(device, torch.tensor(PEAK, device=device), schedule, fused=True) for device in (DEVICE, CPU)]
    for index, signals in enumerate(SIGNALS):
        for loop in loops:
            loop.step({**signals, "grad_norm": 1e3} if index == 20 else signals)
        mine, theirs = (loop.lr for loop in loops)
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert [decision.factor for decision in loops[0].decisions] == pytest.approx(
        [decision.factor for decision in loops[1].decisions], rel=1e-4
    )


@needs_cuda
@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_captured_update_runs_at_the_lr_of_the_day(kind: dict[str, Any]) -> None:
    """Under Adam a gradient that stays the same moves a weight by the lr."""
    parameter = nn.Parameter(torch.zeros(1, device=DEVICE))
    parameter.grad = torch.ones(1, device=DEVICE)
    optimizer = AdamW([parameter], lr=held(PEAK), weight_decay=0.0, capturable=True, **kind)
    scheduler = AdaptiveWarmup(optimizer, WARMUP)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    ran_at = []
    for signals in SIGNALS:
        before = parameter.item()
        graph.replay()
        ran_at.append(before - parameter.item())
        assert ran_at[-1] == pytest.approx(float(optimizer.param_groups[0]["lr"]), rel=1e-3, abs=5e-8)
        with no_waits():
            scheduler.observe(**signals)
            scheduler.step()
    assert max(ran_at) > 3 * min(ran_at)


@pytest.mark.parametrize("of_tensors", [False, True])
@pytest.mark.parametrize(("first", "second"), [(DEVICE, CPU), (CPU, DEVICE), (DEVICE, DEVICE)], ids=str)
def test_a_run_goes_on_from_a_checkpoint_of_another_device(
    first: torch.device, second: torch.device, of_tensors: bool
) -> None:
    def loop(device: torch.device) -> Loop:
        return Loop(device, torch.tensor(PEAK, device=device) if of_tensors else PEAK, fused=True)

    begun = loop(first)
    for signals in SIGNALS[:15]:
        begun.step(signals)
    saved = io.BytesIO()
    torch.save({name: getattr(begun, name).state_dict() for name in ("optimizer", "scheduler", "model")}, saved)
    saved.seek(0)
    state, again = torch.load(saved, map_location=second, weights_only=True), loop(second)
    for name, content in state.items():
        getattr(again, name).load_state_dict(content)
    for signals in SIGNALS[15:]:
        again.step(signals)
    whole = on_cpu()
    assert again.decisions == whole.decisions[15:]
    assert again.lr == pytest.approx(whole.lr, rel=1e-6)
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(mine.cpu(), theirs, atol=1e-4)


def test_a_state_on_the_device_is_plain() -> None:
    loop = Loop(DEVICE, held(PEAK), fused=True)
    loop.step(SIGNALS[0])
    loop.scheduler.observe(kl=held(0.02))  # still waits for its decision

    def check(value: Any) -> None:
        assert not isinstance(value, Tensor)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            check(part)

    check(loop.scheduler.state_dict())
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=PEAK)
    again = AdaptiveWarmup(optimizer, WARMUP)
    again.load_state_dict(loop.scheduler.state_dict())
    loop.step({})
    optimizer.step()
    again.step()
    assert again.decision == loop.scheduler.decision
    assert again.regulators[0].signals == loop.scheduler.regulators[0].signals
