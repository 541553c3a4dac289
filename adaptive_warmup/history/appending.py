"""A file that lines are appended to, each in one write, and that others may change in the meantime."""

from __future__ import annotations

import errno
from contextlib import suppress
from io import FileIO
from pathlib import Path


class Appended:
    """Opened with the first line, its folder made; closed, it is opened again with the next.

    Args:
        path: the file.
        torn: whether its last line lacks its end, so that a new one has to be begun.
    """

    def __init__(self, path: Path, torn: bool = False) -> None:
        self.path = path
        self._torn = torn
        self._file: FileIO | None = None
        self._end: int | None = None  # of the open file, as we left it; None where it has none, as a pipe

    @property
    def size(self) -> int:
        """In bytes, where it is open and has a size; else 0."""
        return self._end or 0

    @property
    def changed(self) -> bool:
        """Whether others have written into it, have cut it short or taken it away since it was opened."""
        if self._file is None or self._end is None:
            return False
        with suppress(OSError):
            return self.path.stat().st_size != self._end
        return True

    def append(self, line: bytes) -> None:
        """Append a line, in a single write.

        Raises:
            OSError: it cannot be written; what there was room for is taken back.
        """
        file = self._file or self._open()
        line = b"\n" + line if self._torn and self._end != 0 else line
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left")
        except OSError:
            self._take_back(file)
            raise
        self._end = None if self._end is None else self._end + len(line)
        self._torn = False

    def close(self) -> None:
        """Close it; what stands there by the next line may be of others."""
        self._torn = self._torn or self.changed
        if self._file:
            self._file.close()
        self._file = self._end = None

    def _take_back(self, file: FileIO) -> None:
        torn, self._torn = self._torn, True
        if self._end is not None:
            with suppress(OSError):
                file.truncate(self._end)
                self._torn = torn

    def _open(self) -> FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(self.path, "ab")
        self._end = self._file.tell() if self._file.seekable() else None
        return self._file
