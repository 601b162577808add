"""A window of decoded rows, and the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.data.scratch import Scratch
from distrec.errors import UserError

CHUNK = 1 << 14  # rows; where chunks are smaller, to join them costs less than the calls that each of them needs


@dataclass(frozen=True)
class Column:
    """One column of a window. Row `i` below is the i-th row in reading order."""

    values: pa.Array | pa.ChunkedArray  # in file order; chunked only where the type is primitive and chunks are long
    order: np.ndarray | None  # (n,) unsigned: reading order as rows of `values`; None: as they stand
    source: Callable[[int], str]  # a row of `values` -> its file and row, for messages
    scratch: Scratch = field(default_factory=Scratch)  # what is made of the column lives there

    @property
    def type(self) -> pa.DataType:
        """Arrow type."""
        return self.values.type

    @property
    def chunks(self) -> list[pa.Array]:
        """The values, one chunk at least."""
        return self.values.chunks if isinstance(self.values, pa.ChunkedArray) else [self.values]

    def __len__(self) -> int:
        return len(self.values)

    def arrange(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """`parts`, one a chunk, from file order to reading order: `(n,)`."""
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined if self.order is None else joined[self.order]

    def valid(self) -> np.ndarray | None:
        """`(n,) bool`, in file order: false where the value is null; None where none is."""
        if not self.values.null_count:
            return None
        out = self.scratch.passing("valid", len(self), np.bool_)
        return np.concatenate([valid_bits(chunk) for chunk in self.chunks], out=out)

    def first(self, bad: np.ndarray) -> int | None:
        """The first row with `bad (n,) bool`, in file order; None where there is none."""
        return int(np.argmax(bad if self.order is None else bad[self.order])) if bad.any() else None

    def where(self, row: int) -> str:
        """The file of row `row`, and its row there."""
        return self.source(self.in_file_order(row))

    def value(self, row: int) -> object:
        """What row `row` holds, for messages."""
        return self.values[self.in_file_order(row)].as_py()

    def in_file_order(self, row: int) -> int:
        """Row `row` as a row of `values`."""
        return row if self.order is None else int(self.order[row])


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together."""

    table: pa.Table  # in file order
    order: np.ndarray | None  # as in Column
    source: Callable[[int], str]

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str, scratch: Scratch | None = None) -> Column:
        """A column as one array. Raises `UserError` for one that Arrow's 32-bit offsets cannot address."""
        values = self.table.column(name)
        if types.is_primitive(values.type) and len(values) >= values.num_chunks * CHUNK:
            return Column(values, self.order, self.source, scratch or Scratch())
        try:
            return Column(pa.concat_arrays(values.chunks), self.order, self.source, scratch or Scratch())
        except pa.ArrowInvalid as error:
            fix = "lower data.shuffle_window, or write it as large_string or large_list"
            raise UserError(f"column {name!r}: {len(self)} rows do not fit into one array ({error}); {fix}") from error


def valid_bits(values: pa.Array) -> np.ndarray:
    """`(n,) bool`, in file order: false where the value is null."""
    bitmap = values.buffers()[0] if values.null_count else None
    if bitmap is None:
        return np.full(len(values), not values.null_count)
    skipped, first = divmod(values.offset, 8)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8)[skipped:], count=first + len(values), bitorder="little")
    return bits[first:].view(np.bool_)


def memory(values: pa.Array) -> np.ndarray:
    """`(n,)` view of an array of integers or floats, with whatever lies under the nulls."""
    data, kind = values.buffers()[1], np.dtype(values.type.to_pandas_dtype())
    return np.frombuffer(data or b"", kind)[values.offset : values.offset + len(values)]
