"""W&B's own file of a run, `run-*.wandb`, as it lies in `wandb/offline-run-*`: no package of theirs is needed.

The file is a header of 7 bytes, then LevelDB's log format: blocks of 32 KiB holding pieces (checksum, length, type)
of records, each record a protobuf message. (The wandb package read it with `sdk.internal.datastore` until that was
taken out; the format stayed.)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from adaptive_warmup.lines import Notes, progress
from adaptive_warmup.readers.rows import Row, row

NAME = "a W&B run file"
_HEADER = b":W&B"
_BLOCK = 32768
_PIECE = struct.Struct("<IHB")  # checksum, length, type
_FULL, _LAST = 1, 4  # the types of piece that end a record
_HISTORY, _ITEM, _KEY, _NESTED_KEY, _VALUE = 2, 1, 1, 2, 16  # field numbers of wandb_internal.proto


def recognises(path: Path, head: list[str]) -> bool:
    """By the name of the file; a folder, by what is in it."""
    return bool(files(path)) if path.is_dir() else path.suffix == ".wandb"


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each history record.

    Raises:
        ValueError: several runs in the folder, or a file that does not begin as one of W&B's.
    """
    (file,) = files(path)
    with file.open("rb") as stream, progress(file.stat().st_size) as advance:
        if stream.read(7)[:4] != _HEADER:
            raise ValueError(f"{file} does not begin as a W&B run file: was it cut, or written by another program?")
        for index, record in enumerate(_records(stream, notes), start=1):
            advance(len(record) + _PIECE.size)
            for history in (body for field, body in _fields(record) if field == _HISTORY):
                yield row(_history(history), f"record {index}", index)


def files(path: Path) -> list[Path]:
    """The one run file of a run's folder, or of a `wandb` folder that holds one run."""
    if path.is_file():
        return [path]
    found = sorted({file.resolve() for pattern in ("run-*.wandb", "*run-*/run-*.wandb") for file in path.glob(pattern)})
    if len(found) > 1:
        names = ", ".join(os.path.relpath(file, path.resolve()) for file in found[:5])
        raise ValueError(f"{path} holds several runs ({names}): say which one.")
    return found


def _records(stream: BinaryIO, notes: Notes) -> Iterator[bytes]:
    """The records, put together from their pieces; the last may be missing its end."""
    whole = b""
    while True:
        left = _BLOCK - stream.tell() % _BLOCK
        if left < _PIECE.size:
            stream.seek(left, 1)  # what is left of a block is padding
        head = stream.read(_PIECE.size)
        if len(head) < _PIECE.size:
            break
        _, length, kind = _PIECE.unpack(head)
        piece = stream.read(length)
        if len(piece) < length:
            break
        whole += piece
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""
    if whole or head:
        notes.add("the file breaks off in a record; what comes before is used")


def _history(message: bytes) -> dict[str, object]:
    """The values of a history record by key; those of a nested key are joined by slashes."""
    values: dict[str, object] = {}
    for item in (body for field, body in _fields(message) if field == _ITEM):
        parts = [(field, body.decode("utf-8", "replace")) for field, body in _fields(item)]
        key = "/".join(text for field, text in parts if field in (_KEY, _NESTED_KEY))
        text = next((text for field, text in parts if field == _VALUE), "null")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that hold bytes, with their numbers; numbers are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind, size = tag & 7, 0
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            size, position = _varint(message, position)
            yield tag >> 3, message[position : position + size]
        else:
            size = 8 if kind == 1 else 4
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            break
    return value, position
