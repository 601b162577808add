"""Parquet files as one dataset: footers, and reading pieces of row groups."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.data.columns import Use, check_schema
from distrec.data.deal import Piece
from distrec.data.files import READS_AT_ONCE, RETRIES, Source, find_files
from distrec.data.numbering import Numbering, Numbers, descriptions, numbers_of
from distrec.errors import UserError

RECORD_BATCH = 65536  # rows decoded at once
OPEN_FILES = 64
FOOTER_BYTES = 8 << 20  # as they stand in the files; parsed, they take several times as much


@dataclass(frozen=True)
class File:
    """A Parquet file, known by its footer."""

    source: Source
    rows: tuple[int, ...]  # of each row group
    schema: pa.Schema  # of the columns in use
    stamp: tuple[int, int]  # see `stamp_of`

    @property
    def path(self) -> str:
        """For messages."""
        return self.source.path


@dataclass(frozen=True)
class Dataset:
    """Files whose schemas agree on the columns in use."""

    files: tuple[File, ...]
    schema: pa.Schema  # the columns in use, and no other column is read

    @cached_property
    def row_groups(self) -> list[Piece]:
        """Every row group that has rows, in file order."""
        return [Piece(f, g, range(n)) for f, file in enumerate(self.files) for g, n in enumerate(file.rows) if n]

    @cached_property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(map(len, self.row_groups))

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the file names and row counts: a reader's position means nothing on other files."""
        facts = [(PurePosixPath(file.path).name, file.rows) for file in self.files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    @cached_property
    def numbering(self) -> Numbers:
        """How `distrec prepare` numbered the ids in the columns in use.

        Raises:
            UserError: the files are of two `distrec prepare`.
        """
        found = Numbering()
        for folder, said in descriptions(file.source for file in self.files).items():
            found.require(numbers_of(said, self.schema.names), folder)
        return found.numbers

    def read(self, pieces: Iterable[Piece], verify_checksums: bool, batch: int = RECORD_BATCH) -> Iterator[pa.RecordBatch]:
        """Decode the rows of `pieces`, in order, at most `batch` rows at a time; the columns are those of `schema`.

        Raises `UserError` for a file that is gone, damaged or another one by now, naming the file and the row group.
        """
        opened = OpenFiles(self.files, verify_checksums)
        for piece in pieces:
            for part in self._decode(opened[piece.file], piece, batch):
                yield part if part.schema.equals(self.schema) else self._cast(part, piece)

    def where(self, piece: Piece, row: int) -> str:
        """The file and the row in the file of row `row` of `piece`, for messages."""
        file = self.files[piece.file]
        return f"{file.path}, row {sum(file.rows[: piece.group]) + int(piece.rows[row])}"

    def where_in(self, pieces: Sequence[Piece], row: int) -> str:
        """The same of row `row` of several pieces, one after another."""
        ends = list(accumulate(map(len, pieces)))
        index = int(np.searchsorted(ends, row, side="right"))
        return self.where(pieces[index], row - (ends[index] - len(pieces[index])))

    def _decode(self, parquet: pq.ParquetFile, piece: Piece, batch: int) -> Iterator[pa.RecordBatch]:
        low = 0
        try:
            parts = parquet.iter_batches(batch_size=batch, row_groups=[piece.group], columns=self.schema.names)
            for part in parts:
                high = low + part.num_rows
                if chosen := _choose(part, piece.rows, low, high):
                    yield chosen.select(self.schema.names)
                if high > piece.rows[-1]:
                    return
                low = high
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self._group(piece)} cannot be decoded, the file is damaged: {error}") from error
        said = self.files[piece.file].rows[piece.group]
        raise UserError(f"{self._group(piece)} has {low} rows where its footer says {said}: the file is damaged")

    def _group(self, piece: Piece) -> str:
        return f"{self.files[piece.file].path}: row group {piece.group}"

    def _cast(self, part: pa.RecordBatch, piece: Piece) -> pa.RecordBatch:
        try:
            return part.cast(self.schema)
        except pa.ArrowException as error:
            raise UserError(f"{self.files[piece.file].path}: its types do not fit those of the other files: {error}") from error


class OpenFiles:
    """Some files, opened when they are asked for. Shuffled row groups come back to a file, and to parse its footer takes as
    long as to decode thousands of rows; so those used last stay open, as many as `OPEN_FILES` and `FOOTER_BYTES` let.
    """

    def __init__(self, files: Sequence[File], verify_checksums: bool):
        self._files, self._verify_checksums = files, verify_checksums
        self._opened: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def __getitem__(self, index: int) -> pq.ParquetFile:
        """File `index`. Raises `UserError` as `open_parquet` does, and for another file than its footer is known of."""
        if index not in self._opened:
            file = self._files[index]
            self._opened[index] = parquet = open_parquet(file.source, self._verify_checksums)
            if stamp_of(parquet.metadata) != file.stamp:
                raise UserError(
                    f"{file.path}: the file was replaced while it was in use, and ids may stand for other things now; write "
                    "new data into a new folder, and let a run end on what it began with"
                )
            while len(self._opened) > 1 and self._too_many():
                self._opened.popitem(last=False)
        self._opened.move_to_end(index)
        return self._opened[index]

    def _too_many(self) -> bool:
        held = sum(parquet.metadata.serialized_size for parquet in self._opened.values())
        return len(self._opened) > OPEN_FILES or held > FOOTER_BYTES


def open_dataset(paths: Sequence[str], uses: Sequence[Use], retries: int = RETRIES, key: str = "") -> Dataset:
    """Read the footers of every file at `paths` and check their columns against `uses` (see `distrec.data.columns`).

    `retries`: how often a failed read of a remote file is tried again. `key`: what names the paths, for messages.

    Raises `UserError` when nothing is found, a file is not Parquet, a column is missing or of a type that does not fit,
    files disagree on a type, or there is no row at all.
    """
    sources = find_files(paths, retries, key)
    names = list(dict.fromkeys(use.column for use in uses))
    with ThreadPoolExecutor(min(READS_AT_ONCE, len(sources))) as pool:
        files = tuple(pool.map(lambda source: _footer(source, names, uses), sources))
    if not any(sum(file.rows) for file in files):
        named = f"{key}: " * bool(key)
        raise UserError(f"{named}no rows in {', '.join(paths)}: {len(files)} Parquet files, all empty")
    return Dataset(files, _unify(files, names))


def _footer(source: Source, names: Sequence[str], uses: Sequence[Use]) -> File:
    with open_parquet(source, verify_checksums=False) as parquet:
        schema, footer = parquet.schema_arrow, parquet.metadata
        check_schema(schema, source.path, uses)
        rows = tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))
    used = pa.schema([schema.field(name).remove_metadata().with_nullable(True) for name in names])
    return File(source, rows, used, stamp_of(footer))


def stamp_of(footer: pq.FileMetaData) -> tuple[int, int]:
    """Tells a file from another one: the length of its footer, and where its last page begins, after all that is compressed."""
    if not footer.num_row_groups or not footer.num_columns:
        return footer.serialized_size, 0
    last = footer.row_group(footer.num_row_groups - 1).column(footer.num_columns - 1)
    return footer.serialized_size, last.data_page_offset


def open_parquet(source: Source, verify_checksums: bool) -> pq.ParquetFile:
    """Open one file. Raises `UserError` when it is gone, truncated, or not Parquet."""
    try:
        return pq.ParquetFile(
            source.path,
            filesystem=source.filesystem,
            page_checksum_verification=verify_checksums,
            pre_buffer=source.remote,  # a few large ranges a row group, where each one is a round trip
        )
    except FileNotFoundError as error:
        raise UserError(f"{source.path}: the file is gone") from error
    except PermissionError as error:
        raise UserError(f"{source.path}: may not be read: {os.strerror(error.errno or errno.EACCES)}") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: not a Parquet file, or truncated: {error}") from error


def _unify(files: Sequence[File], names: Sequence[str]) -> pa.Schema:
    first = {file.schema: file for file in reversed(files)}  # one file a schema is enough, and there are few schemas
    merged = files[0].schema
    for schema, file in first.items():
        try:
            merged = pa.unify_schemas([merged, schema], promote_options="permissive")
        except pa.ArrowException as error:
            hint = "; write it with one type" + f" ({error})"
            raise UserError(f"{file.path}: a column's type does not fit that of {files[0].path}{hint}") from error
    return merged


def _choose(part: pa.RecordBatch, rows: range | np.ndarray, low: int, high: int) -> pa.RecordBatch | None:
    """Those of a row group's rows `[low, high)` that are in `rows`."""
    if isinstance(rows, range):
        start, stop = max(rows.start, low), min(rows.stop, high)
        return part.slice(start - low, stop - start) if start < stop else None
    inside = rows[np.searchsorted(rows, low) : np.searchsorted(rows, high)]
    return part.take(pa.array(inside - low)) if len(inside) else None
