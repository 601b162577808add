"""Criteo's text files, plain or gzipped, as blocks of whole lines that know where they stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from distrec.errors import UserError

CHUNK = 8 << 20  # bytes of text read at once, some 35,000 rows
LONGEST = 1 << 20  # bytes; a line of Criteo's has some 250
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Block:
    """Whole lines of a file."""

    file: Path
    line: int  # number of the first, counted from 1
    text: bytes


def files_of(sources: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns name: in the order of the sources, and by number within each (day_2, day_10).

    Raises:
        UserError: a source that names no file, a file that is named twice or is no text.
    """
    found = [file for source in sources for file in _named(Path(source))]
    for file in found:
        if found.count(file) > 1:
            raise UserError(f"{file} is named twice; its rows would count double")
        _refuse_archive(file)
    return found


def blocks(file: Path) -> Iterator[Block]:
    """The lines of a file, some megabytes at a time.

    Raises:
        UserError: the file cannot be read, is a damaged gzip, or has no line ends.
    """
    line, rest = 1, b""
    with _readable(file, lambda: line + rest.count(b"\n")) as stream:
        while data := stream.read(CHUNK):
            text, end, tail = (rest + data).rpartition(b"\n")
            rest = tail
            if end:
                yield Block(file, line, text + end)
                line += text.count(b"\n") + 1
            elif len(rest) > LONGEST:
                raise UserError(f"{file}, line {line}: over {LONGEST:,} bytes without a line end; this is no file of Criteo's")
    if rest:
        yield Block(file, line, rest + b"\n")


def count_rows(file: Path) -> int:
    """Lines of a file, in one pass.

    Raises:
        UserError: the file is empty, cannot be read, or is a damaged gzip.
    """
    rows, last = 0, b"\n"
    with _readable(file, lambda: rows + 1) as stream:
        while data := stream.read(CHUNK):
            rows += data.count(b"\n")
            last = data[-1:]
    rows += last != b"\n"
    if not rows:
        raise UserError(f"{file} is empty; leave it out, or fetch it again")
    return rows


def _named(source: Path) -> list[Path]:
    if source.is_dir():
        found = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    else:
        found = [source] if source.is_file() else [path for path in source.parent.glob(source.name) if path.is_file()]
    if not found:
        raise UserError(f"no file at {source}; name Criteo's train.txt, its day_* files, or a folder that holds only those")
    return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _refuse_archive(file: Path) -> None:
    with _readable(file, lambda: 1) as stream:
        head = stream.read(512)
    if head[257:262] == b"ustar" or head[:4] == b"PK\x03\x04":
        raise UserError(f"{file} is an archive; extract it and name the text file in it")


@contextmanager
def _readable(file: Path, line: Callable[[], int]) -> Iterator[pa.NativeFile]:
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == GZIP
        with pa.input_stream(str(file), compression="gzip" if packed else None) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"{file}, line {line()}: cannot be read: {error.strerror or error}; fetch the file again") from error
