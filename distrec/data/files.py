"""From the paths of a config to the files behind them, on local disks and on any fsspec filesystem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem as FsspecLocal
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from distrec.errors import UserError


@dataclass(frozen=True)
class Source:
    """A file, and the filesystem that opens it."""

    path: str
    filesystem: FileSystem


def find_files(paths: Iterable[str]) -> list[Source]:
    """The Parquet files at `paths`, each a file, a folder (searched recursively) or a glob; sorted within each path.

    Raises `UserError` for a path that holds none, a filesystem that cannot be reached, and a file that two paths name.
    """
    found: dict[str, str] = {}
    sources = []
    for path in paths:
        for source in _at(path):
            if source.path in found:
                raise UserError(
                    f"{source.path} is named twice, by {found[source.path]!r} and {path!r}; its rows would count twice"
                )
            found[source.path] = path
            sources.append(source)
    if not sources:
        raise UserError("no data path is given; name at least one Parquet file, folder or glob")
    return sources


def _at(path: str) -> list[Source]:
    try:
        fs, root = url_to_fs(path)
        names = sorted(_expand(fs, str(root)))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path}: cannot be listed: {error}") from error
    if not names:
        raise UserError(f"{path}: no Parquet file there; give a file, a folder that holds *.parquet, or a glob")
    arrow = LocalFileSystem() if isinstance(fs, FsspecLocal) else PyFileSystem(FSSpecHandler(fs))
    return [Source(name, arrow) for name in names]


def _expand(fs: AbstractFileSystem, root: str) -> Iterator[str]:
    matches = [root] if fs.exists(root) else fs.glob(root) if any(c in root for c in "*?[") else []
    for match in map(str, matches):
        if fs.isdir(match):
            yield from (str(name) for name in fs.find(match) if _is_data(str(name), match))
        else:
            yield match


def _is_data(name: str, folder: str) -> bool:
    """Writers leave `_SUCCESS`, `_metadata` and hidden temporary folders beside the data."""
    parts = PurePosixPath(name).relative_to(PurePosixPath(folder)).parts
    return name.endswith(".parquet") and not any(part.startswith((".", "_")) for part in parts)
