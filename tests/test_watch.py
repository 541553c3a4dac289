"""Following a run in the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from adaptive_warmup import Config, Regulator
from adaptive_warmup.cli import main
from adaptive_warmup.history import DecisionLog, follow
from adaptive_warmup.watch import view
from tests.plant import Plant


def steps(log: DecisionLog, regulator: Regulator, plant: Plant, count: int) -> None:
    for step in range(count):
        factor = regulator.decision.factor
        regulator.observe(kl=plant.kl(step, factor), task_reward=0.01 * step)
        regulator.decide()
        log.write(regulator, lr=1e-3 * factor)


def test_it_follows_a_log_as_it_grows_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    source, path = tmp_path / "source.jsonl", tmp_path / "run.jsonl"
    regulator = Regulator(Config(50))
    with DecisionLog(source, regulator.config) as log:
        steps(log, regulator, Plant(bears=0.1), 5)
    head, *lines = source.read_text().splitlines(keepends=True)
    path.write_text(head)
    arriving = iter(["", *lines[:3], lines[3][:20], lines[3][20:], lines[4]])

    def wait() -> bool:
        text = next(arriving, None)
        with path.open("a") as file:
            file.write(text or "")
        return text is not None

    assert [len(run.steps) for run in follow(path, wait)] == [1, 2, 3, 4, 5]


def test_what_is_shown(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(50))
    with DecisionLog(path, regulator.config, arm="mine") as log:
        steps(log, regulator, Plant(bears=0.1), 30)
    console = Console(width=120, record=True, file=(tmp_path / "screen").open("w"))
    for run in follow(path, lambda: False):
        console.print(view(run))
    text = console.export_text()
    assert "mine, step 29" in text
    assert "at_ceiling, next at 0.1 of the schedule; bears 0.1" in text
    assert "0.01 (1 x target)" in text
    assert "rising to" in text
    assert "▁" in text
    assert "█" in text


def test_the_command_shows_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regulator = Regulator(Config(50))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        assert main(["watch", str(tmp_path / "run.jsonl"), "--once"]) == 0
        assert "no step yet" in capsys.readouterr().out
        steps(log, regulator, Plant(bears=0.1), 3)
    assert main(["watch", str(tmp_path / "run.jsonl"), "--once"]) == 0
    assert "step 2" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "absent.jsonl")]) == 2
