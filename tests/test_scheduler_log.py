"""`AdaptiveWarmup(..., log=...)`: each decision is in the log, through a resumption, of several processes once."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.history import DecisionLog, read, replay
from adaptive_warmup.readers import decision_log
from tests.optimizers import drive, lively, optimizer_of
from tests.processes import run_processes


def test_each_step_is_logged_with_its_lr_and_replays(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer = optimizer_of(0.5)
    lrs = drive(AdaptiveWarmup(CosineAnnealingLR(optimizer, 50), 10, log=path), lively(40))
    run = read(path)
    assert [step["lr"] for step in run.steps] == pytest.approx([lr for (lr,) in lrs], rel=1e-6)
    assert run.signal("kl") == [signals["kl"] for signals in lively(40)]
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]
    assert (run.about, run.config.warmup_steps, run.problem) == ({"lr": 0.5}, 10, None)


def test_the_lr_that_is_logged_is_the_one_before_another_scheduler_moved_it(tmp_path: Path) -> None:
    optimizer = optimizer_of(1.0)
    scheduler = AdaptiveWarmup(optimizer, 1, log=tmp_path / "run.jsonl")
    plateau, used = ReduceLROnPlateau(optimizer, factor=0.5, patience=0), []
    for _ in range(4):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plateau.step(1.0)  # the first metric is the best so far
        scheduler.step()
    assert used == [1.0, 1.0, 0.5, 0.25] == [step["lr"] for step in read(tmp_path / "run.jsonl").steps]


BESIDE: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "cosine": lambda o: CosineAnnealingLR(o, 20),
    "step": lambda o: StepLR(o, 3, 0.1),
    "one that lifts it": lambda o: LambdaLR(o, lambda t: 0.9**t),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tensor", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_in_a_chain_the_lr_that_is_logged_is_the_one_that_the_update_used(
    tmp_path: Path, name: str, tensor: bool, first: bool
) -> None:
    optimizer = optimizer_of(torch.tensor(0.5) if tensor else 0.5)
    ours, other = AdaptiveWarmup(optimizer, 10, log=tmp_path / "run.jsonl"), BESIDE[name](optimizer)
    lrs = drive(ChainedScheduler([ours, other] if first else [other, ours]), [{}] * 12)
    assert [step["lr"] for step in read(tmp_path / "run.jsonl").steps] == pytest.approx([lr for (lr,) in lrs], rel=1e-6)


def test_the_lr_of_a_cut_update_is_logged_as_cut(tmp_path: Path) -> None:
    scheduler = AdaptiveWarmup(optimizer_of(1.0, 5.0), 1, log=tmp_path / "run.jsonl")
    drive(scheduler, [{"norm": math.inf}, {"norm": 1.0}, {}])
    for norm in (math.inf, 1.0):  # of two updates the mean: at a thousandth, and whole
        scheduler.check_gradient(norm)
        scheduler.optimizer.step()
    scheduler.step()
    assert [step["lr"] for step in read(tmp_path / "run.jsonl").steps] == [0.001, 1.0, 1.0, 0.5005]
    assert decision_log.settings(tmp_path / "run.jsonl")[1] == 1.0


def test_late_kls_replay(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    late = [{**signals, "of_step": max(step - 3, 0)} for step, signals in enumerate(lively(40))]
    drive(AdaptiveWarmup(CosineAnnealingLR(optimizer_of(0.5), 50), 10, log=path), late)
    run = read(path)
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]
    assert len([step for step in run.steps if "kl_lr" in step["signals"]]) == 36  # of steps 1 to 36


def test_it_changes_no_decision(tmp_path: Path) -> None:
    with_log = drive(AdaptiveWarmup(optimizer_of(0.5), 10, log=str(tmp_path / "run.jsonl")), lively(40))
    assert with_log == drive(AdaptiveWarmup(optimizer_of(0.5), 10), lively(40))


def test_a_killed_run_that_resumes_goes_on_in_its_log(tmp_path: Path) -> None:
    whole, path, saved = tmp_path / "whole.jsonl", tmp_path / "run.jsonl", io.BytesIO()
    drive(AdaptiveWarmup(CosineAnnealingLR(optimizer_of(0.5), 50), 10, log=whole), lively(40))
    first = AdaptiveWarmup(CosineAnnealingLR(optimizer_of(0.5), 50), 10, log=path)
    drive(first, lively(40)[:20])
    torch.save([first.optimizer.state_dict(), first.state_dict()], saved)
    drive(first, lively(40)[20:27])
    saved.seek(0)
    again = AdaptiveWarmup(CosineAnnealingLR(optimizer_of(0.5), 50), 10, log=path)
    for part, state in zip((again.optimizer, again), torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    drive(again, lively(40)[20:])
    run = read(path)
    assert run.steps == read(whole).steps
    assert "the run goes on at step 20: steps 20 to 26 before it are superseded" in str(run.problem)
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]


def test_the_log_of_a_run_at_another_lr_is_refused_before_training(tmp_path: Path) -> None:
    drive(AdaptiveWarmup(optimizer_of(0.5), 10, log=tmp_path / "run.jsonl"), lively(3))
    with pytest.raises(ValueError, match=r"the log of another run \(lr 0\.5, here 0\.1\)"):
        AdaptiveWarmup(optimizer_of(0.1), 10, log=tmp_path / "run.jsonl")


def test_of_several_controllers_the_first_is_logged_and_a_log_of_ones_own_is_taken(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "run.jsonl", arm="mine")
    drive(AdaptiveWarmup(optimizer_of(0.5, 0.1), [10, 3], law=["feedback", "linear"], log=log), lively(20))
    log.add(evaluation=0.5)
    run = read(tmp_path / "run.jsonl")
    assert (run.config.warmup_steps, run.config.law, run.about) == (10, "feedback", {"arm": "mine"})
    assert run.metric("evaluation")[-1] == 0.5
    assert len(run.steps) == 20


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_as_the_second_part_of_a_schedule_it_counts_its_own_steps(tmp_path: Path) -> None:
    optimizer = optimizer_of(0.5)
    second = AdaptiveWarmup(optimizer, 4, log=tmp_path / "run.jsonl")
    drive(SequentialLR(optimizer, [StepLR(optimizer, 2), second], [6]), [{}] * 10)
    run = read(tmp_path / "run.jsonl")
    assert [step["step"] for step in run.steps] == list(range(len(run.steps)))
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_logs_its_own_steps_from_where_it_was_made(
    tmp_path: Path, duplicate: Callable[[AdaptiveWarmup], AdaptiveWarmup]
) -> None:
    path = tmp_path / "run.jsonl"
    scheduler = AdaptiveWarmup(optimizer_of(0.5), 10, log=path)
    lrs = drive(scheduler, lively(5))
    lrs += drive(duplicate(scheduler), [{"kl": 0.5}] * 4)
    run = read(path)
    assert [step["lr"] for step in run.steps] == pytest.approx([lr for (lr,) in lrs], rel=1e-6)
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]


_PROCESS = """
import sys
import torch
from adaptive_warmup import AdaptiveWarmup
from tests.optimizers import drive, lively, optimizer_of

torch.distributed.init_process_group("gloo")
scheduler = AdaptiveWarmup(optimizer_of(0.5), 10, log=sys.argv[1])
drive(scheduler, lively(20))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_of_several_processes_the_first_one_writes(tmp_path: Path) -> None:
    run_processes(_PROCESS, tmp_path, tmp_path / "run.jsonl")
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 21
    assert len(read(tmp_path / "run.jsonl").steps) == 20
