"""Recommendations for every query of a split, as Parquet: what a nightly job hands on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.data import Dataset, Reader, open_dataset
from distrec.dist import Ranks, of_all_ranks, together
from distrec.engine import Engine, open_reader
from distrec.errors import UserError
from distrec.log import logger
from distrec.parts import filled_by_all
from distrec.recall.index import VectorIndex
from distrec.recall.queries import retrieval_of
from distrec.recall.search import recommend
from distrec.retrieval.evaluate import Queries, collect_queries
from distrec.retrieval.retriever import TARGETS, query_use
from distrec.trained import scoring

KIND = "distrec recall --all"
ITEMS, SCORES = "items", "scores"
LISTS = "lists"  # a folder of its own, for readers of Parquet take every file of a folder for a part


@dataclass(frozen=True)
class Recommended:
    """What was written."""

    folder: Path
    facts: dict[str, Any]  # the manifest


def recommend_all(engine: Engine, index: VectorIndex, split: str, k: int, ranks: Ranks, out: Path) -> Recommended:
    """Write the best k items of each query of a split, a Parquet part a rank. Every rank must call it.

    A part has the column that `retrieval.query_id` names, `items` (the user's own ids, best first) and `scores`. Queries stand
    in the order of the data, which need no targets; what `retrieval.mask` hides is left out; a list is shorter than k where the
    index finds no more.

    Raises:
        UserError: no such rows, no column that names a query, or a folder that holds something else or cannot be written.
    """
    named = together(lambda: _names(engine, split))
    reader = open_reader(engine, split, leave_out=[TARGETS])
    with filled_by_all(out, KIND, ranks) as (folder, facts):
        part = _Part(folder, ranks.rank, named, reader)
        for queries in collect_queries(scoring(engine)(reader)):
            together(partial(part.write, queries, index, k))  # else the folder would go while other ranks write into it
            if ranks.first:
                logger.info("%s of about %s queries", f"{part.rows * ranks.world:,}", f"{reader.dataset.rows:,}")
        parts = of_all_ranks(together(part.close))
        facts |= {"model": index.facts["model"], "index": {name: index.facts[name] for name in ("factory", "parameters")}}
        facts |= {"split": split, "query": named.schema.names[0], "k": k, "parts": [found["file"] for found in parts]}
        facts |= {name: sum(found[name] for found in parts) for name in ("rows", "short", "zero")}
    return Recommended(out, facts)


def _names(engine: Engine, split: str) -> Dataset:
    """The column that names the queries of a split."""
    config, use = engine.config, query_use(retrieval_of(engine.config))
    if not (paths := getattr(config.data, split)):
        raise UserError(f"the run has no data.{split}; name the queries: distrec recall RUN --all {split} data.{split}=PATH")
    if use is None:
        raise UserError('--all needs the column that names a query: set retrieval.query_id = "raw_user_id", say')
    return open_dataset(paths, [use], config.data.retries, f"data.{split}")


class _Part:
    """This rank's file."""

    def __init__(self, folder: Path, rank: int, named: Dataset, reader: Reader):
        self._file, self._column = f"{LISTS}/part-{rank:05d}.parquet", named.schema.field(0)
        self._path, self._writer = folder / self._file, None
        self._path.parent.mkdir(exist_ok=True)
        self._names = _Stream(named.read(reader.pieces(), reader.data.verify_checksums), self._column.type)
        self.rows = self._short = self._zero = 0

    def write(self, queries: Queries, index: VectorIndex, k: int) -> None:
        """Append what is found for some queries."""
        vectors = queries.vectors.cpu().numpy()
        values, offsets = (side.cpu().numpy() for side in queries.mask)
        scores, rows = recommend(index, vectors, k, (values, offsets))
        found = rows >= 0
        ends = pa.array(np.concatenate([[0], found.sum(1).cumsum()]), pa.int64())
        lists = [index.ids.take(pa.array(rows[found])), pa.array(scores[found], pa.float32())]
        columns = [self._names.take(len(vectors)), *(pa.LargeListArray.from_arrays(ends, values) for values in lists)]
        table = pa.table(columns, names=[self._column.name, ITEMS, SCORES])
        self._writer = self._writer or pq.ParquetWriter(self._path, table.schema, compression="zstd", write_page_checksum=True)
        self._writer.write_table(table)
        self.rows, self._zero = self.rows + len(vectors), self._zero + int((vectors == 0).all(1).sum())
        self._short += int((found.sum(1) < k).sum())

    def close(self) -> dict[str, Any]:
        """End the file, and say what is in it."""
        if self._writer is not None:
            self._writer.close()
        return {"file": self._file, "rows": self.rows, "short": self._short, "zero": self._zero}


class _Stream:
    """The values of a column, as many at a time as are asked for."""

    def __init__(self, parts: Iterator[pa.RecordBatch], kind: pa.DataType):
        self._parts, self._held = parts, pa.array([], kind)

    def take(self, count: int) -> pa.Array:
        """The next `count`."""
        held, size = [self._held], len(self._held)
        while size < count:
            held.append(next(self._parts).column(0))
            size += len(held[-1])
        values = pa.concat_arrays(held)
        self._held = values.slice(count)
        return values.slice(0, count)
