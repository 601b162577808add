"""A folder that this process may not write into, whoever it runs as."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION_3 = 0x20080522  # of Linux's capget and capset
MAY_WRITE_ANYWHERE = 1 << 1  # CAP_DAC_OVERRIDE, in the first of three words a half: effective, permitted, inheritable


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take away everybody's right to write there, and root's privilege to do without."""
    places = [folder, *folder.rglob("*")]
    modes = [place.stat().st_mode for place in places]
    for place, mode in zip(places, modes, strict=True):
        place.chmod(mode & ~0o222)
    had = _effective()
    _set_effective(had & ~MAY_WRITE_ANYWHERE)
    try:
        yield
    finally:
        _set_effective(had)
        for place, mode in zip(places, modes, strict=True):
            place.chmod(mode)


def _state() -> tuple[ctypes.Array, ctypes.Array]:
    header, words = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(header, words) == 0
    return header, words


def _effective() -> int:
    return _state()[1][0]


def _set_effective(value: int) -> None:
    header, words = _state()
    words[0] = value
    assert ctypes.CDLL(None).capset(header, words) == 0
