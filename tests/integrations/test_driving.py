"""The lr in a Trainer's optimizer: whose it is, step by step."""

from __future__ import annotations

import pytest
from torch.optim.lr_scheduler import ConstantLR

from adaptive_warmup.integrations.driving import OWN_WARMUP, DrivenLrs
from tests.optimizers import lrs_of, optimizer_of


def driven(*lrs: float, apart: int | None = None) -> DrivenLrs:
    optimizer = optimizer_of(*lrs)
    if apart is not None:
        optimizer.param_groups[apart][OWN_WARMUP] = True
    return DrivenLrs(optimizer, ConstantLR(optimizer, factor=1.0))


def test_within_a_step_the_lr_is_ours_and_the_schedules_outside_of_it() -> None:
    lrs = driven(1e-3, 1e-2)
    lrs.begin(0.5)
    assert lrs_of(lrs.optimizer) == [5e-4, 5e-3]
    lrs.used()
    assert lrs_of(lrs.optimizer) == [1e-3, 1e-2]
    assert lrs.schedule.get_last_lr() == [5e-4, 5e-3]  # which the Trainer logs


def test_an_lr_that_another_has_set_within_a_step_stays() -> None:
    lrs = driven(1e-3)
    lrs.begin(0.5)
    lrs.optimizer.param_groups[0]["lr"] = 0.25
    lrs.used()
    assert lrs_of(lrs.optimizer) == [0.25]


@pytest.mark.parametrize(("apart", "peak"), [(None, 0.1), (1, 1e-3)])
def test_the_peak_is_the_highest_of_the_groups_that_we_warm_up(apart: int | None, peak: float) -> None:
    lrs = driven(1e-3, 0.1, apart=apart)
    lrs.begin(0.5)
    assert lrs.peak == lrs.scheduled == peak
    assert lrs_of(lrs.optimizer) == [5e-4, 0.1 if apart else 0.05]
