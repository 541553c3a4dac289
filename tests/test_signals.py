"""The scale of the ways to measure the KL."""

from __future__ import annotations

import pytest

from adaptive_warmup.controller import Config, start, step
from adaptive_warmup.signals import Signals, check_source, is_source, kl_on_target, kl_scale


def test_an_in_loop_kl_is_scaled_by_the_updates_that_it_saw() -> None:
    """Before update i of n it has grown to (i / n)^2, a quarter of it in the first epoch; the mean over the updates."""
    assert kl_scale("in_loop:1x2") == pytest.approx((0 + 1 / 4 / 4) / 2)
    assert kl_scale("in_loop:2x1") == pytest.approx((0 + 1 / 4) / 2)
    assert kl_scale("in_loop:1x3") == pytest.approx((0 + 1 / 9 / 4 + 4 / 9 / 4) / 3)
    assert kl_scale("in_loop:2x2") == pytest.approx((0 + 1 / 16 / 4 + 4 / 16 + 9 / 16) / 4)
    assert kl_scale("in_loop:100x100") == pytest.approx(1 / 3, rel=0.01)
    assert kl_on_target(0.01, "in_loop:1x2", 0.5) == pytest.approx(0.01 / 32 / 4)


def test_the_same_step_told_either_way_gives_the_same_lr() -> None:
    config = Config(20)
    _, after = step(config, start(config), Signals(kl=0.032))
    _, within = step(config, start(config), Signals(kl=0.001, kl_source="in_loop:1x2"))
    assert within.factor == pytest.approx(after.factor)
    assert within.ceiling == pytest.approx(after.ceiling)


def test_of_the_other_ways_each_has_its_own_target() -> None:
    """What is read at a step that is just on target, .01."""
    on_target = {"post_update": 0.01, "post_update:4x8": 0.01, "probe": 0.01, "training_probe": 0.03, "in_loop": 0.001,
                 "clip_fraction": 0.0175}  # fmt: skip
    config = Config(1, min_target_kl=0.01)
    for source, kl in on_target.items():
        _, decision = step(config, start(config), Signals(kl=kl, kl_source=source))
        assert decision.ceiling == pytest.approx(1.0)


@pytest.mark.parametrize("source", ["in_loop:4", "in_loop:0x2", "in_loop:4x", "in_loop:-1x2", "in_loop:4x2 ", "loop"])
def test_an_unknown_source_is_quoted_with_the_known_ones(source: str) -> None:
    with pytest.raises(ValueError, match=f"kl_source={source!r} is unknown: .* or in_loop:4x2 for 4 epochs of 2"):
        check_source(source)


def test_the_only_update_s_in_loop_kl_is_refused() -> None:
    with pytest.raises(ValueError, match="before the only update there is no KL"):
        check_source("in_loop:1x1")
    assert not is_source("in_loop:1x1")  # so that it is no answer to `advise` either, and none in a log
