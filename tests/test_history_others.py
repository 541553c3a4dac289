"""A decision log in the world: copies of the run, other runs, who cuts it short or takes it away, full disks."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog, Run, read, replay


def steps(log: DecisionLog, regulator: Regulator, count: int, kl: float = 0.002) -> list[float]:
    """So many steps; the factors decided for the next ones."""
    following = []
    for _ in range(count):
        regulator.observe(kl=kl * regulator.decision.factor)
        following.append(regulator.decide().factor)
        log.write(regulator, lr=0.1)
    return following


def numbers(run: Run) -> list[int]:
    """The steps that count; what is decided on them is what the log says."""
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]
    return [step["step"] for step in run.steps]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))])
@pytest.mark.parametrize("max_bytes", [None, 2500])
def test_a_copy_goes_on_in_the_file_and_is_told_from_the_first(
    tmp_path: Path, duplicate: Callable[[DecisionLog], DecisionLog], max_bytes: int | None
) -> None:
    log, regulator = DecisionLog(tmp_path / "run.jsonl", max_bytes=max_bytes, arm="mine"), Regulator(Config(30))
    kept = steps(log, regulator, 12)
    twin, other = duplicate(log), Regulator(Config(30))
    other.load_state_dict(regulator.state_dict())
    ahead = steps(twin, other, 6, kl=0.5)
    run = read(tmp_path / "run.jsonl")
    assert numbers(run) == list(range(18))
    assert run.about == {"arm": "mine"}
    assert [step["next"] for step in run.steps] == kept + ahead
    kept += steps(log, regulator, 3)  # goes back, and its own steps count from there
    run = read(tmp_path / "run.jsonl")
    assert numbers(run) == list(range(15))
    assert [step["next"] for step in run.steps] == kept


def test_of_two_runs_in_one_file_each_step_is_told_whose_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [(DecisionLog(tmp_path / "run.jsonl"), Regulator(Config(30)), kl) for kl in (0.002, 0.3)]
    for _ in range(8):
        for log, regulator, kl in runs:
            steps(log, regulator, 1, kl)
    assert numbers(read(tmp_path / "run.jsonl")) == list(range(8))
    assert [r.message for r in caplog.records if "others have changed" in r.message] == [
        f"others have changed {tmp_path / 'run.jsonl'}: a new start is made in it; name a file for each run"
    ] * 2


@pytest.mark.parametrize("left", [0, -7, None], ids=["nothing", "all but an end", "no file"])
def test_a_file_that_is_cut_short_or_taken_away_is_begun_anew(tmp_path: Path, left: int | None) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(30))
    log = DecisionLog(path)
    steps(log, regulator, 5)
    if left is None:
        path.unlink()
    else:
        os.truncate(path, left % path.stat().st_size)
    steps(log, regulator, 4)
    assert numbers(read(path)) == [*(range(4) if left == -7 else ()), *range(5, 9)]


def test_an_alarm_that_goes_on_is_told_anew_after_a_new_start(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(30))
    log = DecisionLog(path)
    steps(log, regulator, 3, math.nan)
    path.unlink()
    steps(log, regulator, 2, math.nan)
    assert [step["alarms"][0][1].startswith("kl is nan") for step in read(path).steps] == [True, True]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_disk_that_was_full_leaves_no_part_of_a_line(
    tmp_path: Path, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(30))
    with room_for(room), caplog.at_level(logging.WARNING):
        log = DecisionLog(path, Config(30))
        steps(log, regulator, 10)
        before = path.read_bytes()
    assert before == b"" or before.endswith(b"\n")
    assert ["cannot be written" in record.message for record in caplog.records] == [True]
    steps(log, regulator, 4)
    run = read(path)
    assert numbers(run)[-4:] == list(range(10, 14))
    assert run.problem is None


def test_a_path_that_no_disk_takes_costs_the_log_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    assert len(steps(DecisionLog("x" * 300, Config(30)), Regulator(Config(30)), 3)) == 3
    assert ["File name too long" in record.message for record in caplog.records] == [True]


def test_a_pipe_has_no_size_to_grow_beyond() -> None:
    reader, writer = os.pipe()
    with DecisionLog(f"/dev/fd/{writer}", max_bytes=1) as log:
        steps(log, Regulator(Config(30)), 3)
    os.close(writer)
    with open(reader) as file:
        assert len(file.readlines()) == 4
