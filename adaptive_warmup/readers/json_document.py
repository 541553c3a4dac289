"""One JSON document: `trainer_state.json` of transformers (its `log_history`), or an array of objects.

Read object by object, so that a document of any size, or one that breaks off, gives what is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from adaptive_warmup.lines import Notes, progress
from adaptive_warmup.readers.rows import Row, row

NAME = "a JSON document (trainer_state.json)"
_CHUNK = 1 << 16
_LARGEST = 1 << 24  # characters of one object; beyond that the document is damaged
_ARRAY = re.compile(r'"log_history"\s*:\s*\[')
_BARE = re.compile(r"\s*\[")
_BETWEEN = re.compile(r"[\s,]+")


def recognises(path: Path, head: list[str]) -> bool:
    """Whether it begins like an array of objects, or is called what transformers calls it, or has a log_history."""
    text = "\n".join(head).lstrip()
    if not text:  # on one line, and that is longer than is read at once
        return path.is_file() and path.suffix == ".json"
    return text[:1] in ("{", "[") and (path.suffix == ".json" or text[0] == "[" or "log_history" in text)


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each object of the array."""
    with path.open(encoding="utf-8-sig", errors="replace") as file, progress(path.stat().st_size) as advance:
        window = _Window(file, advance)
        if not window.to_array():
            return
        for number, (line, content) in enumerate(window.entries(notes), start=1):
            if isinstance(content, dict):
                yield row(content, f"line {line}", number)
            else:
                notes.add("an entry is no object, left out", f"line {line}")


class _Window:
    """A piece of the text in memory, moved along the file. `at` is where we are in it, on line `line`."""

    def __init__(self, file: TextIO, advance: Any) -> None:
        self._file, self._advance = file, advance
        self.text, self.at, self.line = file.read(_CHUNK), 0, 1

    def go(self, to: int) -> None:
        """Move within the piece."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def more(self) -> bool:
        """Drop what lies behind, read on; False at the end of the file.

        As much again as is left, so that an entry which is tried anew each time is read a few times, not hundreds.
        """
        chunk = self._file.read(max(_CHUNK, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + chunk, 0
        self._advance(len(chunk))
        return bool(chunk)

    def to_array(self) -> bool:
        """Go to the first entry of the array; False if there is none."""
        if bare := _BARE.match(self.text):
            self.go(bare.end())
            return True
        while not (found := _ARRAY.search(self.text)):
            self.go(max(len(self.text) - 64, 0))  # the name may lie across the border of two chunks
            if not self.more():
                return False
        self.go(found.end())
        return True

    def entries(self, notes: Notes) -> Iterator[tuple[int, Any]]:
        """The array's entries, each with the line it begins on."""
        decoder = json.JSONDecoder()
        while True:
            if between := _BETWEEN.match(self.text, self.at):
                self.go(between.end())
            if self.text[self.at : self.at + 1] == "]":
                return
            try:
                content, end = decoder.raw_decode(self.text, self.at)
            except ValueError:
                if len(self.text) - self.at > _LARGEST or not self.more():
                    notes.add("no whole JSON from here on; what comes before is used", f"line {self.line}")
                    return
                continue
            yield self.line, content
            self.go(end)
