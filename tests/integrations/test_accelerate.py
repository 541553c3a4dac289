"""`AcceleratedWarmup` in plain loops of the real Accelerate, in one process and in two."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from adaptive_warmup.integrations.accelerate import AcceleratedWarmup
from tests.optimizers import decided
from tests.processes import run_processes

KLS = [2.0**-9, 2.0**-7, 2.0**-4, 2.0**-6, 2.0**-5, 2.0**-7, 2.0**-6, 2.0**-8]  # means of pairs are exact


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    _forget()  # what a Trainer has left
    yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def parts(accelerator: Accelerator, schedule: bool = False, **settings: Any) -> tuple[Any, Any, AcceleratedWarmup]:
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(3, 1)
    optimizer: Any = SGD(model.parameters(), lr=0.1)
    shape = CosineAnnealingLR(optimizer, 16) if schedule else None
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, optimizer, AcceleratedWarmup(accelerator, shape or optimizer, **{"warmup_steps": 4, **settings})


def test_a_prepared_optimizer_which_has_no_hooks_may_be_wrapped_without_us() -> None:
    optimizer = Accelerator(cpu=True).prepare(SGD(nn.Linear(3, 1).parameters(), lr=0.1))
    assert decided(optimizer, optimizer, [1e-4] * 4) == pytest.approx([0.025, 0.05, 0.1, 0.1])


def train(accelerator: Accelerator, parts: tuple[Any, Any, AcceleratedWarmup], kls: list[float]) -> list[float]:
    """One KL for each batch; the lrs that the batches' updates ran at."""
    model, optimizer, scheduler = parts
    lrs = []
    for kl in kls:
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(2, 3)).square().mean())
            scheduler.observe(kl=kl)
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return lrs


def plain(kls: list[float], schedule: bool = False) -> list[float]:
    """The lrs of `AdaptiveWarmup` without Accelerate."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return decided(optimizer, CosineAnnealingLR(optimizer, 16) if schedule else optimizer, kls)


@pytest.mark.parametrize("schedule", [False, True])
def test_in_one_process_it_is_the_plain_scheduler(schedule: bool) -> None:
    accelerator = Accelerator(cpu=True)
    assert train(accelerator, parts(accelerator, schedule), KLS) == plain(KLS, schedule)


@pytest.mark.parametrize("settings", [{}, {"step_scheduler_with_optimizer": False}])
def test_while_gradients_accumulate_it_waits(settings: dict[str, bool]) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **settings)
    lrs = train(accelerator, parts(accelerator), [kl for kl in KLS for _ in range(2)])
    assert lrs[::2] == lrs[1::2] == plain(KLS)


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    made = parts(accelerator, schedule=True)
    train(accelerator, made, KLS[:3])
    accelerator.save_state(str(tmp_path))
    rest = train(accelerator, made, KLS[3:])
    accelerator.free_memory()
    again = parts(accelerator, schedule=True)
    accelerator.load_state(str(tmp_path))
    assert again[2].decision.step == 3
    assert train(accelerator, again, KLS[3:]) == rest
    assert again[2].state_dict() == made[2].state_dict()


def test_what_is_wrong_fails_where_it_comes_in() -> None:
    accelerator = Accelerator(cpu=True)
    _, optimizer, scheduler = parts(accelerator)
    with pytest.raises(TypeError, match="approx_kl"):
        scheduler.observe(approx_kl=0.1)
    with pytest.raises(TypeError, match="accelerator is a AcceleratedOptimizer: give the Accelerator first"):
        AcceleratedWarmup(optimizer, optimizer, 4)
    with pytest.raises(TypeError, match="wrap before `prepare`"):
        AcceleratedWarmup(accelerator, accelerator.prepare(CosineAnnealingLR(optimizer, 3)), 4)


IN_TWO = """
import json, math, sys
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import CosineAnnealingLR
from tests.integrations.test_accelerate import AcceleratedWarmup, KLS, parts, train

folder, accelerator = sys.argv[1], Accelerator(cpu=True)
rank = accelerator.process_index
assert accelerator.num_processes == 2
results = {}
for schedule in (False, True):
    results[f"shared {schedule}"] = train(accelerator, parts(accelerator, schedule), [kl * (0.5 + rank) for kl in KLS])

model, optimizer, scheduler = made = parts(accelerator)
naive = accelerator.prepare(CosineAnnealingLR(optimizer.optimizer, 100))
naive.step()
results["accelerate's own steps"] = naive.scheduler.last_epoch

accelerator.free_memory()
made = parts(accelerator)
train(accelerator, made, [kl * (0.5 + rank) for kl in KLS[:3]])
accelerator.save_state(f"{folder}/state")
rest = train(accelerator, made, [kl * (0.5 + rank) for kl in KLS[3:]])
accelerator.free_memory()
again = parts(accelerator)
accelerator.load_state(f"{folder}/state")
results["resumed"] = train(accelerator, again, [kl * (0.5 + rank) for kl in KLS[3:]]) == rest

model, optimizer, scheduler = parts(accelerator)
alarms = []
for step, kl in enumerate([0.01, math.nan if rank else 0.01, 0.01]):
    scheduler.observe(kl=kl, **({"task_reward": 3.0} if rank else {}))
    accelerator.backward(model(torch.ones(2, 3)).square().mean())
    optimizer.step()
    scheduler.step()
    alarms.append([alarm.name for alarm in scheduler.decision.alarms])
results["alarms"] = alarms
results["reward of one"] = scheduler.scheduler.regulators[0].signals.task_reward

grouped = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=1.0)
grouped = accelerator.prepare(grouped)
scheduler = AcceleratedWarmup(accelerator, grouped, warmup_steps=[4, 4])
scheduler.observe(group=1, kl=0.25 * (0.5 + rank), kl_source="in_loop")
grouped.step()
scheduler.step()
results["groups"] = [regulator.signals.kl for regulator in scheduler.scheduler.regulators]
results["source"] = scheduler.scheduler.regulators[1].signals.kl_source
try:
    scheduler.observe(approx_kl=0.1)
except TypeError as error:
    results["error"] = "approx_kl" in str(error)
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump(results, file)
accelerator.end_training()
"""


def test_two_processes_decide_once_for_each_update_and_the_same(tmp_path: Path) -> None:
    run_processes(IN_TWO, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["accelerate's own steps"] == 2, "what there would be without it"
    for schedule in (False, True):
        assert first[f"shared {schedule}"] == plain(KLS, schedule), "as one process on the means"
    assert first["resumed"]
    assert first["alarms"] == [[], ["non_finite"], []]
    assert math.isclose(first["reward of one"], 3.0)
    assert first["groups"] == [None, 0.25]
    assert first["source"] == "in_loop"
    assert first["error"]


OF_ONE = """
import json, sys
import torch
from accelerate import Accelerator
from tests.integrations.test_accelerate import parts

folder, accelerator = sys.argv[1], Accelerator(cpu=True)
rank = accelerator.process_index
model, optimizer, scheduler = parts(accelerator)
told = {
    (1, 1): [{"kl": 0.25, "kl_source": "in_loop:4x2"}],
    (2, 1): [{"kl": 0.25, "of_step": 0}],
    (3, 0): [{"kl": 0.25, "kl_source": "probe"}, {"loss": 1.0, "of_step": 1}],
    (3, 1): [{"kl": 0.75, "kl_source": "post_update:4x8", "of_step": 1}],
}
seen, lrs = [], []
try:
    scheduler.observe(kl=9.0, of_step=7)
except ValueError as error:
    assert "of_step=7 is still to come" in str(error)
saved = scheduler.state_dict()
scheduler.observe(kl=9.0)
scheduler.load_state_dict(saved)  # goes on from there: what was observed since is gone
for step in range(4):
    for signals in told.get((step, rank), []):
        scheduler.observe(**signals)
    accelerator.backward(model(torch.ones(2, 3)).square().mean())
    optimizer.step()
    scheduler.step()
    signals = scheduler.scheduler.regulators[0].signals
    seen.append([signals.kl, signals.kl_source, signals.kl_lr])
    lrs += scheduler.get_last_lr()
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump([seen, lrs], file)
accelerator.end_training()
"""


def test_a_kl_that_one_process_reports_has_its_source_and_step_in_both(tmp_path: Path) -> None:
    """Update 0 ran at a quarter of the lr. Where both report one, the source and the step are the first one's."""
    run_processes(OF_ONE, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == [
        [None, "post_update", None],
        [0.25, "in_loop:4x2", None],
        [0.25, "post_update", 0.25],
        [0.5, "probe", None],
    ]
