"""One JSON object a line: verl's file logger, W&B's history as it is exported, and plain logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptive_warmup.lines import Notes, lines
from adaptive_warmup.readers.rows import Row, row

NAME = "JSON lines"


def recognises(path: Path, head: list[str]) -> bool:
    """Whether one of the first lines is an object; the very first may be damaged."""
    return any(content is not None and "log_history" not in content for content in map(_parsed, head[:5]))


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each line."""
    for line in lines(path, notes):
        content = _parsed(line.text)
        if content is not None:
            yield row(content, line.place, line.number)
        elif line.text.strip():
            notes.add("no whole JSON object, left out" if line.whole else "the file breaks off here", line.place)


def _parsed(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
