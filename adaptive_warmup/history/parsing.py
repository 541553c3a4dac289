"""From lines of text to what they say: starts and steps, in the order of the file and of those it is continued in."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

from adaptive_warmup import controller
from adaptive_warmup.controller import Config, Phase, State
from adaptive_warmup.lines import Line, Notes, lines, number
from adaptive_warmup.signals import NAMES, is_source

FORMAT = 1
_SIGNALS = (*NAMES, "lr_scale", "kl_lr")
_PHASES: tuple[str, ...] = get_args(Phase)
_BEGINS = '{"adaptive_warmup":'  # the first line
_DAMAGED = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # of a line that lacks what it should have


@dataclass(frozen=True)
class Start:
    """The run begins, or goes on, before update `step`, from `state`; what is logged of later steps is superseded."""

    place: str
    step: int
    config: Config
    about: dict[str, Any]
    state: State


class Step(NamedTuple):
    """A step, as in `Run.steps`; or further metrics on one, without `next`."""

    place: str
    content: dict[str, Any]


class Continued(NamedTuple):
    """The log goes on in a file of this name."""

    name: str


Item: TypeAlias = "Start | Step"


class Parser:
    """Of one log, through all of its files. What another run left in them is passed over.

    Args:
        path: the file in which the log begins.
        notes: takes what is odd.
    """

    def __init__(self, path: Path, notes: Notes) -> None:
        self._notes = notes
        self._run: Start | None = None  # the first start
        self._foreign = False  # what stands here is not of this run
        self._alarms: dict[str, str] = {}  # of the line before
        self._decision = 0, 1.0  # the next step, and the factor that was decided for it
        self.enter(path)
        self._in = ""  # of a log in one file no place needs its name

    def enter(self, path: Path) -> None:
        """Go on in another file."""
        self._path, self._in = path, f"{path.name}, "

    def parse(self, line: Line) -> Start | Step | Continued | None:
        """What a line says; None where it says nothing of this run.

        Raises:
            ValueError: the first line of all is no start of a log of this format.
        """
        place, content = f"{self._in}{line.place}", _object(line.text)
        if self._run is None and content is None and not line.whole and _BEGINS.startswith(line.text[: len(_BEGINS)]):
            return None  # killed while it wrote the first line
        if self._run is None or (content and "adaptive_warmup" in content):
            return self._start(content, place)
        if content and isinstance(name := content.get("continued_in"), str):
            return Continued(Path(name).name)
        step = self._step(content, place) if content else None
        if step is None and line.text.strip():
            self._notes.add("not a whole JSON line of a decision log (was the run killed there?), left out", place)
        return Step(place, step) if step and not self._foreign else None

    def _start(self, content: dict[str, Any] | None, place: str) -> Start | None:
        self._alarms = {}
        try:
            start = _start(content or {}, place)
        except _DAMAGED as error:
            if self._run is None:
                raise ValueError(
                    f"{self._path}, {place}: no decision log of format {FORMAT}; is it of another program or version?"
                    " (adaptive-warmup replay reads those of others)"
                ) from error
            self._notes.add("a start that cannot be read, left out", place)
            return None
        self._run = self._run or start
        self._foreign = (start.config, start.about) != (self._run.config, self._run.about)
        self._decision = start.step, start.state.factor
        if self._foreign:
            self._notes.add("another run, of other settings, begins here: it is left out", place)
        return None if self._foreign else start

    def _step(self, content: dict[str, Any], place: str) -> dict[str, Any] | None:
        """A step with its numbers as numbers; None where it lacks what every step has."""
        try:
            step: dict[str, Any] = {"step": operator.index(content["step"])}
            metrics = {"metrics": _numbers(content["metrics"])} if "metrics" in content else {}
            if content.keys() == {"step", "metrics"}:
                return step | metrics
            step |= {"lr": float(content["lr"]), "signals": self._signals(content["signals"], place)}
            step |= self._decided(content) | metrics
        except _DAMAGED:
            return None
        number, factor = self._decision
        self._decision = step["step"] + 1, step["next"]
        return step | ({"factor": factor} if number == step["step"] else {})

    def _decided(self, content: dict[str, Any]) -> dict[str, Any]:
        if content["phase"] not in _PHASES or not 0.0 < float(content["next"]) <= 1.0:
            raise ValueError("no phase, or no factor")
        first, *more = map(str, content["reasons"])
        decided: dict[str, Any] = {"next": float(content["next"]), "phase": content["phase"], "reasons": [first, *more]}
        if "ceiling" in content or content["phase"] == "at_ceiling":
            decided["ceiling"] = float(content.get("ceiling", content["next"]))
        decided |= {"ends": int(content["ends"])} if "ends" in content else {}
        self._alarms = dict(self._told(alarm) for alarm in content.get("alarms", ()))
        return decided | ({"alarms": [list(alarm) for alarm in self._alarms.items()]} if self._alarms else {})

    def _told(self, alarm: Any) -> tuple[str, str]:
        """An alarm's name and sentence; the sentence is that of the line before where it is left out."""
        name, *sentence = [str(part) for part in alarm]
        return name, sentence[0] if sentence else self._alarms.get(name, "it goes on")

    def _signals(self, found: Mapping[str, Any], place: str) -> dict[str, Any]:
        signals: dict[str, Any] = {}
        for name, value in found.items():
            if name == "kl_source" and is_source(value):
                signals[name] = value
            elif name in _SIGNALS and (read := number(value)) is not None:
                signals[name] = read
            else:
                self._notes.add(f"signal {name[:40]} is {str(value)[:40]!r}, left out", place)
        return signals


def items(path: Path, notes: Notes) -> Iterator[Item]:
    """What a log says, one line in memory at a time, a progress bar where it takes long.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its first line is no start of a log of this format.
    """
    parser, file, seen = Parser(path, notes), path, {path}
    while file:
        following = None
        for line in lines(file, notes):
            item = parser.parse(line)
            if isinstance(item, Continued):
                following = continuation(file, item, notes)
            elif item:
                yield item
        if following is None or following in seen:
            return
        file = following
        seen.add(file)
        parser.enter(file)


def continuation(file: Path, continued: Continued, notes: Notes) -> Path | None:
    """The file in which the log goes on, if it is there."""
    path = file.with_name(continued.name)
    if path.is_file():
        return path
    notes.add(f"continued in {path}, which is not there; what comes before is used")
    return None


def _start(content: Mapping[str, Any], place: str) -> Start:
    if content["adaptive_warmup"] != FORMAT:
        raise ValueError("another format")
    config, state = Config(**content["config"]), content.get("state")
    begins = State.from_dict(state) if state else controller.start(config, operator.index(content.get("step", 0)))
    if begins.step < 0:
        raise ValueError("a step below 0")
    return Start(place, begins.step, config, dict(content["about"]), begins)


def _object(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or a whole number of thousands of digits
        return None
    return content if isinstance(content, dict) else None


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, text in found.items() if (value := number(text)) is not None}
