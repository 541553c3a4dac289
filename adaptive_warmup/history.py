"""The decision log: one JSON line a step, complete up to the last step whatever becomes of the run.

The first line tells what the run is; line t + 1 holds the signals of update t, the lr it used, and the decision that
was taken on them. Fed through the controller again, the signals give the same decisions bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from adaptive_warmup import controller
from adaptive_warmup.controller import Config, Decision
from adaptive_warmup.regulator import Regulator
from adaptive_warmup.signals import Signals

_log = logging.getLogger("adaptive_warmup")
_FORMAT = 1


class DecisionLog:
    """Writes a log, line by line, each one flushed. Use as a context manager, or `close()` it.

    A disk that is full or gone costs the log, never the run: one warning, and training goes on.

    Args:
        path: the file; its folder is made. An existing file is replaced.
        config: the controller's.
        about: whatever else tells one run from another (JSON values).
    """

    def __init__(self, path: Path | str, config: Config, **about: Any) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - kept open for the run
        self._broken = False
        self._line({"adaptive_warmup": _FORMAT, "config": asdict(config), "about": about})

    def write(self, regulator: Regulator, *, lr: float, **metrics: float) -> None:
        """Log the step on which `regulator` has just decided.

        Args:
            regulator: after its `decide`.
            lr: the lr that the step used.
            metrics: further numbers of the host's, by name.
        """
        signals, decision = regulator.signals or Signals(), regulator.decision
        said: dict[str, Any] = {"phase": decision.phase, "reasons": decision.reasons}
        said |= {"ceiling": decision.ceiling} if decision.ceiling is not None else {}
        said |= {"ends": decision.expected_end} if decision.phase == "warmup" and decision.expected_end else {}
        said |= {"alarms": decision.alarms} if decision.alarms else {}
        line = {"step": decision.step - 1, "lr": lr, "signals": _given(signals), "next": decision.factor, **said}
        self._line(line | ({"metrics": metrics} if metrics else {}))

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk says so here once more
            self._file.close()

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _line(self, content: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(content) + "\n")
            self._file.flush()
        except OSError as error:
            if not self._broken:
                _log.warning("the decision log %s cannot be written (%s); training goes on", self._file.name, error)
            self._broken = True


@dataclass(frozen=True)
class Run:
    """A log that was read.

    Attributes:
        config: the controller's settings.
        about: what the writer told of the run.
        steps: the lines as dicts: step, lr, signals, next (the factor decided for the next step), phase, reasons, and
            where they apply ceiling, ends (the step at which the warmup should finish), alarms, metrics.
        problem: what was wrong with the file, if anything; what came before it is in `steps`.
    """

    config: Config
    about: dict[str, Any]
    steps: list[dict[str, Any]]
    problem: str | None = None

    def metric(self, name: str) -> list[float]:
        """One of the host's metrics over the steps; NaN where a step lacks it."""
        return [step.get("metrics", {}).get(name, float("nan")) for step in self.steps]

    def signal(self, name: str) -> list[float]:
        """One signal over the steps; NaN where it was not reported."""
        return [step["signals"].get(name, float("nan")) for step in self.steps]


def read(path: Path | str) -> Run:
    """Read a log, also while its run goes on or after it was killed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the first line is no header of a decision log of this format.
    """
    with Path(path).open(encoding="utf-8") as file:
        head = _parsed(file.readline())
        if not head or head.get("adaptive_warmup") != _FORMAT:
            raise ValueError(
                f"{path}, line 1: no decision log of format {_FORMAT}; was it written by another program or version?"
            )
        steps: list[dict[str, Any]] = []
        problem = None
        for number, text in enumerate(file, start=2):
            step = _parsed(text)
            if step is None or "step" not in step:
                problem = f"{path}, line {number}: not a whole JSON line; the steps before it are used"
                break
            steps.append(step)
    return Run(Config(**head["config"]), head["about"], steps, problem)


def follow(path: Path | str, wait: Callable[[], bool]) -> Iterator[Run]:
    """The run as it is now, and again whenever it has grown; calls `wait` in between, and ends where that says False.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    run = replace(read(path), steps=[])
    with Path(path).open(encoding="utf-8") as file:
        file.readline()
        rest = ""
        while True:
            *lines, rest = (rest + file.read()).split("\n")  # what has no end yet is being written
            run.steps.extend(step for step in map(_parsed, lines) if step and "step" in step)
            if lines:
                yield run
            if not wait():
                return


def replay(run: Run) -> Iterator[Decision]:
    """The decisions that the controller takes on the run's signals: those in the log, if nothing is amiss."""
    state = controller.start(run.config)
    for step in run.steps:
        state, decision = controller.step(run.config, state, Signals(**step["signals"]))
        yield decision


def _given(signals: Signals) -> dict[str, Any]:
    """Only what was reported, or differs from the default."""
    pairs = [(f.name, getattr(signals, f.name), f.default) for f in fields(signals)]
    return {name: value for name, value, default in pairs if value != default}


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None
