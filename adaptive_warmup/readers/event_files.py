"""TensorBoard's event files: one, or the folder of one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptive_warmup.lines import Notes, progress
from adaptive_warmup.readers.rows import Row

NAME = "TensorBoard event files"
_MARK = "tfevents"


def recognises(path: Path, head: list[str]) -> bool:
    """By the name of the file; a folder, by what is in it."""
    return bool(files(path)) if path.is_dir() else _MARK in path.name


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each event, in the order of the files: of a run resumed in a second file, the second counts.

    A file that breaks off gives what is whole, as in TensorBoard.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: a folder of several runs.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("reading event files needs tensorboard: pip install tensorboard.")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = files(path)
    with progress(sum(file.stat().st_size for file in found)) as advance:
        for file in found:
            for event in EventFileLoader(str(file)).Load():
                values = {value.tag: scalar for value in event.summary.value if (scalar := _scalar(value)) is not None}
                if values:
                    yield Row(event.step, "step", values, f"{file.name}, step {event.step}")
            advance(file.stat().st_size)


def files(path: Path) -> list[Path]:
    """The event files of one run: those in the folder itself, or in the one folder below it that has any."""
    if path.is_file():
        return [path]
    here = sorted(path.glob(f"*{_MARK}*"))
    below = sorted(path.rglob(f"*{_MARK}*"))
    folders = sorted({str(file.parent.relative_to(path)) for file in below})
    if not here and len(folders) > 1:
        raise ValueError(f"{path} holds several runs ({', '.join(folders[:5])}): say which one.")
    return here or below


def _scalar(value: Any) -> float | None:
    """The number of a scalar summary; None for text, images and histograms."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.metadata.plugin_data.plugin_name != "scalars":
        return None
    array = make_ndarray(value.tensor)
    return float(array.item()) if array.size == 1 else None
