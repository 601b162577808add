"""The folder that a preparation fills: it appears whole at the end or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distrec.errors import UserError
from distrec.prepare.description import FILE
from distrec.seal import replacing

REMOTE = re.compile(r"[a-z][a-z0-9+]+:/")
Progress = Callable[[int, int], None]  # (done, total); total is 0 where it is not known


@dataclass(frozen=True)
class Prepared:
    """What a preparation wrote."""

    folder: Path  # OUT/<task>, which holds one folder a split
    rows: dict[str, int]  # split -> rows
    notes: tuple[str, ...] = ()  # what a person should hear of it, a line each

    @property
    def files(self) -> tuple[Path, ...]:
        """The Parquet files."""
        return tuple(sorted(self.folder.glob("*/*.parquet")))

    @property
    def description(self) -> Path:
        """What says which columns they have."""
        return self.folder / FILE


def no_progress(done: int, total: int) -> None:
    """Report progress to nobody."""


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty sibling of `folder` that takes its name when the block ends well, and is removed when it does not.

    Raises:
        UserError: `folder` holds something and `overwrite` is false, or it cannot be written to.
    """
    _refuse_to_replace(folder, overwrite)
    try:
        with replacing(folder) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another folder with --out") from error


def refuse_remote(path: Path) -> None:
    """Raise a `UserError` for what was an address such as s3://bucket/log: training reads those, preparing does not."""
    if REMOTE.match(str(path)):
        address = str(path).replace(":/", "://", 1)  # a path has one slash where two were given
        raise UserError(f"{address} is on another machine, and distrec prepare reads and writes files of this one: copy it")


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    refuse_remote(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder with --out")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; replace what is there with --overwrite, or choose another folder with --out")
