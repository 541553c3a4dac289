"""A CSV or TSV table with a header: W&B's export of a chart or a history, or anyone's own."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from adaptive_warmup.lines import Line, Notes, lines, number
from adaptive_warmup.quoting import plural
from adaptive_warmup.readers.rows import Row, row

NAME = "a table"
_DELIMITERS = ",\t;"


def recognises(path: Path, head: list[str]) -> bool:
    """Whether it is called so, or a header of names stands above a line of as many values."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return True
    try:
        names, values = (next(csv.reader([text], delimiter=_delimiter(head[0])), []) for text in head[:2])
    except (ValueError, csv.Error):  # fewer than two lines, or no cells
        return False
    numbers = [value for value in values if number(value) is not None]
    return 2 <= len(names) == len(values) and bool(numbers) and all(number(name) is None for name in names)


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each line below the header.

    Raises:
        ValueError: the first line is no header.
    """
    texts = lines(path, notes)
    first = next((line.text for line in texts), "")
    delimiter = _delimiter(first)
    try:
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error as error:
        raise ValueError(f"{path}: line 1 is no header of a table ({error}).") from error
    table = csv.reader(_whole(texts, delimiter, notes), delimiter=delimiter, strict=True)
    while True:
        begin = table.line_num + 2
        try:
            cells = next(table, None)
        except csv.Error as error:
            notes.add(f"no table from here to line {table.line_num + 1} ({error}), left out", f"line {begin}")
            continue
        if cells is None:
            return
        place = f"line {table.line_num + 1}"
        if cells and len(cells) != len(names):
            notes.add(f"the header names {plural(len(names), 'column')}, the line has more or fewer; left out", place)
        elif cells and cells != names:
            yield row(dict(zip(names, cells, strict=True)), place, table.line_num)


def _whole(texts: Iterator[Line], delimiter: str, notes: Notes) -> Iterator[str]:
    """The lines; a last number that breaks off would be another number."""
    for line in texts:
        if line.whole:
            yield line.text
        else:
            notes.add("the file breaks off here; the last value is left out", line.place)
            yield "".join(line.text.rpartition(delimiter)[:2])


def _delimiter(header: str) -> str:
    """A bar only where there is nothing else: it is in names, too."""
    return max(_DELIMITERS, key=header.count) if any(sign in header for sign in _DELIMITERS) else "|"
