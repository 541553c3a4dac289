"""Following a run in the terminal."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from adaptive_warmup import Config, Regulator
from adaptive_warmup.cli import main
from adaptive_warmup.history import DecisionLog, follow, reading
from adaptive_warmup.watch import view
from tests.plant import Plant, steady


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


def screen(path: Path, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for run in follow(path, lambda: False):
        console.print(view(run, width))
    return console.export_text()


def test_what_is_shown(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(steady(50))
    with DecisionLog(path, regulator.config, arm="mine") as log:
        steps(log, regulator, Plant(bears=0.1), 30)
    text = screen(path, 120)
    assert "mine, step 29" in text
    assert "at_ceiling: held below the peak by what the run bears; next at 0.1 of the schedule" in text
    assert "no end of the warmup in sight" in text
    assert re.search(r"Learning rate +1\.0e-4 +nominal 6\.0e-4, ceiling 1\.0e-4 ", text)  # 30 of 50 steps, of 1e-3
    assert re.search(r"Policy KL +0\.01 +target 0\.01 ", text)
    assert "rising to" in text
    assert "▁" in text
    assert "█" in text


def test_of_a_log_too_long_to_keep_whole_nominal_and_ceiling_are_shown_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for 2,000 steps one in 4 is kept, none beside the one before it; the last 1,000 are looked at."""
    monkeypatch.setattr(reading, "_MOST", 2000)
    path, regulator = tmp_path / "run.jsonl", Regulator(steady(10_000))
    with DecisionLog(path, regulator.config) as log:
        steps(log, regulator, Plant(bears=0.1), 6000)
    assert re.search(r"Learning rate +1\.0e-4 +nominal 6\.0e-4, ceiling 1\.0e-4 ", screen(path, 120))


def test_alarms_are_shown_with_their_onset_and_a_kl_on_the_scale_of_its_source(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(40))
    with DecisionLog(path, regulator.config) as log:
        for step in range(20):
            regulator.observe(kl=0.0, kl_source="in_loop", kl_reward=0.5 + 0.01 * (step % 2), loss=1.0)
            regulator.decide(lr_scale=0.5)
            log.write(regulator, lr=1e-3)
    text = screen(path, 100)
    assert "kl_gaming since step 8: the KL reward pays the policy (+0.5 now" in text
    assert re.search(r"KL reward +0\.51 +zero 0", text)
    assert screen(path, 100).count("Policy KL") == 0  # zero on a log axis: nothing to draw


def test_the_warmup_s_end_is_told_before_and_after_it(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(10))
    with DecisionLog(path, regulator.config) as log:
        for steps, words in ((3, "the warmup should end at step 9"), (9, "the warmup ended at step 9")):
            for _ in range(steps):
                factor = regulator.decision.factor
                regulator.decide()
                log.write(regulator, lr=factor)
            assert words in " ".join(screen(path, 200).split())


@pytest.mark.parametrize("width", [40, 60, 80])
def test_it_fits_the_terminal(tmp_path: Path, width: int) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(50))
    with DecisionLog(path, regulator.config, arm="mine") as log:
        steps(log, regulator, Plant(bears=0.1), 30)
    text = screen(path, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing is cut off
    assert "KL" in text


def test_of_a_terminal_that_has_ascii_only(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(50))
    with DecisionLog(path, regulator.config) as log:
        steps(log, regulator, Plant(bears=0.1), 30)
    (run,) = follow(path, lambda: False)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="cp1252"), width=80)
    console.print(view(run, 80, plain=True))  # it would be a UnicodeEncodeError
    console.file.seek(0)
    assert re.search(r"KL .* #*\S+", console.file.read())


def test_before_anything_can_be_drawn(tmp_path: Path) -> None:
    """At lr 0, with the loss alone."""
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(50))
    with DecisionLog(path, regulator.config) as log:
        regulator.observe(loss=1.0)
        regulator.decide()
        log.write(regulator, lr=0.0)
    assert "step 0" in screen(path, 80)


def test_of_another_log_in_its_place_nothing_is_taken_for_the_first_ones(tmp_path: Path) -> None:
    path, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    for name, count in ((path, 3), (other, 9)):
        with DecisionLog(name, Config(50)) as log:
            steps(log, Regulator(Config(50)), Plant(bears=0.1), count)
    states = follow(path, lambda: True)
    assert len(next(states).steps) == 3
    other.replace(path)
    with pytest.raises(ValueError, match="has been replaced by another one: start again"):
        next(states)


def test_into_a_pipe_each_state_goes_below_the_last(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(50))
    with DecisionLog(path, regulator.config) as log:
        steps(log, regulator, Plant(bears=0.1), 3)
        command = [sys.executable, "-m", "adaptive_warmup", "watch", "--every", "0.05", str(path)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "ascii", "COLUMNS": "76"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout
            said = ""
            for line in process.stdout:
                said += line
                if "step 2" in line:
                    steps(log, regulator, Plant(bears=0.1), 1)
                if "step 3" in line:
                    break
            process.kill()
    assert "no step yet" in said


def test_of_a_folder_it_says_which_log_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").touch()
    assert main(["watch", str(tmp_path)]) == 2
    assert f"is a folder: name a decision log, such as {tmp_path / 'a.jsonl'}." in capsys.readouterr().err


def test_the_command_shows_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regulator = Regulator(Config(50))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        assert main(["watch", str(tmp_path / "run.jsonl"), "--once"]) == 0
        assert "no step yet" in capsys.readouterr().out
        steps(log, regulator, Plant(bears=0.1), 3)
    assert main(["watch", str(tmp_path / "run.jsonl"), "--once"]) == 0
    assert " run, step 2 " in capsys.readouterr().out  # named after its file, as in a report
    assert main(["watch", str(tmp_path / "absent.jsonl")]) == 2
