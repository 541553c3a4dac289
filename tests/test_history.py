"""The decision log: what is written is what was decided, readable at every moment."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog, read, replay
from tests.plant import Plant


def record(path: Path, steps: int, config: Config, seed: int = 0) -> list[float]:
    plant, regulator, next_factors = Plant(noise=0.8, missing=0.2, seed=seed), Regulator(config), []
    with DecisionLog(path, config, arm="test") as log:
        for step in range(steps):
            factor = regulator.decision.factor
            regulator.observe(kl=plant.kl(step, factor), task_reward=math.sin(step), grad_norm=1.0, loss=0.1)
            next_factors.append(regulator.decide().factor)
            log.write(regulator, lr=1e-3 * factor, score=0.5)
    return next_factors


@given(st.integers(0, 1000), st.sampled_from(["feedback", "linear"]))
def test_replaying_a_log_gives_the_same_decisions_bit_for_bit(tmp_path_factory, seed: int, law: str) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    factors = record(path, 60, Config(30, law=law), seed)
    run = read(path)
    assert [step["next"] for step in run.steps] == factors
    again = list(replay(run))
    assert [d.factor for d in again] == factors
    assert [list(d.reasons) for d in again] == [step["reasons"] for step in run.steps]
    assert [d.phase for d in again] == [step["phase"] for step in run.steps]


def test_small_and_named(tmp_path: Path) -> None:
    record(tmp_path / "run.jsonl", 300, Config(30))
    run = read(tmp_path / "run.jsonl")
    assert (tmp_path / "run.jsonl").stat().st_size / 300 <= 400
    assert run.about == {"arm": "test"}
    assert run.metric("score") == [0.5] * 300
    assert math.isnan(run.metric("unknown")[0])
    assert run.signal("grad_norm") == [1.0] * 300
    assert run.problem is None


def test_a_log_cut_short_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path, 10, Config(30))
    path.write_text(path.read_text()[:-40])
    run = read(path)
    assert len(run.steps) == 9
    assert "line 11" in str(run.problem)


@pytest.mark.parametrize("text", ["", "step,kl\n1,2\n", json.dumps({"adaptive_warmup": 99}) + "\n", "[1]\n"])
def test_a_foreign_file_is_refused_by_name_and_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.log").write_text(text)
    with pytest.raises(ValueError, match=r"other\.log, line 1: no decision log"):
        read(tmp_path / "other.log")


def test_a_full_disk_costs_the_log_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """/dev/full is a disk that is always full."""
    regulator = Regulator(Config(10))
    with caplog.at_level(logging.WARNING):
        log = DecisionLog("/dev/full", regulator.config)
        for _ in range(5):
            regulator.decide()
            log.write(regulator, lr=0.1)
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text
