"""`AdaptiveWarmup` in checkpoints of `torch.distributed.checkpoint`, which FSDP runs are saved by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, SequentialLR
from transformers import get_cosine_schedule_with_warmup

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.sealing import opened, sealed
from tests.optimizers import drive, lively, optimizer_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")  # it says that there is one process

BUILDS: dict[str, Callable[[Optimizer], Any]] = {
    "optimizer": lambda o: AdaptiveWarmup(o, warmup_steps=10),
    "per_group": lambda o: AdaptiveWarmup(o, warmup_steps=[10, 3], law=["feedback", "linear"]),
    "multi_step": lambda o: AdaptiveWarmup(MultiStepLR(o, [7, 9], 0.5), warmup_steps=10),
    "transformers_cosine": lambda o: AdaptiveWarmup(get_cosine_schedule_with_warmup(o, 5, 40)),
    "in_sequential": lambda o: SequentialLR(o, [AdaptiveWarmup(o, 8), CosineAnnealingLR(o, 30)], [9]),
}


def resumed(scheduler: Any, folder: Path, stateful: bool) -> Any:
    """In the two ways of its tutorial: the object itself, or its state dict."""
    if stateful:
        dcp.load({"scheduler": scheduler}, checkpoint_id=folder)
        return scheduler
    state = {"scheduler": scheduler.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    scheduler.load_state_dict(state["scheduler"])
    return scheduler


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("name", BUILDS)
def test_a_run_resumed_in_mid_warmup_is_the_uninterrupted_one_to_the_bit(
    name: str, stateful: bool, tmp_path: Path
) -> None:
    whole, rest = (BUILDS[name](optimizer_of(1e-3, 0.2)) for _ in range(2))
    drive(whole, lively(5))
    dcp.save({"scheduler": whole if stateful else whole.state_dict()}, checkpoint_id=tmp_path)
    rest.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    rest = resumed(rest, tmp_path, stateful)
    assert drive(rest, lively(12)) == drive(whole, lively(12))


def test_a_state_whose_schedule_lies_bare_in_it_as_it_once_did_is_read() -> None:
    whole, rest = (AdaptiveWarmup(CosineAnnealingLR(optimizer_of(1e-3), 40), warmup_steps=10) for _ in range(2))
    drive(whole, lively(5))
    content = opened(whole.state_dict())
    rest.load_state_dict(sealed({**content, "schedule": content["schedule"][0]}))
    assert drive(rest, lively(12)) == drive(whole, lively(12))
