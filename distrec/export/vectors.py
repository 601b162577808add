"""A retriever's vectors, as each rank computes its share of them: items to index, queries to measure an index with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distrec.data import Reader
from distrec.data.catalogue import Catalogue, CatalogueReader
from distrec.dist import Ranks, refuse
from distrec.metrics.projector import write_projector
from distrec.recall.vectors import LISTS, Vectors, VectorWriter, list_column
from distrec.retrieval.evaluate import collect_queries
from distrec.task import Outputs

Run = Callable[[Reader | CatalogueReader], Iterator[Outputs]]
QUERIES = 10_000  # sampled of all ranks together
PROJECTED = 5_000  # items on TensorBoard's page
STEP_ROWS = 4096  # items that a rank computes at once


def write_items(folder: Path, catalogue: Catalogue, ranks: Ranks, run: Run) -> dict[str, Any]:
    """Write this rank's share of the catalogue, ids and vectors, as it is computed; every rank must call it.

    Returns:
        `file`, `rows`, `dim`, and how many vectors are `zero`, for which every query is as good.

    Raises:
        UserError: a vector is not finite.
    """
    file, first = f"items/part-{ranks.rank:05d}.parquet", catalogue.rows * ranks.rank // ranks.world
    reader = CatalogueReader(catalogue, ranks.rank, ranks.world, STEP_ROWS)
    rows = zero = dim = 0
    broken, writer = torch.zeros((), dtype=torch.int64, device=ranks.device), None
    for output in run(reader):
        vectors = output["item"][output["items"] >= 0]
        dim = vectors.shape[1]
        writer = writer or VectorWriter(folder / file, dim, [("id", catalogue.own_ids.type)])
        writer.write(vectors.cpu().numpy(), catalogue.own_ids.slice(first + rows, len(vectors)))
        rows, zero = rows + len(vectors), zero + int((vectors == 0).all(1).sum())
        broken += (~vectors.isfinite().all(1)).sum()
    if writer is not None:
        writer.close()
    dist.all_reduce(broken)
    if broken:
        refuse(
            f"the vectors of {int(broken)} of {catalogue.rows} items are not finite: the model has diverged; use another --step"
        )
    return {"file": file, "rows": rows, "dim": dim, "zero": zero}


def write_queries(folder: Path, reader: Reader, ranks: Ranks, run: Run, dim: int) -> dict[str, Any]:
    """Write a sample of a split's queries: every so many of this rank's, with `targets` and what is `hidden` from them."""
    file = f"queries/part-{ranks.rank:05d}.parquet"
    every = max(1, -(-reader.dataset.rows // QUERIES))
    seen = rows = 0
    with VectorWriter(folder / file, dim, [("targets", LISTS), ("hidden", LISTS)]) as writer:
        for part in collect_queries(run(reader)):
            chosen = np.flatnonzero((np.arange(len(part)) + seen) % every == 0)
            seen, rows = seen + len(part), rows + len(chosen)
            lists = [list_column(*_arrays(side)).take(chosen) for side in (part.targets, part.mask)]
            writer.write(part.vectors.cpu().numpy()[chosen], *lists)
    return {"file": file, "rows": rows}


def write_item_queries(folder: Path, items: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """For a run without rows to evaluate on: some of this rank's own items stand in for queries; nothing is to be found."""
    file = f"queries/part-{ranks.rank:05d}.parquet"
    own = Vectors((folder / items["file"],), items["dim"], items["rows"])
    vectors = own.take(own.draw(QUERIES // ranks.world, seed=0))
    none = list_column(np.zeros(0, np.int64), np.zeros(len(vectors) + 1, np.int64))
    with VectorWriter(folder / file, items["dim"], [("targets", LISTS), ("hidden", LISTS)]) as writer:
        writer.write(vectors, none, none)
    return {"file": file, "rows": len(vectors)}


def write_page(folder: Path, catalogue: Catalogue, parts: list[Path], dim: int) -> int:
    """A sample of items on TensorBoard's projector, with titles and categories; returns how many."""
    every = Vectors(tuple(parts), dim, catalogue.rows)
    rows = every.draw(PROJECTED, seed=0)
    columns = {"title": catalogue.titles, "id": catalogue.own_ids, "category": catalogue.categories}
    known = {name: column for name, column in columns.items() if column is not None}
    texts = [["" if value is None else str(value) for value in column.take(rows).to_pylist()] for column in known.values()]
    write_projector(folder, torch.from_numpy(every.take(rows)), list(known), list(zip(*texts, strict=True)))
    return len(rows)


def _arrays(lists: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    return lists[0].cpu().numpy(), lists[1].cpu().numpy()
