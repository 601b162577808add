"""Parquet and CSV files of anybody's, read as blocks of rows that know where they stand."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from distrec.errors import UserError
from distrec.prepare.output import refuse_remote

ROWS = 1 << 17  # of a Parquet file that are read at once
TEXT = 8 << 20  # bytes of a CSV file that are read at once
PARQUET = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
TEXTS = re.compile(r"\.(csv|tsv)(\.gz)?$", re.IGNORECASE)
TABS = re.compile(r"\.tsv(\.gz)?$", re.IGNORECASE)
LONGEST_HEADER = 1 << 20  # bytes
BYTES_A_ROW = 30  # of a log as CSV, about; less if packed


@dataclass(frozen=True)
class Block:
    """Some rows of a file."""

    file: Path
    first: int  # number of the first row, counted from 0
    rows: pa.Table

    def at(self, row: int) -> str:
        """Where a row of the block stands: rows of Parquet count from 0; lines of text from 1, after one of names."""
        return f"{self.file}, line {self.first + row + 2}" if is_text(self.file) else f"{self.file}, row {self.first + row}"


def is_text(file: Path) -> bool:
    """Whether a file is CSV or TSV."""
    return not PARQUET.search(file.name)


def tabular_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns name, in the order of the sources and by name within each.

    Raises:
        UserError: a source without a file, or a file of another format.
    """
    found = [file for source in sources for file in _named(Path(source))]
    for file in found:
        if not _known(file):
            raise UserError(f"{file}: a file must end in .parquet, .csv or .tsv, the latter two also in .gz")
    return found


def rows_about(file: Path) -> int:
    """Rows of a file: exact for Parquet, a guess from the size of text.

    Raises:
        UserError: the file cannot be read.
    """
    if is_text(file):
        return 1 + file.stat().st_size * (4 if _packed(file) else 1) // BYTES_A_ROW
    try:
        return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def blocks(file: Path, columns: Sequence[str], text: Sequence[str] = ()) -> Iterator[Block]:
    """The rows of a file, some ten thousand at a time.

    Args:
        file: Parquet, or CSV or TSV with a line of names.
        columns: those that are read.
        text: columns of CSV that are read as text, whatever they look like; types of others are guessed from the first rows.

    Raises:
        UserError: a file that cannot be read, a missing column, a line that does not parse.
    """
    first = 0
    try:
        for rows in _csv(file, columns, text) if is_text(file) else _parquet(file, columns):
            yield Block(file, first, rows)
            first += rows.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _known(file: Path) -> bool:
    return bool(PARQUET.search(file.name) or TEXTS.search(file.name))


def _named(source: Path) -> list[Path]:
    refuse_remote(source)
    try:
        if source.is_dir():
            found = [path for path in source.iterdir() if path.is_file() and _known(path) and path.name[0] not in "._"]
        else:
            found = [source] if source.is_file() else [path for path in source.parent.glob(source.name) if path.is_file()]
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror or error}") from None
    if not found:
        raise UserError(f"no file at {source}; name Parquet or CSV files, a folder that holds them, or a quoted pattern")
    return sorted(found)


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(file, pre_buffer=False) as opened:  # a buffer keeps all that it read, up to the end of the file
        _refuse_missing(file, columns, opened.schema_arrow.names)
        for batch in opened.iter_batches(ROWS, columns=list(columns), use_threads=False):
            yield pa.Table.from_batches([batch])


def _csv(file: Path, columns: Sequence[str], text: Sequence[str]) -> Iterator[pa.Table]:
    """Only one thread says which line a message is about."""
    parse = csv.ParseOptions(delimiter="\t" if TABS.search(file.name) else ",", newlines_in_values=True)
    _refuse_missing(file, columns, _names(file, parse))
    read = csv.ReadOptions(use_threads=False, block_size=TEXT)
    convert = csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(text, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    with _open(file) as stream, csv.open_csv(stream, read, parse, convert) as opened:
        for batch in opened:
            yield pa.Table.from_batches([batch])


def _names(file: Path, parse: csv.ParseOptions) -> list[str]:
    """What the first line calls the columns."""
    with _open(file) as stream:
        line, end, _ = stream.read(LONGEST_HEADER).partition(b"\n")
    return csv.read_csv(io.BytesIO(line + end), parse_options=parse).column_names


def _open(file: Path) -> pa.NativeFile:
    return pa.input_stream(str(file), compression="gzip" if _packed(file) else None)


def _packed(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _refuse_missing(file: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    for name in columns:
        if found.count(name) != 1:
            how = "has no column" if name not in found else "has several columns"
            raise UserError(f"{file} {how} {name!r}; there is: {', '.join(found)}")
