"""What is there already where a decision log is to be written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from adaptive_warmup.controller import Config
from adaptive_warmup.history.parsing import Continued, Parser, Start, Step, continuation
from adaptive_warmup.lines import LONGEST, Line, Notes

_TAIL = 1 << 16  # bytes at the end of a file that hold its last lines


class Existing(NamedTuple):
    """A log of the same run: the file in which it ends, whether its last line lacks its end, and the last step."""

    path: Path
    torn: bool
    last: int | None

    @classmethod
    def find(cls, path: Path, config: Config, about: dict[str, Any]) -> Existing | None:
        """The log at `path`, None where there is none yet; a first line that a kill has cut is taken out.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no log, or of another run.
        """
        if not path.is_file() or not path.stat().st_size:  # /dev/stdout is no file to go on in
            return None
        parser = Parser(path, Notes())
        start = _start(parser, path)
        if start is None:
            os.truncate(path, 0)
            return None
        if (start.config, start.about) != (config, about):
            mine, theirs = (_told(*run) for run in ((config, about), (start.config, start.about)))
            other = [f"{name} {theirs.get(name)!r}, here {mine.get(name)!r}" for name in {**theirs, **mine}
                     if theirs.get(name) != mine.get(name)]  # fmt: skip
            raise ValueError(
                f"{path} is the log of another run ({'; '.join(other)}): name another file for this one, or move that"
                " one away."
            )
        return _end(parser, path)


def _start(parser: Parser, path: Path) -> Start | None:
    """None where a kill has left no more than a part of it."""
    with path.open("rb") as file:
        raw = file.readline(LONGEST)
    line = Line(1, raw.decode("utf-8", "replace"), raw.endswith(b"\n") or len(raw) == LONGEST)
    try:
        start = parser.parse(line)
    except ValueError as error:
        raise ValueError(f"{error}: it is left as it is, name another file for the log.") from error
    assert start is None or isinstance(start, Start)
    return start


def _end(parser: Parser, path: Path) -> Existing:
    """Along the chain to the last file."""
    last: int | None = None
    while True:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL, 0))
            tail = file.read()
        following = None
        for text in tail.decode("utf-8", "replace").split("\n"):
            item = parser.parse(Line(0, text, True))
            last = item.content["step"] if isinstance(item, Step) else last
            following = continuation(path, item, Notes()) if isinstance(item, Continued) else following
        if following is None:
            return Existing(path, not tail.endswith(b"\n"), last)
        path = following


def _told(config: Config, about: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads(json.dumps(asdict(config))), **about}
