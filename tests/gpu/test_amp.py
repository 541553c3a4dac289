"""A real overflow in fp16 under torch's loss scaler: the update is skipped, and the warmup waits and says why."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.integrations.accelerate import AcceleratedWarmup
from tests.gpu.device import DEVICE, needs_cuda

PEAK, OVERFLOWS = 0.01, 6


def inputs(step: int) -> torch.Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(DEVICE)
    return 1000.0 * x if step == OVERFLOWS else x


@pytest.mark.parametrize("kind", [{}, {"fused": True}], ids=str)
def test_an_overflow_is_skipped_holds_the_warmup_and_is_named(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4).to(DEVICE)
    optimizer = AdamW(model.parameters(), lr=PEAK, **kind)
    scheduler, scaler = AdaptiveWarmup(optimizer, 50), torch.amp.GradScaler(DEVICE.type)
    factors, moved, named = [], [], []
    for step in range(10):
        with torch.autocast(DEVICE.type, torch.float16):
            out = model(inputs(step))
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(out.float().square().mean()).backward()
        scaler.unscale_(optimizer)
        norm = float(clip_grad_norm_(model.parameters(), 1.0))
        assert math.isfinite(norm) == (step != OVERFLOWS)
        assert (scheduler.check_gradient(norm) < 0.01) == (step == OVERFLOWS)
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, model.weight))
        factors.append(scheduler.decision.factor)
        scheduler.observe(kl=1e-4 if moved[-1] else 0.0, grad_norm=norm)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == PEAK * scheduler.decision.factor  # the cut is undone
        named.append([alarm.name for alarm in scheduler.decision.alarms])
    assert moved == [step != OVERFLOWS for step in range(10)]
    assert named == [["non_finite"] if step == OVERFLOWS else [] for step in range(10)]
    assert factors[OVERFLOWS + 1] == factors[OVERFLOWS]
    rises = [after > before for before, after in pairwise(factors)]
    assert rises[:OVERFLOWS] == [True] * OVERFLOWS
    assert rises[-1]


@needs_cuda
@pytest.mark.parametrize("fused", [False, True])
def test_accelerate_steps_it_for_updates_that_were_made(fused: bool) -> None:
    """Of a fused optimizer it does not learn that an update was skipped: the warmup steps, on a step that is named."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="fp16")
    model = nn.Linear(4, 4)
    optimizer = AdamW(model.parameters(), lr=PEAK, fused=fused)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = AcceleratedWarmup(accelerator, optimizer, 50)
    steps = []
    for step in range(10):
        before = model.weight.detach().clone()
        accelerator.backward(model(inputs(step)).float().square().mean())
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        scheduler.observe(grad_norm=norm)
        optimizer.step()
        assert torch.equal(before, model.weight) == (step == OVERFLOWS)
        scheduler.step()
        optimizer.zero_grad()
        steps.append(scheduler.decision.step)
    AcceleratorState._reset_state(reset_partial_state=True)
    late = 0 if fused else 1
    assert steps == [step + 1 - late * (step >= OVERFLOWS) for step in range(10)]
