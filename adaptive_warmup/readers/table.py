"""A CSV or TSV table with a header: W&B's export of a chart or a history, or anyone's own."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from adaptive_warmup.lines import Notes, lines, number
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
    """One row for each line below the header."""
    texts = (line.text for line in lines(path, notes))
    first = next(texts, "")
    names = next(csv.reader([first], delimiter=_delimiter(first)), [])
    table = csv.reader(texts, delimiter=_delimiter(first))
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            notes.add(f"no table line ({error}), left out", f"line {table.line_num + 1}")
            continue
        if cells is None:
            return
        place = f"line {table.line_num + 1}"
        if cells and len(cells) != len(names):
            notes.add(f"the header names {len(names)} columns, the line has more or fewer; left out", place)
        elif cells and cells != names:
            yield row(dict(zip(names, cells, strict=True)), place, table.line_num)


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)
