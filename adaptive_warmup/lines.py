"""Text, read line by line in bounded memory, the numbers in it, and a word about what is odd."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 1 << 24  # characters; a longer line is no line of a log
_PLACES = 3  # of one oddity that are named, the rest are counted
_KINDS = 50  # of oddities; a file that has more is no log at all, and must not fill the memory


class Notes:
    """What was odd about a file, each kind said once with its first places."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._latest: dict[str, str] = {}
        self._examples: dict[str, str] = {}

    def example(self, what: str, value: object, place: str) -> None:
        """Note one case of a value; the first of a kind is quoted."""
        self._examples.setdefault(what, f"{str(value)[:40]!r}")
        self.add(what, place)

    def add(self, what: str, place: str = "") -> None:
        """Note one case; again the same `what` at the same place is one case."""
        if what not in self._places and len(self._places) >= _KINDS:
            what = "more is odd than can be listed"
        places = self._places.setdefault(what, [])
        if place and self._latest.get(what) == place:
            return
        self._latest[what] = place
        self._counts[what] = self._counts.get(what, 0) + 1
        if place and len(places) < _PLACES:
            places.append(place)

    def sentences(self) -> list[str]:
        """One sentence for each kind."""
        return [self._sentence(what, places) for what, places in self._places.items()]

    def _sentence(self, what: str, places: list[str]) -> str:
        more = self._counts[what] - len(places)
        where = ", ".join(places) + (f" and {more} more" if places and more else "")
        said = f"{what}: {self._examples[what]}" if what in self._examples else what
        return f"{where}: {said}" if where else said


class Line(NamedTuple):
    """A line of text without its end; `whole` unless the file broke off in it."""

    number: int
    text: str
    whole: bool

    @property
    def place(self) -> str:
        """For messages."""
        return f"line {self.number}"


def lines(path: Path, notes: Notes) -> Iterator[Line]:
    """The lines of a text file, one in memory at a time."""
    with path.open("rb") as file, progress(path.stat().st_size) as advance:
        number = 0
        while raw := file.readline(LONGEST):
            advance(len(raw))
            if len(raw) == LONGEST and not raw.endswith(b"\n"):
                number += 1
                notes.add("longer than 16 MB, left out", f"line {number}")
                while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
                    advance(len(rest))
                continue
            for part in raw.splitlines(keepends=True):  # an old Mac ended lines with \r alone
                number += 1
                text = part.decode("utf-8", "replace").rstrip("\r\n")
                yield Line(number, text.removeprefix("\ufeff"), part.endswith((b"\r", b"\n")))


def number(value: object) -> float | None:
    """A float from a number or its text, NaN and Infinity included; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:  # a whole number too large for a float
        return math.inf


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar over `total` bytes on a terminal's stderr, once it has taken two seconds; nothing elsewhere."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda size: None
        return
    with tqdm(
        total=total, unit="B", unit_scale=True, delay=2.0, disable=None, leave=False, desc="reading", file=sys.stderr
    ) as bar:
        yield bar.update
