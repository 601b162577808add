"""Files of a dataset as its publisher has them: from a zip, a folder, or the publisher, recognised by their checksums."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from distrec.errors import UserError
from distrec.prepare.download import download
from distrec.prepare.output import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class PublishedFile:
    """One file and how it is recognised."""

    sha256: str | None  # None: not known, so that any content is taken
    unordered: bool = False  # lines are a key and then ids in any order; the checksum is that of sorted ids


@dataclass(frozen=True)
class Published:
    """A dataset that is published as single files."""

    title: str
    url: str  # the folder that holds them
    files: Mapping[str, PublishedFile]


def published_files(published: Published, source: Path | None, out: Path, progress: Progress) -> dict[str, bytes]:
    """The files by name, verified.

    Args:
        published: which files.
        source: a zip or a folder that holds them; without it they are downloaded into `out`/source, once.
        out: folder of the dataset.
        progress: of a download: called with (bytes, bytes in all; 0: not known).

    Raises:
        UserError: no such source, not a zip, a file missing from it or other than the published one, a failed download.
    """
    folder = source or _fetched(published, out / "source", progress)
    try:
        found = files_in(folder, published.files)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{folder} cannot be read: {error}; name a zip or a folder with {_names(published)}") from error
    for name, raw in found.items():
        _verify(published, name, raw, folder)
    return found


def checksum(raw: bytes, unordered: bool = False) -> str:
    """SHA-256 of a file, or of the file with the ids of each line sorted."""
    return hashlib.sha256(_sorted_lines(raw) if unordered else raw).hexdigest()


def files_in(source: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files from a zip, or from a folder, at whatever depth they lie.

    Raises:
        UserError: a file that is there more than once or not at all.
        OSError, zipfile.BadZipFile, EOFError: the source cannot be read.
    """
    return _from_folder(source, names) if source.is_dir() else _from_zip(source, names)


def _fetched(published: Published, folder: Path, progress: Progress) -> Path:
    for name in published.files:
        if not (folder / name).exists():
            download(f"{published.url}/{name}", folder / name, progress)
    return folder


def _verify(published: Published, name: str, raw: bytes, folder: Path) -> None:
    known = published.files[name]
    found = checksum(raw, known.unordered)
    if known.sha256 not in (None, found):
        raise UserError(
            f"{name} in {folder} is not {published.title}'s: expected sha256 {known.sha256}, found {found}; "
            f"delete it and fetch {published.url}/{name}"
        )


def _sorted_lines(raw: bytes) -> bytes:
    lines = (line.split() for line in raw.splitlines())
    return b"".join(b" ".join([*line[:1], *sorted(line[1:], key=_by_number)]) + b"\n" for line in lines if line)


def _by_number(digits: bytes) -> tuple[int, bytes]:
    return len(digits), digits


def _names(published: Published) -> str:
    return ", ".join(published.files)


def _from_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: _only(sorted(folder.rglob(name)), name, folder).read_bytes() for name in names}


def _from_zip(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        return {name: archive.read(_only([m for m in members if m.split("/")[-1] == name], name, path)) for name in names}


def _only(found: list[T], name: str, source: Path) -> T:
    if len(found) != 1:
        raise UserError(f"{source} holds {len(found)} files named {name}, where one is needed")
    return found[0]
