"""`PolicyProbe` on the device: the KL of the CPU, no trace in the training there, and waits where it measures only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptive_warmup.predictions import divergence
from adaptive_warmup.probe import PolicyProbe
from tests.gpu.device import CPU, DEVICE, needs_cuda, no_waits, waits
from tests.test_probe import gpt as gpt_of
from tests.test_probe import nudge, tokens, trained


def gpt(device: torch.device, dropout: float = 0.0) -> nn.Module:
    return gpt_of(dropout).to(device)


def batch(device: torch.device) -> dict[str, Tensor]:
    ids = tokens().to(device)
    return {"input_ids": ids, "labels": ids}


def measured(model: nn.Module, inputs: Any, update: Callable[[nn.Module], Any] = nudge) -> float:
    probe = PolicyProbe(max_cost=None)
    probe.before(model, inputs)
    update(model)
    kl = probe.after(model)
    assert kl is not None
    return kl


@pytest.mark.parametrize("size", [0.001, 0.02, 0.2])
def test_the_kl_is_that_of_the_cpu(size: float) -> None:
    mine, theirs = (measured(gpt(device), batch(device), lambda model: nudge(model, size)) for device in (DEVICE, CPU))
    assert mine == pytest.approx(theirs, rel=1e-3, abs=3e-7)
    assert theirs > 0.0


def test_a_model_in_bf16_reads_within_its_floor() -> None:
    true = measured(gpt(CPU), batch(CPU))
    assert measured(gpt(DEVICE).bfloat16(), batch(DEVICE)) == pytest.approx(true, rel=0.1, abs=1e-4)


def test_words_that_are_ruled_out_and_positions_that_do_not_count() -> None:
    before, after = torch.randn(2, 1, 70, 5, generator=torch.Generator().manual_seed(0))
    before[:, :, 4] = -torch.inf
    after[:, :3] = torch.nan
    counted = torch.arange(70).view(1, 70) >= 3
    mine, theirs = (divergence(before.to(d), after.to(d), counted.to(d)) for d in (DEVICE, CPU))
    assert mine[0].item() == pytest.approx(theirs[0].item(), rel=1e-5)
    assert mine[1].item() == theirs[1].item() == 67


def left(probe: PolicyProbe | None) -> tuple[list[Tensor], list[Tensor]]:
    """By a training: its weights, and the next random numbers on both devices."""
    return trained(probe, device=DEVICE, fused=True), [torch.rand(4), torch.rand(4, device=DEVICE)]


def test_training_and_random_numbers_are_the_same_to_the_bit(deterministic: None) -> None:
    probed, plain = left(PolicyProbe(every=1, max_cost=None)), left(None)
    for mine, theirs in zip(probed, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_random_numbers_drawn_within_a_measurement_are_drawn_again() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3), torch.rand(3, device=DEVICE)
            out: Tensor = self.body(x)
            return out

    model = Draws().to(DEVICE)
    torch.manual_seed(5)
    expected = torch.rand(4), torch.rand(4, device=DEVICE)
    torch.manual_seed(5)
    assert measured(model, torch.zeros(2, 4, 1, device=DEVICE), lambda _: None) == 0.0
    assert torch.equal(torch.rand(4), expected[0])
    assert torch.equal(torch.rand(4, device=DEVICE), expected[1])


def test_dropout_and_a_skipped_update_read_exactly_nothing() -> None:
    assert measured(gpt(DEVICE, dropout=0.5), batch(DEVICE), lambda _: None) == 0.0


def test_under_an_open_autocast_the_update_is_seen() -> None:
    model, inputs, probe = gpt(DEVICE), batch(DEVICE), PolicyProbe(max_cost=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        probe.before(model, inputs)
        model(**inputs).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        kl = probe.after(model)
    full = gpt(CPU)
    full(**batch(CPU)).loss.backward()
    true = measured(full, batch(CPU), lambda model: torch.optim.SGD(model.parameters(), lr=1.0).step())
    assert kl == pytest.approx(true, rel=0.15)


@needs_cuda
def test_what_is_not_due_waits_for_nothing_and_a_measurement_only_for_its_reading() -> None:
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16)).to(DEVICE)  # transformers' look at masks, and wait
    ids, probe = batch(DEVICE)["input_ids"], PolicyProbe(every=3, max_cost=None)
    probe.before(model, ids)
    assert probe.after(model) == 0.0
    with no_waits():
        for _ in range(2):
            probe.before(model, ids)
            assert probe.after(model) is None
    with waits() as count:
        probe.before(model, ids)
        noted = count()
        nudge(model)  # from the CPU: it waits for each weight
        moved = count()
        assert probe.after(model) is not None
        assert count() == moved + 1
    assert 0 < noted <= 10
