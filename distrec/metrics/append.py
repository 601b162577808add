"""A file that grows by whole records, through a disk that is full for a while."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from distrec.errors import UserError
from distrec.log import logger


class AppendFile:
    """Appends at once and without a buffer. What the disk refuses waits in memory, and is tried again with every record.

    A run that trains well must not end because nobody could note how well; so a refusal is a warning, until `close`.
    The file never ends in half a record: what was written of a refused one is cut off.
    """

    def __init__(self, path: Path):
        """Raises `OSError` when the file cannot be opened."""
        self._path, self._file = path, path.open("ab", buffering=0)
        self._waiting = bytearray()
        self._refused: OSError | None = None

    def write(self, record: bytes) -> int:
        """Append a record, after those that wait; returns its bytes."""
        self._waiting += record
        self.flush()
        return len(record)

    def flush(self) -> None:
        """Append what waits."""
        if not self._waiting:
            return
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._write_waiting()
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            self._warn(error)
        else:
            self._waiting.clear()
            self._refused = None

    def close(self) -> None:
        """Append what waits, a last time.

        Raises:
            UserError: there is still no room.
        """
        self.flush()
        self._file.close()
        if self._refused is not None:
            raise UserError(
                f"the last {len(self._waiting):,} bytes of {self._path} could not be written: {self._refused.strerror}; "
                "make room, or set `folder` to where there is some"
            )

    def _write_waiting(self) -> None:
        left = bytes(self._waiting)
        while left:  # a disk that fills takes a part, and refuses the rest
            left = left[self._file.write(left) :]

    def _warn(self, error: OSError) -> None:
        if self._refused is None:
            logger.warning(
                "cannot write %s: %s; training goes on, and the numbers wait in memory for room", self._path, error.strerror
            )
        self._refused = error
