"""Reading a decision log: as a whole, while it grows, and through the controller again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptive_warmup import controller
from adaptive_warmup.controller import Config, Decision, State
from adaptive_warmup.history.parsing import Continued, Item, Parser, Start, continuation, items
from adaptive_warmup.lines import LONGEST, Line, Notes
from adaptive_warmup.signals import Signals

_CHUNK = 1 << 20
_MOST = 100_000  # steps in memory, about a kilobyte each


@dataclass(frozen=True)
class Run:
    """A log that was read.

    Attributes:
        config: the controller's settings.
        about: what the writer told of the run.
        steps: those that count, in their order, as dicts: step, lr, signals, next (the factor decided for the next
            step), phase, reasons, and where they apply factor (decided for this one; not after a gap), ceiling, ends
            (the step at which the warmup should finish), alarms, metrics.
        problem: what was odd about the file, if anything, with the lines; the rest is in `steps`.
        starts: the controller's state before a step, for the steps at which the run began, or went on.
        origin: the number of the warmup's first step; another than 0 in what is made of a log of another program.
    """

    config: Config
    about: dict[str, Any]
    steps: list[dict[str, Any]]
    problem: str | None = None
    starts: dict[int, State] = field(default_factory=dict)
    origin: int = 0

    def metric(self, name: str) -> list[float]:
        """One of the host's metrics over the steps; NaN where a step lacks it."""
        return [step.get("metrics", {}).get(name, float("nan")) for step in self.steps]

    def signal(self, name: str) -> list[float]:
        """One signal over the steps; NaN where it was not reported."""
        return [step["signals"].get(name, float("nan")) for step in self.steps]


def read(path: Path | str) -> Run:
    """Read a log, also while its run goes on or after it was killed, with the files that it is continued in.

    Of more than 100,000 steps one in 2, 4, 8 ... is kept, and the last one; `problem` says so. `items` has them all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the first line is no start of a decision log of this format.
    """
    made = _Making(Path(path))
    made.take_all(items(Path(path), made.notes))
    return made.run()


def follow(path: Path | str, wait: Callable[[], bool]) -> Iterator[Run]:
    """The run as it is now, and again whenever it has grown; calls `wait` in between, and ends where that says False.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    made = _Making(Path(path))
    growing = _Growing(Path(path), made.notes)
    grown = made.take_all(growing.items())  # what is no log is refused now, not when the first run is asked for

    def runs() -> Iterator[Run]:
        nonlocal grown
        while True:
            if grown:
                yield made.run()
            if not wait():
                return
            grown = made.take_all(growing.items())

    return runs()


def replay(run: Run) -> Iterator[Decision]:
    """The decisions that the controller takes on the run's signals: those in the log, if nothing is amiss."""
    state = controller.start(run.config)
    for step in run.steps:
        state = run.starts.get(step["step"], state)
        state, decision = controller.step(run.config, state, Signals(**step["signals"]))
        yield decision


class _Making:
    """A run in the making."""

    def __init__(self, path: Path) -> None:
        self.notes = Notes()
        self._path = path
        self._start: Start | None = None
        self._steps: dict[int, dict[str, Any]] = {}
        self._starts: dict[int, State] = {}
        self._sorted, self._every = True, 1

    def take_all(self, found: Iterable[Item]) -> int:
        """Take in what was found; how many steps that are."""
        return sum(self._take(item) for item in found)

    def _take(self, item: Item) -> bool:
        if isinstance(item, Start):
            self._begin(item)
            return False
        step, before = item.content["step"], next(reversed(self._steps), 0)
        known = self._steps.get(step)
        if "next" not in item.content:  # more metrics on it
            if known:
                known["metrics"] = known.get("metrics", {}) | item.content["metrics"]
            return known is not None
        if known:
            self.notes.add("the same step again: the later counts", item.place)
        elif step < before:
            self.notes.add("the steps go back: they are put in order", item.place)
            self._sorted = False
        elif before % self._every:
            del self._steps[before]  # which was kept as the last one only
        self._steps[step] = item.content
        if len(self._steps) > _MOST:
            self._every *= 2
            self._steps = {kept: content for kept, content in self._steps.items() if kept % self._every == 0}
            self._steps[step] = item.content
        return True

    def run(self) -> Run:
        """The run as it is now."""
        if self._start is None:
            raise ValueError(f"{self._path}, line 1: no decision log: the file is empty, the run has logged nothing.")
        if not self._sorted:
            self._steps, self._sorted = dict(sorted(self._steps.items())), True
        odd = self.notes.sentences()
        odd += [f"more than {_MOST:,} steps: one in {self._every} is kept, and the last"] if self._every > 1 else []
        problem = "\n".join(f"{self._path}, {sentence}" for sentence in odd) or None
        return Run(self._start.config, self._start.about, list(self._steps.values()), problem, dict(self._starts))

    def _begin(self, start: Start) -> None:
        self._start = self._start or start
        if lost := [step for step in self._steps if step >= start.step]:
            what = f"the run goes on at step {start.step}: steps {min(lost)} to {max(lost)} before it are superseded"
            self.notes.add(what, start.place)
        self._steps = {step: content for step, content in self._steps.items() if step < start.step}
        self._starts = {step: state for step, state in self._starts.items() if step < start.step}
        self._starts[start.step] = start.state


class _Growing:
    """A log of which more may come, in this file or in one that it is continued in."""

    def __init__(self, path: Path, notes: Notes) -> None:
        self._notes, self._parser = notes, Parser(path, notes)
        self._open(path)

    def items(self) -> Iterator[Item]:
        """What has come since the last time."""
        for line in self._lines():
            item = self._parser.parse(line)
            if isinstance(item, Continued):
                if path := continuation(self._path, item, self._notes):
                    self._parser.enter(path)
                    self._open(path)
                    yield from self.items()
                return
            if item:
                yield item

    def _open(self, path: Path) -> None:
        self._path, self._at, self._number, self._rest, self._file = path, 0, 0, b"", 0

    def _lines(self) -> Iterator[Line]:
        """The lines that are whole; of one that is being written, the beginning is kept for the next time."""
        path = self._path
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < self._at or status.st_ino != (self._file or status.st_ino):
                raise ValueError(f"{path} has been replaced by another one: start again to follow that.")
            self._file = status.st_ino  # 0 where the system has none
            file.seek(self._at)
            while chunk := file.read(_CHUNK):
                self._at += len(chunk)
                *whole, self._rest = (self._rest + chunk).split(b"\n")
                for raw in whole:
                    self._number += 1
                    yield Line(self._number, raw.decode("utf-8", "replace"), True)
                if len(self._rest) > LONGEST:
                    raise ValueError(f"{path}, line {self._number + 1}: longer than 16 MB, no decision log.")
