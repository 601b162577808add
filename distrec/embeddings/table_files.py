"""Embedding tables as Parquet parts: each rank writes the rows and columns that it holds, and nothing is gathered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from distrec.embeddings.quantize import Precision, quantize

BLOCK_ROWS = 2**16  # rows that are quantized and written at once
VALUES = {"fp32": pa.float32(), "fp16": pa.float16(), "int8": pa.uint8()}


def write_parts(
    folder: Path, name: str, rank: int, shards: Sequence[tuple[Tensor, int, int]], precision: Precision
) -> list[dict]:
    """Write a rank's shards of a table, a file each.

    A file has columns `row` (int64, of the table) and `values` (a list of fixed size); with int8 also `scale` and `offset`,
    by which a weight is `value * scale + offset`.

    Args:
        folder: of the export; files lie in `tables/NAME` below it.
        name: of the table.
        rank: this one, for file names.
        shards: each (weights (n, d), first row, first column).
        precision: of the values.

    Returns:
        What the manifest says of each file: `file`, `first_row`, `rows`, `first_column`, `columns`.
    """
    parts = []
    for number, (weights, row, column) in enumerate(shards):
        if not weights.numel():
            continue
        file = f"tables/{name}/part-{rank:05d}-{number}.parquet"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        _write(folder / file, weights, row, precision)
        rows, columns = weights.shape
        parts.append({"file": file, "first_row": row, "rows": rows, "first_column": column, "columns": columns})
    return parts


def own_rows(weights: Tensor, rank: int, world: int) -> tuple[Tensor, int, int]:
    """This rank's share of a table that every rank holds whole."""
    low, high = (len(weights) * r // world for r in (rank, rank + 1))
    return weights[low:high], low, 0


def _write(path: Path, weights: Tensor, first: int, precision: Precision) -> None:
    schema = _schema(weights.shape[1], precision)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True) as file:
        for low in range(0, len(weights), BLOCK_ROWS):
            block = weights[low : low + BLOCK_ROWS].detach().cpu()
            file.write_table(_table(block, first + low, precision, schema))


def _table(weights: Tensor, first: int, precision: Precision, schema: pa.Schema) -> pa.Table:
    rows = quantize(weights, precision)
    columns: list[Any] = [pa.array(np.arange(first, first + len(weights)))]
    columns += [pa.array(part.numpy()) for part in (rows.scale, rows.offset) if part is not None]
    flat = pa.array(rows.values.numpy().reshape(-1), VALUES[precision])
    return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, weights.shape[1])], schema=schema)


def _schema(dim: int, precision: Precision) -> pa.Schema:
    beside = [("scale", pa.float32()), ("offset", pa.float32())] if precision == "int8" else []
    return pa.schema([("row", pa.int64()), *beside, ("values", pa.list_(VALUES[precision], dim))])
