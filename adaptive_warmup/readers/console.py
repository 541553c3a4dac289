"""verl's console logger, and so Search-R1's: `step:12 - actor/ppo_kl:0.001 - critic/score/mean:0.3 ...`

The line may have anything before it (timestamps, Ray's `(main_task pid=123)`, colours). Up to 2025 verl printed three
decimals; later versions print whole numbers, some wrapped as `np.float64(...)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from adaptive_warmup.lines import Line, Notes, lines
from adaptive_warmup.readers.rows import Row

NAME = "verl's console log"
_STEP = re.compile(r"(?:^|[\s)\]m])step:(\d+) - ")
_PAIR = re.compile(r"([^\s:]+):(?:np\.\w+\()?([-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf(?:inity)?))", re.IGNORECASE)


def recognises(path: Path, head: list[str]) -> bool:
    """Whether a step line is among the first lines; it may as well come much later."""
    return any(_STEP.search(text) for text in head)


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each step line; other lines are the program's talk and none of ours."""
    for line in lines(path, notes):
        if "step:" in line.text and (found := _STEP.search(line.text)):
            yield Row(found[1], "step", _values(line, found.end(), notes), line.place)


def _values(line: Line, start: int, notes: Notes) -> dict[str, object]:
    parts = line.text[start:].split(" - ")
    if not line.whole:
        notes.add("the file breaks off here; the last value is left out", line.place)
        parts = parts[:-1]
    return {pair[1]: pair[2] for part in parts if (pair := _PAIR.match(part))}
