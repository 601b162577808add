"""What the footers of all files say: rows, types, nulls, smallest and largest values. No data page is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from distrec.data.files import READS_AT_ONCE, Source, find_files
from distrec.data.parquet import File, open_parquet, stamp_of
from distrec.errors import UserError
from distrec.profile.kinds import Kind, kind_of, leaves

Bound = int | float


@dataclass
class Facts:
    """A column over all rows of all files. What footers leave open is None."""

    name: str
    type: pa.DataType = field(default_factory=pa.null)
    rows: int = 0
    values: int = 0  # as many as rows, but for lists
    bytes: int = 0  # uncompressed
    nulls: int | None = 0  # of lists: None
    low: Bound | None = None
    high: Bound | None = None
    bounded: bool = True  # low and high hold for every row
    fault: str = ""  # why it cannot be read
    coarsest: pa.DataType | None = None  # the narrowest of the floating types that files have; None: files agree

    @property
    def kind(self) -> Kind:
        """What it holds."""
        return "unreadable" if self.fault else kind_of(self.type)

    @property
    def bounds(self) -> tuple[Bound, Bound] | None:
        """Smallest and largest value of all rows, in the column's own unit; None when not every row group says."""
        return (self.low, self.high) if self.bounded and self.low is not None and self.high is not None else None

    @property
    def width(self) -> float:
        """Bytes a row, about, once decoded."""
        return max(8 * self.values, self.bytes) / max(self.rows, 1)

    def add(self, chunk: Any, is_list: bool) -> None:
        """Count one column chunk in."""
        self.values += chunk.num_values
        self.bytes += chunk.total_uncompressed_size
        statistics = chunk.statistics
        known = statistics is not None and statistics.has_null_count and not is_list
        self.nulls = self.nulls + statistics.null_count if known and self.nulls is not None else None  # type: ignore[union-attr]
        self._widen(_bounds(statistics, self.kind), chunk.num_values)

    def _widen(self, bounds: tuple[Bound, Bound] | None, values: int) -> None:
        if bounds is not None:
            self.low = bounds[0] if self.low is None else min(self.low, bounds[0])
            self.high = bounds[1] if self.high is None else max(self.high, bounds[1])
        elif values:
            self.bounded = False


@dataclass(frozen=True)
class Survey:
    """Files and their columns."""

    files: tuple[File, ...]
    columns: dict[str, Facts]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(sum(file.rows) for file in self.files)

    def readable(self) -> list[Facts]:
        """The columns that can be sampled."""
        return [facts for facts in self.columns.values() if facts.kind != "unreadable"]


def survey(paths: Sequence[str]) -> Survey:
    """Read every footer at `paths` (files, folders, globs, fsspec URLs).

    Raises `UserError` when nothing is found, a file is not Parquet, or there is no row at all. Columns that files do not
    agree on are no error: their `fault` says why they cannot be used.
    """
    return survey_files(find_files(paths), ", ".join(paths))


def survey_files(sources: Sequence[Source], named: str) -> Survey:
    """The same for files that are found already; `named` is what they are called in messages."""
    with ThreadPoolExecutor(min(READS_AT_ONCE, len(sources))) as pool:
        footers = list(pool.map(_footer, sources))
    files = tuple(file for file, _ in footers)
    if not any(sum(file.rows) for file in files):
        raise UserError(f"no rows in {named}: {len(files)} Parquet files, all empty")
    return Survey(files, _merge(files, [facts for _, facts in footers]))


def ranges(survey: Survey, column: str) -> list[tuple[Bound, Bound] | None]:
    """Smallest and largest value of one column in each file; None where a file does not say, or has no rows."""
    found = facts_by_file(survey.files, {column})
    return [facts[column].bounds if column in facts else None for facts in found]


def facts_by_file(files: Sequence[File], columns: Collection[str]) -> list[dict[str, Facts]]:
    """What each file's footer says of those of the columns that it has."""
    with ThreadPoolExecutor(min(READS_AT_ONCE, len(files))) as pool:
        return [facts for _, facts in pool.map(lambda file: _footer(file.source, columns), files)]


def _footer(source: Source, only: Collection[str] | None = None) -> tuple[File, dict[str, Facts]]:
    with open_parquet(source, verify_checksums=False) as parquet:
        footer, schema = parquet.metadata, parquet.schema_arrow
        groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
        rows = tuple(group.num_rows for group in groups)
        facts: dict[str, Facts] = {}
        for column, leaf in _with_leaf(schema):
            if only is None or column.name in only:
                facts[column.name] = _facts(column, leaf, groups, sum(rows), column.name in facts)
    return File(source, rows, pa.schema([]), stamp_of(footer)), facts


def _with_leaf(schema: pa.Schema) -> Iterator[tuple[pa.Field, int]]:
    at = 0
    for column in schema:
        yield column, at
        at += leaves(column.type)


def _facts(column: pa.Field, leaf: int, groups: Sequence[pq.RowGroupMetaData], rows: int, again: bool) -> Facts:
    facts = Facts(column.name, column.type, rows, fault="two columns have this name" if again else "")
    if facts.kind == "unreadable":
        return facts
    for group in groups:
        facts.add(group.column(leaf), facts.kind in ("integers", "texts"))
    return facts


def _bounds(statistics: Any, kind: Kind) -> tuple[Bound, Bound] | None:
    """Smallest and largest; times as they are stored. Text is left out: writers may cut its bounds off."""
    if statistics is None or not statistics.has_min_max or kind not in ("integer", "real", "boolean", "time", "integers"):
        return None
    low, high = (statistics.min_raw, statistics.max_raw) if kind == "time" else (statistics.min, statistics.max)
    if isinstance(low, bytes) or isinstance(high, bytes):  # half floats
        return None
    low, high = _plain(low), _plain(high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _plain(value: Any) -> Bound:
    """Parquet writes zeros among lower bounds as -0.0."""
    return float(value) + 0.0 if isinstance(value, Decimal | float) else int(value)


def _merge(files: Sequence[File], found: Sequence[dict[str, Facts]]) -> dict[str, Facts]:
    merged: dict[str, Facts] = {}
    seen: dict[str, int] = {}
    for file, facts in zip(files, found, strict=True):
        for name, one in facts.items():
            merged[name] = _join(merged[name], one, file) if name in merged else one
            seen[name] = seen.get(name, 0) + 1
    for name, count in seen.items():
        if count < len(files):
            merged[name].fault = f"{len(files) - count} of {len(files)} files do not have it"
    return merged


def _join(left: Facts, right: Facts, file: File) -> Facts:
    fault, type = left.fault or right.fault, left.type
    if left.type != right.type:
        try:
            type = _unified(left.type, right.type)
        except pa.ArrowException:
            fault = fault or f"it is {right.type} in {file.path} and {left.type} elsewhere"
    joined = Facts(left.name, type, left.rows + right.rows, left.values + right.values, left.bytes + right.bytes)
    joined.fault = fault
    joined.coarsest = _coarsest(left, right)
    joined.nulls = None if left.nulls is None or right.nulls is None else left.nulls + right.nulls
    joined.bounded = left.bounded and right.bounded and (left.type == right.type or joined.kind != "time")
    joined.low, joined.high = _outer(left.low, right.low, min), _outer(left.high, right.high, max)
    return joined


def _coarsest(left: Facts, right: Facts) -> pa.DataType | None:
    if left.type == right.type and left.coarsest == right.coarsest:
        return left.coarsest
    found = [type for type in (left.coarsest or left.type, right.coarsest or right.type) if types.is_floating(type)]
    return min(found, key=lambda type: type.bit_width, default=None)


def _outer(left: Bound | None, right: Bound | None, choose: Any) -> Bound | None:
    return right if left is None else left if right is None else choose(left, right)


def _unified(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("x", left)]), pa.schema([("x", right)])]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
