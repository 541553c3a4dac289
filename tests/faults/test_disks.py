"""What becomes of the decision log's file while a scheduler trains on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.history import read, replay
from tests.faults.catalogue import fault
from tests.optimizers import drive, lively, optimizer_of


def another_run(path: Path) -> None:
    drive(AdaptiveWarmup(optimizer_of(0.5), 10, log=path), lively(5))


@pytest.mark.parametrize("harm", [another_run, lambda path: os.truncate(path, 0), Path.unlink])
@fault(
    "disks",
    "scheduler",
    "another run writes into the decision log, or it is emptied or deleted",
    "one warning; training goes on, and what is logged from there replays",
)
def test_a_file_that_others_change(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path, whole = tmp_path / "run.jsonl", drive(AdaptiveWarmup(optimizer_of(0.5), 10), lively(30))
    scheduler = AdaptiveWarmup(optimizer_of(0.5), 10, log=path)
    before = drive(scheduler, lively(30)[:12])
    harm(path)
    caplog.clear()
    assert before + drive(scheduler, lively(30)[12:]) == whole
    assert sum("others have changed" in record.message for record in caplog.records) == 1
    run = read(path)
    assert [step["step"] for step in run.steps][-18:] == list(range(12, 30))
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]
