from __future__ import annotations

import logging

import pytest
import torch

from adaptive_warmup.ppo.generators import draw_seed, permutation, resume


def test_torchs_default_device_does_not_matter() -> None:
    """Where it is a GPU, what torch makes by a generator of the CPU has to be asked for on the CPU."""
    plain = torch.Generator().manual_seed(0)
    expected = draw_seed(plain), permutation(9, plain).tolist()
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        assert (draw_seed(generator), permutation(9, generator).tolist()) == expected
    assert sorted(expected[1]) == list(range(9))


def test_it_goes_on_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    state, following = generator.get_state(), draw_seed(generator)
    other = torch.Generator().manual_seed(1)
    resume(other, state)
    assert draw_seed(other) == following
    assert not caplog.text


def test_a_state_of_another_kind_of_device_gives_a_seed_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def seed(*state: int) -> int:
        generator = torch.Generator()
        resume(generator, torch.tensor([*state, *[0] * 14], dtype=torch.uint8))  # of CUDA: 16 bytes
        return draw_seed(generator)

    with caplog.at_level(logging.WARNING, "adaptive_warmup"):
        first = seed(1, 2)
    assert "the checkpoint is of another kind of device than cpu" in caplog.text
    assert first == seed(1, 2) != seed(1, 3)
