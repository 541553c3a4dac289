"""Runs of the past, as people have them: one file for each format, with the same verbs, and `keys.py` on what they say.

A format has a `NAME`, `recognises(path, head)`, given the first lines of a file (none of a folder), and
`rows(path, notes)`. To add one, write it and enter it in `FORMATS`, the surest mark first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from adaptive_warmup.lines import Notes, lines
from adaptive_warmup.readers import console, decision_log, event_files, json_document, json_lines, table, wandb_run
from adaptive_warmup.readers.collect import Collector
from adaptive_warmup.readers.keys import FACTOR, SB3
from adaptive_warmup.readers.past import Column, Past, Taken
from adaptive_warmup.readers.rows import Row

__all__ = ["FACTOR", "FORMATS", "SB3", "Column", "Found", "Past", "Taken", "read"]


class Format(Protocol):
    """What a file of this package offers."""

    NAME: str

    def recognises(self, path: Path, head: list[str]) -> bool:
        """Whether the file, or folder, is of this format."""
        ...

    def rows(self, path: Path, notes: Notes) -> Iterator[Row]:
        """Its rows, in the order of the file."""
        ...


# What a file begins with that is no text of ours, and what to do.
_OTHERWISE = {
    b"\x1f\x8b": ("compressed", "gunzip it"),
    b"\x28\xb5\x2f\xfd": ("compressed", "unzstd it"),
    b"PK\x03\x04": ("an archive", "unzip it"),
    b"\xff\xfe": ("in UTF-16", "convert it to UTF-8"),
    b"\xfe\xff": ("in UTF-16", "convert it to UTF-8"),
}
FORMATS: tuple[Format, ...] = (event_files, wandb_run, decision_log, json_lines, json_document, console, table)


class Found(NamedTuple):
    """A run that was read.

    Attributes:
        path: the file, or folder.
        format: its name.
        past: the run.
        notes: what was odd, as sentences.
    """

    path: Path
    format: Format
    past: Past
    notes: list[str]


def read(path: Path, mapping: Mapping[str, str] | None = None) -> Found:
    """Find the format and the signals of a run.

    Args:
        path: a log, or the folder of one run: TensorBoard's, W&B's, or a Trainer's with `trainer_state.json` in it.
        mapping: the signals of further keys (`lr`, a name of `Signals`, or `kl:` and a kl_source).

    Raises:
        FileNotFoundError: nothing is there.
        ImportError: the format needs a package that is not installed.
        TypeError, ValueError: an unknown signal in `mapping`, or a key that is not there; a pipe; something compressed;
            no format that we know; no step; no key that is known.
    """
    path = _inside(path)
    notes = Notes()
    collector = Collector(mapping or {}, notes)
    chosen = _format(path)
    seen = 0
    for row in chosen.rows(path, notes):
        seen += 1
        if not collector.add(row):
            break
    if missing := set(mapping or {}) - collector.known():
        raise ValueError(f"{path}: {_unmapped(sorted(missing), collector.names())}")
    past = collector.past()
    if past is None:
        raise ValueError(f"{path}: {_nothing(chosen, seen, collector)}{_also(notes)}")
    return Found(path, chosen, past, notes.sentences())


def _inside(path: Path) -> Path:
    """Of a Trainer's folder, the state it saved at the end; else event files or a W&B run; else its last checkpoint."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if not path.is_dir():
        if not path.is_file():  # it is opened more than once
            raise ValueError(f"{path} is a pipe, or a device: write it to a file first.")
        return path
    state = path / "trainer_state.json"
    found = path.glob("checkpoint-*/trainer_state.json")
    states = [state for state in found if state.parent.name.rpartition("-")[2].isdigit()]
    if state.exists() or _is_logged(path, certain=not states):
        return state if state.exists() else path
    if not states:
        raise ValueError(f"{path} holds no event files, no W&B run and no trainer_state.json: say which file to read.")
    return max(states, key=lambda state: int(state.parent.name.rpartition("-")[2]))


def _is_logged(folder: Path, certain: bool) -> bool:
    """Whether event files, or W&B's, of one run are in it; of several, which are not told apart, only if `certain`."""
    try:
        return event_files.recognises(folder, []) or wandb_run.recognises(folder, [])
    except ValueError:
        if certain:
            raise
        return False


def _format(path: Path) -> Format:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4)
        if not start:
            raise ValueError(f"{path} is empty: the run has logged nothing.")
        for mark, (what, remedy) in _OTHERWISE.items():
            if start.startswith(mark):
                raise ValueError(f"{path} is {what}: {remedy} first.")
    head = [] if path.is_dir() else [line.text for line in islice(lines(path, Notes()), 20)]
    return next((one for one in FORMATS if one.recognises(path, head)), console)


def _unmapped(keys: list[str], names: list[str]) -> str:
    near = difflib.get_close_matches(keys[0], names, cutoff=0.5) or names[:20]
    return f"--map {keys[0]}=...: there is no such key. There are {', '.join(near) or 'none at all'}."


def _nothing(chosen: Format, seen: int, collector: Collector) -> str:
    names = collector.names()
    if not seen and chosen is console:
        return (
            "no format that is known: no decision log, trainer_state.json, event file, W&B run, JSON lines, CSV, nor a"
            " console log with lines like 'step:12 - actor/ppo_kl:0.001 - ...'."
        )
    if not seen or not names:
        return f"read as {chosen.NAME}, it holds no step: has the run logged anything?"
    if silent := collector.silent():
        return f"known, but without a number (with a point, not a comma), are {', '.join(silent[:20])}."
    listed = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    if chosen is decision_log:
        return "it holds no signal: nobody has reported one to that run."
    return f"none of its keys is a known signal: {listed}. Say which is what: --map 'KEY=SIGNAL'."


def _also(notes: Notes) -> str:
    return "".join(f" ({sentence})" for sentence in notes.sentences())
