"""A window of decoded rows, and the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distrec.errors import UserError


@dataclass(frozen=True)
class Column:
    """One column of a window. Row `i` below is the i-th row in reading order."""

    values: pa.Array  # in file order
    order: np.ndarray | None  # (n,) int64: reading order as rows of `values`; None: as they stand
    source: Callable[[int], str]  # a row of `values` -> its file and row, for messages

    @property
    def type(self) -> pa.DataType:
        """Arrow type."""
        return self.values.type

    def __len__(self) -> int:
        return len(self.values)

    def ordered(self) -> pa.Array:
        """The values in reading order."""
        return self.values if self.order is None else self.values.take(pa.array(self.order))

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """`array (n, ...)`, from file order to reading order. Several times faster than Arrow's `take`."""
        return array if self.order is None else array[self.order]

    def where(self, row: int) -> str:
        """The file of row `row`, and its row there."""
        return self.source(row if self.order is None else int(self.order[row]))


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together."""

    table: pa.Table  # in file order
    order: np.ndarray | None  # as in Column
    source: Callable[[int], str]

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> Column:
        """A column as one array. Raises `UserError` for one that Arrow's 32-bit offsets cannot address."""
        try:
            return Column(pa.concat_arrays(self.table.column(name).chunks), self.order, self.source)
        except pa.ArrowInvalid as error:
            fix = "lower data.shuffle_window, or write it as large_string or large_list"
            raise UserError(f"column {name!r}: {len(self)} rows do not fit into one array ({error}); {fix}") from error
