"""Vectors in Parquet parts: written by the ranks that computed them, read block by block, never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distrec.errors import UserError
from distrec.seal import unseal, verify

ROW_GROUP = 2**15  # as many as `distrec.retrieval.exact` scores at once
LISTS = pa.list_(pa.int64())
EXPORT = "distrec export"
REMEDY = "export the run again: distrec export RUN"


class VectorWriter:
    """A part: a column `vector` of fixed-size lists of float32, beside other columns."""

    def __init__(self, path: Path, dim: int, beside: Sequence[tuple[str, pa.DataType]]):
        """Begin the file; `beside` are the other columns."""
        self._schema = pa.schema([*beside, ("vector", pa.list_(pa.float32(), dim))])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False, write_page_checksum=True)

    def write(self, vectors: np.ndarray, *beside: pa.Array) -> None:
        """Append rows: `vectors` (n, dim) float32."""
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        self._file.write_table(pa.table([*beside, column], schema=self._schema), row_group_size=ROW_GROUP)

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Vectors:
    """Parts on disk, one after another. As a catalogue for `distrec.retrieval.exact.top_k`, it need not fit in memory."""

    parts: tuple[Path, ...]
    dim: int
    rows: int

    def blocks(self, rows: int = ROW_GROUP) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, as (the first one's number, vectors (b, dim) float32), at most `rows` of them each."""
        first = 0
        for part in self._batches(rows, ["vector"]):
            yield first, torch.from_numpy(_matrix(part.column("vector")))
            first += part.num_rows

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Numbers of at most `count` rows, drawn without replacement, in order."""
        return np.sort(np.random.default_rng(seed).choice(self.rows, min(count, self.rows), replace=False))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (n, dim) float32 of rows in ascending order."""
        taken = [np.zeros((0, self.dim), np.float32)]
        for first, block in self.blocks():
            inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(block))]
            taken.append(block.numpy()[inside - first])
        return np.concatenate(taken)

    def column(self, name: str) -> pa.Array:
        """All of another column, in order."""
        parts = [part.column(name) for part in self._batches(ROW_GROUP, [name])]
        return pa.chunked_array(parts).combine_chunks()

    def _batches(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for path in self.parts:
            # A buffer would keep all that it has read, up to the end of the part.
            with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
                yield from file.iter_batches(rows, columns=columns)


@dataclass(frozen=True)
class Export:
    """What `distrec export` left of a retriever, as far as an index needs it."""

    folder: Path
    items: Vectors  # column `id` beside the vectors
    queries: Vectors  # columns `targets` and `hidden`, lists of rows of `items`
    facts: dict[str, Any]  # the manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open and verify.

        Raises:
            UserError: there is no export, a file is damaged, or it is that of a ranker, which has no vectors.
        """
        facts = unseal(folder, EXPORT, REMEDY)
        if "items" not in facts:
            raise UserError(f"{folder} is the export of a ranker, which scores pairs and has no item vectors to index")
        names = [name for kind in ("items", "queries") for name in facts[kind]["parts"]]
        verify(folder, facts["files"], names, REMEDY)
        items, queries = (_vectors(folder, facts[kind], facts["dim"]) for kind in ("items", "queries"))
        return cls(folder, items, queries, facts)

    @property
    def model(self) -> dict[str, Any]:
        """Which model it is of: run, config hash, step, checkpoint."""
        return self.facts["model"]

    @property
    def own_id(self) -> str | None:
        """The catalogue's column that the ids are of; None for an export of an older distrec, which does not say."""
        return self.facts.get("items", {}).get("own_id")


def _vectors(folder: Path, facts: dict[str, Any], dim: int) -> Vectors:
    return Vectors(tuple(folder / name for name in facts["parts"]), dim, facts["rows"])


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """(n, dim), a view of the column's memory where it may be written, else a copy."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.require(values.reshape(len(column), -1), np.float32, ["C", "W"])


def list_column(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    """Lists of int64: row i holds `values[offsets[i]:offsets[i + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.astype(np.int64)), type=LISTS)
