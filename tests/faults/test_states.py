"""Kills at any moment, and state files that are not what was written."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.controller import VERSION
from adaptive_warmup.history import read, replay
from tests.faults.catalogue import ALL, fault
from tests.optimizers import drive, lively, optimizer_of

KILLS = 100 if ALL else 12
STEPS = 8 * KILLS


def train(folder: Path) -> None:
    """A training that checkpoints every third step, resumes where it finds one, and logs its decisions."""
    scheduler, begin, saved = AdaptiveWarmup(optimizer_of(0.5), 100, log=folder / "run.jsonl"), 0, folder / "state.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        scheduler.optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        begin = state["step"]
    for step, signals in enumerate(lively(STEPS)[begin:], start=begin):
        drive(scheduler, [signals])
        if step % 3 == 2:
            state = {"optimizer": scheduler.optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            torch.save({**state, "step": step + 1}, folder / "new.pt")
            os.replace(folder / "new.pt", saved)


def forked(work: Callable[[], None]) -> int:
    """A child that does `work` and nothing else; Python is imported already."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


@fault("states", "scheduler", "kill -9, at a hundred random moments", "resumed, the run is that of no kill, to the bit")
def test_kills(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    draw, log = random.Random(0), broken / "run.jsonl"
    for _ in range(KILLS):
        size = log.stat().st_size if log.exists() else 0
        child, enough = forked(lambda: train(broken)), size + draw.randrange(300, 2000)
        while not log.exists() or log.stat().st_size < enough:
            time.sleep(1e-4)
            if os.waitpid(child, os.WNOHANG)[0]:
                break
        else:
            time.sleep(draw.uniform(0.0, 2e-3))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    os.waitpid(forked(lambda: train(broken)), 0)
    os.waitpid(forked(lambda: train(whole)), 0)
    run, undisturbed = read(log), read(whole / "run.jsonl")
    assert len(undisturbed.steps) == STEPS
    assert run.steps == undisturbed.steps
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (whole, broken)]
    assert states[0] == states[1]


def saved_state() -> tuple[bytes, str]:
    """A state file, and what is in it."""
    scheduler, file = AdaptiveWarmup(optimizer_of(0.5), 10), io.BytesIO()
    drive(scheduler, lively(9))
    torch.save(scheduler.state_dict(), file)
    return file.getvalue(), json.dumps(scheduler.state_dict())


STATE, CONTENT = saved_state()


def loaded(file: bytes) -> str | None:
    """What a scheduler holds that was given this file; None where it was refused, and then it holds what it held."""
    scheduler = AdaptiveWarmup(optimizer_of(0.5), 10)
    before = json.dumps(scheduler.state_dict())
    try:
        scheduler.load_state_dict(torch.load(io.BytesIO(file), weights_only=True))
    except Exception:  # torch has many for a file that is none; what counts is that nothing came of it
        return None if json.dumps(scheduler.state_dict()) == before else "changed by what was refused"
    return json.dumps(scheduler.state_dict())


@given(st.integers(0, len(STATE) - 1))
@fault("states", "scheduler", "a state file that is cut short", "refused; nothing is changed")
def test_truncated(length: int) -> None:
    assert loaded(STATE) == CONTENT
    assert loaded(STATE[:length]) is None


@given(st.integers(0, 8 * len(STATE) - 1))
@fault("states", "scheduler", "a bit of a state file is flipped", "refused, or it was none that counts")
def test_flipped(bit: int) -> None:
    file = bytearray(STATE)
    file[bit // 8] ^= 1 << bit % 8
    assert loaded(bytes(file)) in (None, CONTENT)


leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
anything = st.recursive(
    leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3) | st.integers(), inner), max_leaves=8
)


@given(anything | st.dictionaries(st.sampled_from(["version", "checksum", "lrs", "make", "state"]), anything))
@fault("states", "scheduler", "a state that is something else altogether", "refused by a `ValueError`")
def test_something_else(state: Any) -> None:
    if isinstance(state, dict):
        state |= {"version": 1}
    with pytest.raises(ValueError, match=r"damaged|reads states of version"):
        AdaptiveWarmup(optimizer_of(0.5), 10).load_state_dict(state)


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@fault("states", "scheduler", "a state file that would run code", "refused unread by `torch.load(weights_only=True)`")
def test_hostile(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"version": VERSION, "checksum": Hostile(tmp_path / "ran")}, file)
    assert loaded(file.getvalue()) is None
    assert not (tmp_path / "ran").exists()
    file.seek(0)
    with pytest.raises(ValueError, match="damaged"):
        AdaptiveWarmup(optimizer_of(0.5), 10).load_state_dict(torch.load(file, weights_only=False))
    assert (tmp_path / "ran").exists()  # the file is a loaded gun, and only `weights_only` keeps it from going off
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
