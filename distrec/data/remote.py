"""Files of any fsspec filesystem, as Arrow reads them: ranges, each tried again when its read fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
from fsspec import AbstractFileSystem
from pyarrow.fs import FSSpecHandler

from distrec.errors import UserError
from distrec.log import logger

T = TypeVar("T")
LONGEST_PAUSE_S = 30.0
ACCESS = "Check the connection, the credentials that the environment holds, and what they may do"


class RetryingHandler(FSSpecHandler):
    """Opens files of `fs` as `RangeFile`s."""

    def __init__(self, fs: AbstractFileSystem, retries: int):
        super().__init__(fs)
        self._retries = retries

    def open_input_file(self, path: str) -> pa.PythonFile:
        """The file at a path or URL. Raises `UserError` as `patiently` does."""
        return pa.PythonFile(RangeFile(self.fs, path, self._retries), mode="r")


class RangeFile:
    """A remote file whose position is kept here, so that any read may be repeated.

    It has no cache, for Arrow reads nothing twice. The methods are those that `pyarrow.PythonFile` calls.
    """

    closed = False

    def __init__(self, fs: AbstractFileSystem, path: str, retries: int):
        """Raises `UserError` as `patiently` does."""
        self._fs, self._path, self._retries = fs, path, retries
        self._size: int = patiently(lambda: fs.info(path)["size"], path, retries)
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer at the end. Raises `UserError` as `patiently` does."""
        stop = self._size if size < 0 else min(self._at + size, self._size)
        if self._at >= stop:
            return b""
        start = self._at
        content: Any = patiently(lambda: self._fs.cat_file(self._path, start=start, end=stop), self._path, self._retries)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset from the start, the position or the end."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def close(self) -> None:
        """Nothing is held."""
        self.closed = True


def patiently(read: Callable[[], T], path: str, retries: int) -> T:
    """`read()`, tried again up to `retries` times, after 1, 2, 4, … seconds and at most `LONGEST_PAUSE_S`.

    Libraries of stores raise exceptions of many families when a connection fails, so every one is taken for a failed read.

    Raises:
        UserError: the file is gone or may not be read, at once; or all tries failed, with their number and the last cause.
    """
    for failed in range(retries + 1):
        try:
            return read()
        except FileNotFoundError:
            raise UserError(f"{path}: the file is gone") from None
        except PermissionError as error:
            raise UserError(f"{path}: may not be read: {error}. {ACCESS}") from None
        except Exception as error:
            if failed == retries:
                tries = f"{retries + 1} times" if retries else "once"
                raise UserError(f"{path}: could not be read, tried {tries} (data.retries): {cause(error)}") from None
            pause = min(2.0**failed, LONGEST_PAUSE_S)
            logger.warning("%s: a read failed (%s); trying again in %g s", path, cause(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")


def cause(error: BaseException) -> str:
    """One line on a store's error: its type, for many have no message."""
    lines: list[Any] = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
