"""Writing a decision log: each step one line and one write, so that a kill costs at most the line being written."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from adaptive_warmup import __version__, controller
from adaptive_warmup.controller import Config, State
from adaptive_warmup.history.appending import Appended
from adaptive_warmup.history.existing import Existing
from adaptive_warmup.history.parsing import FORMAT
from adaptive_warmup.quoting import quoted
from adaptive_warmup.regulator import Regulator
from adaptive_warmup.signals import Signals

_log = logging.getLogger("adaptive_warmup")
_IN_FULL = ("kl", "kl_lr", "task_reward", "kl_reward", "grad_norm", "lr_scale")  # decisions hang on the last bit
_LARGE = 1e99  # from here on rounding could carry a value past what the alarms take for finite


class DecisionLog:
    """Writes the log of one run, and goes on in it where the run resumes. `AdaptiveWarmup(..., log=...)` takes one.

    An existing log of the same run (the same `config` and `about`) is never replaced: what comes is appended, and steps
    that are done again count as they were done last. Of several processes the first one writes. A disk that is full,
    read-only or gone costs the log, never the run: one warning, and training goes on. A file that others have written
    into, cut short or taken away: one warning, and a new start. A copy of this, by `copy` or `pickle`, goes on in the
    file as a run does that resumes.

    Args:
        path: the file; its folder is made. Relative to where the process is now, wherever it goes; `~` is the home.
        config: the controller's, to begin the file at once; else it is begun with the first controller it is given.
        max_bytes: where the file has grown beyond that, the log goes on in `PATH.2`, `PATH.3` ...; None: never.
        about: whatever else tells one run from another (JSON values).

    Raises:
        TypeError: `path` is none; `about` holds what JSON does not.
        ValueError: `path` is a folder, or the log of another run, or no log at all; `max_bytes` is not positive.
    """

    def __init__(
        self, path: Path | str, config: Config | None = None, *, max_bytes: int | None = None, **about: Any
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r} must be positive, such as 100_000_000; None for no limit.")
        try:
            self._first = Path(os.path.expanduser(path)).absolute()
        except TypeError as error:
            raise TypeError(f"log={quoted(path)}: give a path, such as 'run.jsonl', or a DecisionLog.") from error
        self._file = Appended(self._first)
        self._about, self._max_bytes = json.loads(json.dumps(about)), max_bytes
        self._config: Config | None = None
        self._warned = self._shared = False  # the disk was complained of; that others write here, too
        self._after: State | None = None  # that the next step follows on, if there is to be no other start
        self._last: int | None = None  # step in the file
        self._alarms: list[str] = []  # of the step before
        if config is not None:
            self.open(config)

    @classmethod
    def of(cls, log: DecisionLog | Path | str, **about: Any) -> DecisionLog:
        """A log as it is; of a path, the log there, `about` a run."""
        return log if isinstance(log, DecisionLog) else cls(log, **about)

    def open(self, config: Config) -> None:
        """Begin the file; where there is one, make sure that it is of this run.

        Raises:
            ValueError: as the class.
        """
        self.close()
        self._config = config
        try:
            if self._first.is_dir():
                raise ValueError(f"{self._first} is a folder: name a file in it, such as {self._first / 'run.jsonl'}.")
            if not _first_process():
                return
            found = Existing.find(self._first, config, self._about)
        except OSError as error:
            self._complain(error)
            return
        if found:
            self._file, self._last = Appended(found.path, found.torn), found.last
        elif self._append(self._start(start := controller.start(config))):
            self._after = start

    def write(self, regulator: Regulator, *, lr: float, **metrics: float) -> None:
        """Log the step on which `regulator` has just decided.

        Args:
            regulator: after its `decide`.
            lr: the lr that the step used.
            metrics: further numbers of the host's, by name.

        Raises:
            ValueError: with the first step, as the class.
        """
        if self._config is None:
            self.open(regulator.config)
        if not _first_process():
            return
        if self._file.changed:
            self._part_from_others()
        if self._after is not regulator.before and self._after != regulator.before and not self._go_on(regulator):
            return
        step = regulator.decision.step - 1
        line = {"step": step, "lr": _short(lr, 7), "signals": _given(regulator.signals or Signals())}
        line |= self._decided(regulator) | _metrics(metrics)
        self._after = regulator.state if self._append(line) else None
        self._last, self._alarms = step, [alarm.kind for alarm in regulator.decision.alarms]
        if self._max_bytes and self._file.size >= self._max_bytes:
            self._rotate(regulator.state)

    def add(self, **metrics: float) -> None:
        """Log further numbers, by name, on the step that was logged last, such as an evaluation after it."""
        if self._last is not None and _first_process():
            self._append({"step": self._last, **_metrics(metrics)})

    def close(self) -> None:
        """Close the file; the next step opens it again."""
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), max_bytes=self._max_bytes, **self._about), (self._first,)

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _part_from_others(self) -> None:
        """Close the file, and have the next step begin with a start, which holds whatever stands before it."""
        if not self._shared:
            _log.warning("others have changed %s: a new start is made in it; name a file for each run", self._file.path)
        self._shared, self._after = True, None
        self.close()

    def _go_on(self, regulator: Regulator) -> bool:
        """The step follows on no line of ours: the run begins or resumes here, or steps could not be written."""
        at = regulator.before.step
        if self._last is not None and at <= self._last:
            words = "%s: the run goes on at step %d; steps %d to %d, logged before, are superseded (their lines stay)"
            _log.warning(words, self._file.path, at, at, self._last)
        self._alarms = []
        return self._append(self._start(regulator.before))

    def _start(self, state: State) -> dict[str, Any]:
        config = self._config
        assert config is not None
        torch = sys.modules.get("torch")  # never imported for this
        versions = {"adaptive_warmup": __version__, "python": platform.python_version()}
        versions |= {"torch": str(torch.__version__)} if torch else {}
        line = {"adaptive_warmup": FORMAT, "step": state.step, "versions": versions, "host": platform.node()}
        line |= {"config": asdict(config), "about": self._about}
        return line | ({"state": state.to_dict()} if state != controller.start(config) else {})

    def _decided(self, regulator: Regulator) -> dict[str, Any]:
        decision = regulator.decision
        line: dict[str, Any] = {"next": decision.factor, "phase": decision.phase, "reasons": decision.reasons}
        at_ceiling = decision.phase == "at_ceiling" and decision.ceiling == decision.factor
        if decision.ceiling is not None and not at_ceiling:
            line["ceiling"] = _short(decision.ceiling, 3)
        if decision.phase == "warmup" and decision.expected_end:
            line["ends"] = decision.expected_end
        alarms = [alarm[: 1 if alarm.kind in self._alarms else 2] for alarm in decision.alarms]
        return line | ({"alarms": alarms} if alarms else {})

    def _rotate(self, state: State) -> None:
        """The next file is there before this one points to it."""
        old, number = self._file, 2
        while (new := self._first.with_name(f"{self._first.name}.{number}")).exists():
            number += 1
        self._file = Appended(new)
        begun = self._append(self._start(state) | {"continues": old.path.name})
        self._file, following = old, self._file
        if begun and self._append({"continued_in": new.name}):
            self._file, self._alarms, following = following, [], old
        following.close()

    def _append(self, content: Mapping[str, Any]) -> bool:
        """Whether the line is in the file."""
        try:
            self._file.append(json.dumps(content, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._warned:
            _log.warning("the decision log %s cannot be written (%s); training goes on", self._file.path, error)
        self._warned = True


def _first_process() -> bool:
    """Whether we are the one that writes. Whoever uses torch.distributed has imported it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is None or not (
        distributed.is_available() and distributed.is_initialized() and distributed.get_rank()
    )


def _given(signals: Signals) -> dict[str, Any]:
    """Only what was reported, or differs from the default."""
    return {
        name: value if name in _IN_FULL or isinstance(value, str) or not abs(value) < _LARGE else _short(value, 4)
        for name, value in signals._asdict().items()
        if value != Signals._field_defaults[name]
    }


def _metrics(metrics: Mapping[str, float]) -> dict[str, Any]:
    return {"metrics": {name: float(value) for name, value in metrics.items()}} if metrics else {}


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
