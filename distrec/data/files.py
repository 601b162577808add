"""From the paths of a config to the files behind them, on local disks and on any fsspec filesystem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem as FsspecLocal
from pyarrow.fs import FileSystem, LocalFileSystem, PyFileSystem

from distrec.data.remote import ACCESS, RetryingHandler, cause
from distrec.errors import UserError

READS_AT_ONCE = 16  # of footers and other small files: reading them waits on the store, not on the processor
RETRIES = 3  # of a failed read of a remote file, where no config says how many


@dataclass(frozen=True)
class Source:
    """A file, and the filesystem that opens it."""

    path: str  # with its protocol, where it is remote
    filesystem: FileSystem

    @property
    def remote(self) -> bool:
        """Whether reading goes through fsspec."""
        return isinstance(self.filesystem, PyFileSystem)


def find_files(paths: Iterable[str], retries: int = RETRIES, key: str = "") -> list[Source]:
    """The Parquet files at `paths`, each a file, a folder (searched recursively) or a glob; sorted within each path.

    Args:
        paths: of a config's key, say.
        retries: how often a failed read of a remote file is tried again (see `distrec.data.remote`).
        key: what names the paths, `data.train` say, for messages.

    Raises:
        UserError: paths that hold none, each of them, a filesystem that cannot be reached, a file that two paths name.
    """
    named = f"{key}: " * bool(key)
    found: dict[str, str] = {}
    sources, faults = [], []
    for path in paths:
        try:
            for source in _at(path, retries):
                if source.path in found:
                    raise UserError(
                        f"{source.path} is named twice, by {found[source.path]!r} and {path!r}; its rows would count twice"
                    )
                found[source.path] = path
                sources.append(source)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(named + (faults[0] if len(faults) == 1 else "\n  ".join(["paths that cannot be used:", *faults])))
    if not sources:
        raise UserError(f"{named}no data path is given; name at least one Parquet file, folder or glob")
    return sources


def _at(path: str, retries: int) -> list[Source]:
    fs, names = _list(path)
    if not names:
        seen = "" if "://" in path or Path(path).is_absolute() else f", seen from {Path.cwd()}"
        raise UserError(f"{path}: no Parquet file there{seen}; give a file, a folder that holds *.parquet, or a glob")
    if isinstance(fs, FsspecLocal):
        return [Source(name, LocalFileSystem()) for name in names]
    remote = PyFileSystem(RetryingHandler(fs, retries))
    return [Source(fs.unstrip_protocol(name), remote) for name in names]


def _list(path: str) -> tuple[AbstractFileSystem, list[str]]:
    try:
        fs, root = url_to_fs(path)
        return fs, sorted(_expand(fs, str(root)))
    except PermissionError as error:
        raise UserError(f"{path}: may not be listed: {error}" + (f". {ACCESS}" if "://" in path else "")) from error
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path}: cannot be listed: {error}") from error
    except Exception as error:
        if "://" not in path:
            raise
        # Libraries of stores raise what they like: no connection, no credentials.
        raise UserError(f"{path}: cannot be listed: {cause(error)}. {ACCESS}") from error


def _expand(fs: AbstractFileSystem, root: str) -> Iterator[str]:
    local = isinstance(fs, FsspecLocal)
    if local:  # what may not be read is not there, as far as fsspec says
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(root)  # noqa: PTH116
    matches = [root] if fs.exists(root) else fs.glob(root) if any(c in root for c in "*?[") else []
    for match in map(str, matches):
        if fs.isdir(match):
            found = _find_local(match) if local else map(str, fs.find(match))
            yield from (name for name in found if _is_data(name, match))
        else:
            yield match


def _find_local(folder: str) -> Iterator[str]:
    """Every file below a folder; fsspec would pass over the folders that may not be read."""

    def refuse(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (os.path.join(place, name) for name in names)  # noqa: PTH118


def _is_data(name: str, folder: str) -> bool:
    """Writers leave `_SUCCESS`, `_metadata` and hidden temporary folders beside the data."""
    parts = PurePosixPath(name).relative_to(PurePosixPath(folder)).parts
    return name.endswith(".parquet") and not any(part.startswith((".", "_")) for part in parts)
