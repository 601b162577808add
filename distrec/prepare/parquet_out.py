"""Blocks of rows -> Parquet files with page checksums and row groups that deal well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distrec.prepare.description import ID_LIST

LARGEST_ROW_GROUP = 100_000  # rows: bounds what a reader decodes at once
ROW_GROUPS = 16  # of a small split: four ranks get four each
ROWS_A_FILE = 2_000_000


def row_group_rows(rows: int) -> int:
    """Rows in each row group of a split of `rows`: a sixteenth, and never more than 100,000."""
    return max(1, min(LARGEST_ROW_GROUP, -(-rows // ROW_GROUPS)))


class SplitWriter:
    """Writes `part-0.parquet`, `part-1.parquet`, … in a folder that it makes, one row group a block."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir()
        self._folder, self._schema = folder, schema
        self._parts, self.rows = 1, 0
        self._file = _open(folder, 0, schema)

    def write(self, block: pa.Table) -> None:
        """Add a block; one with other columns than the schema's is a fault of the caller."""
        if self.rows >= self._parts * ROWS_A_FILE:
            self._file.close()
            self._file = _open(self._folder, self._parts, self._schema)
            self._parts += 1
        self._file.write_table(block, row_group_size=max(1, block.num_rows))
        self.rows += block.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_split(folder: Path, schema: pa.Schema, blocks: Iterable[pa.Table]) -> int:
    """Write all blocks of a split.

    Args:
        folder: is made; a split with no block gets one file of 0 rows, so that its schema stands.
        schema: of every file.
        blocks: consumed one at a time, so memory holds one.

    Returns:
        The number of rows written.
    """
    with SplitWriter(folder, schema) as split:
        for block in blocks:
            split.write(block)
    return split.rows


def id_lists(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> pa.ListArray:
    """A column of lists: row `i` holds `values[offsets[i]:offsets[i + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values), type=ID_LIST)


def _open(folder: Path, part: int, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(folder / f"part-{part}.parquet", schema, compression="zstd", write_page_checksum=True)
