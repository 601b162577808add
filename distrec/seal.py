"""Files that are whole or are not there: checksums, and JSON and folders that replace what they stand for in one go."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from distrec.errors import UserError
from distrec.json_out import finite, to_json
from distrec.log import logger

MANIFEST = "manifest.json"
FORMAT = 1
CHUNK = 2**24


def checksum(path: Path) -> tuple[int, int]:
    """Bytes and crc32 of a file; the disk works on the next chunk while this one is summed."""
    crc, size = 0, 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(file.read, CHUNK)
        while chunk := coming.result():
            coming = ahead.submit(file.read, CHUNK)
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return size, crc


def crc32_of(values: Mapping[str, Any]) -> int:
    """Of plain values, in whatever order their keys stand."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that the path holds all of it or what it held before, through a power cut too.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_suffix(".tmp")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(to_json(value, indent=1))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def replace_signed(path: Path, value: Mapping[str, Any]) -> None:
    """The same, with the `crc32_of` what a reader finds there, as an entry of its own."""
    values = finite(value)
    replace_json(path, {"crc32": crc32_of(values)} | values)


def beside(path: Path) -> Path:
    """Where to make what becomes `path`: a hidden name beside it, of which two processes have two."""
    return path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")


def swap_in(partial: Path, folder: Path) -> None:
    """Give `partial`, made `beside` the folder, its name: two renames, so that a reader finds what was there or what is new.

    Of two processes that do so at once the last one stays. What ends it between the renames, as SIGTERM may, undoes the first.
    """
    old = _alias(partial, "old")
    try:
        while True:
            if folder.exists():
                with suppress(FileNotFoundError):  # another process has just moved it
                    folder.replace(old)
            try:
                partial.replace(folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(old, ignore_errors=True)  # another process's folder came between, and goes in turn
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its name when the block ends well, and is removed when it does not.

    What a process that was killed left of the same is removed first; where it may belong to one that lives, a warning says so.

    Raises:
        OSError: one of them cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    partial = beside(folder)
    with _owned(partial):
        try:
            partial.mkdir()
            yield partial
            swap_in(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that ended without warning left beside a folder that they were replacing.

    Only what is certainly nobody's: made on this machine, by a process that holds its lock no more. The lock ends with the
    process, however that ends. Of the rest that has no living owner here, a warning says that it is there.
    """
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(?:partial|old|owner)-([0-9a-f]{{8}})")
    tags = {found[1] for path in folder.parent.iterdir() if (found := pattern.fullmatch(path.name))}
    for partial in (folder.with_name(f".{folder.name}.partial-{tag}") for tag in sorted(tags)):
        owner, old = _alias(partial, "owner"), _alias(partial, "old")
        fate = _fate(owner)
        if fate == "left":
            if old.exists() and not folder.exists():  # it ended between the two renames
                old.replace(folder)
            for path in (partial, old):
                shutil.rmtree(path, ignore_errors=True)
            owner.unlink(missing_ok=True)
        elif fate == "unknown":
            for path in (path for path in (partial, old) if path.is_dir()):
                logger.warning(f"warning: {_left(path)}")


def _fate(owner: Path) -> Literal["live", "left", "unknown"]:
    """Of what a process made, from the file that it holds a lock on while it lives."""
    try:
        with owner.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "left" if file.read() == socket.gethostname() else "unknown"  # not every disk shares locks among machines
    except BlockingIOError:
        return "live"
    except OSError:  # it is not there, may not be written, or cannot be locked here
        return "unknown"


def _left(path: Path) -> str:
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):  # one that still writes may have removed it
                size += (Path(folder) / name).stat().st_size
    why = "is of a process that was killed, or of one that still writes, on another machine say"
    return f"{path} ({size / 2**20:,.1f} MiB) {why}; if none does, remove it: rm -r {shlex.quote(str(path))}"


def _alias(partial: Path, kind: Literal["old", "owner"]) -> Path:
    """Another hidden name beside the same folder, which goes with this one."""
    name, _, tag = partial.name.rpartition(".partial-")
    return partial.with_name(f"{name}.{kind}-{tag}")


@contextmanager
def _owned(partial: Path) -> Iterator[None]:
    """While within, a file beside a partial folder is locked, which tells other processes that this one lives."""
    owner = _alias(partial, "owner")
    with owner.open("x", encoding="utf-8") as file:
        try:
            with suppress(OSError):  # where locks are unknown, nobody can take this one either
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(socket.gethostname())
            file.flush()
            yield
        finally:
            if not (partial.exists() or _alias(partial, "old").exists()):  # else the next one removes both
                owner.unlink(missing_ok=True)


def refuse_to_replace(folder: Path, kind: str) -> None:
    """Raise a `UserError` where `swap_in` would lose what is no sealed folder of a kind (the command that makes it).

    A damaged manifest stands in no one's way as long as it says the kind: to make the folder again is what mends it.
    """
    try:
        ours = f'"kind": "{kind}"' in (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
    except OSError:  # no manifest, no folder, or a file
        ours = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not ours:
        raise UserError(f"{folder} holds something that {kind!r} did not write; name another folder with --out")


def refuse_unwritable(folder: Path) -> None:
    """Raise a `UserError` where nothing can be written to a folder, or to where it would be made, before work is lost."""
    place = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}; name another folder with --out") from None


def seal(folder: Path, kind: str, facts: Mapping[str, Any], files: Mapping[str, tuple[int, int]]) -> None:
    """Write a folder's manifest, last of all: what it is, `facts` about it, and the checksums of its files by name."""
    replace_signed(
        folder / MANIFEST, {"kind": kind, "format": FORMAT, **facts, "files": {name: files[name] for name in sorted(files)}}
    )


def unseal(folder: Path, kind: str, remedy: str) -> dict[str, Any]:
    """The facts of a sealed folder, and its `files`.

    Raises:
        UserError: there is no manifest of this kind, or it is damaged; the message ends with the remedy.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        crc, found = values.pop("crc32", None), (values.get("kind"), values.get("format"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {kind}: it has no {MANIFEST}, which is written last; {remedy}") from None
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; {remedy}") from None
    if found != (kind, FORMAT):
        raise UserError(f"{path} is of {found[0]!r}, format {found[1]}, and not of {kind!r}, format {FORMAT}; {remedy}")
    if crc != crc32_of(values):
        raise UserError(f"{path} is damaged: its crc32 is not that of what it says; {remedy}")
    return values


def verify(folder: Path, files: Mapping[str, Sequence[int]], names: Iterable[str], remedy: str) -> None:
    """Compare files with what the manifest says of them.

    Raises:
        UserError: one is missing, cut short or damaged, by name.
    """
    for name in names:
        try:
            found = checksum(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror}; {remedy}") from None
        if found != tuple(files[name]):
            size, expected = found[0], files[name][0]
            how = f"it has {size:,} bytes of {expected:,}" if size != expected else "its crc32 is not what the manifest says"
            raise UserError(f"{folder / name} is damaged: {how}; {remedy}")
