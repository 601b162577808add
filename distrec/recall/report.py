"""How good an index is: against exact search over the same vectors, and against what users went for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch

from distrec.metrics.retrieval import RetrievalMetrics
from distrec.recall.auto import Point, measure, overlap, timed
from distrec.recall.index import VectorIndex
from distrec.recall.search import recommend
from distrec.recall.vectors import Export
from distrec.retrieval.exact import top_k

BATCH_S = 3  # timings of a batch; the best counts
SCANNED_BYTES = 2**33  # of vectors, for the scan that an index is compared with
ALONE = 200  # queries that are asked one at a time


@dataclass(frozen=True)
class Held:
    """Queries that nothing was tuned on."""

    vectors: np.ndarray  # (B, dim)
    truth: np.ndarray  # (B, k) what exact search finds among all items
    targets: tuple[np.ndarray, np.ndarray]  # rows of the catalogue (N,), offsets (B + 1,)
    hidden: tuple[np.ndarray, np.ndarray]


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of so many queries, those to tune on and those to measure with; of a single one, both are that one."""
    rows = np.arange(count)
    return (rows[::2], rows[1::2]) if count > 1 else (rows, rows)


def hold(export: Export, rows: np.ndarray, k: int) -> Held:
    """These of the exported queries, and what exact search finds for them: k items, or all where there are fewer."""
    vectors = np.concatenate([block.numpy() for _, block in export.queries.blocks()])[rows]
    found = top_k(torch.from_numpy(vectors), export.items, min(k, export.items.rows))
    targets, hidden = (_lists(export.queries.column(name).take(pa.array(rows))) for name in ("targets", "hidden"))
    return Held(vectors, found.items.numpy(), targets, hidden)


def measure_index(index: VectorIndex, export: Export, held: Held, ks: Sequence[int], points: Sequence[Point]) -> dict[str, Any]:
    """All that the report says of an index.

    Returns:
        `recall@k` against exact search; `model` and `model_through_index`, the model's metrics on the held queries by exact
        search and by the index; `qps` by threads, in a batch and one at a time, beside `flat_qps`, that of a scan by Faiss;
        and the `curve`, points of `points` that no other beats, measured anew.
    """
    parameters = index.facts["parameters"]
    depth = [k for k in sorted({*ks, held.truth.shape[1]}) if k <= held.truth.shape[1]]
    _, found = index.search(held.vectors, depth[-1])
    recall = {f"recall@{k}": overlap(found[:, :k], held.truth[:, :k]) for k in depth}
    qualities = {"model": _exact_quality(export, held, ks), "model_through_index": _quality(index, held, ks)}
    scan = _flat(export, index)
    speeds = {"qps": speed(index, held, depth[-1]), "flat_qps": {} if scan is None else speed(scan, held, depth[-1])}
    curve = [asdict(measure(index, p.parameters, held.vectors, held.truth)) for p in unbeaten(points)]
    index.tune(parameters)
    return {"k": depth[-1], "queries": len(held.vectors), **recall, **qualities, **speeds, "curve": curve}


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """Those that no other is at least as good as and faster; by recall."""
    ordered, best = sorted(points, key=lambda p: (-p.qps, -p.recall)), -1.0
    kept = []
    for point in ordered:
        if point.recall > best:
            kept.append(point)
            best = point.recall
    return kept


def speed(index: VectorIndex, held: Held, k: int) -> dict[str, dict[str, float]]:
    """Queries a second: `{"1": {"batch": …, "single": …}, "8": …}` by number of threads, 1 and all."""
    usual, found = faiss.omp_get_max_threads(), {}
    for threads in sorted({1, processors()}):
        faiss.omp_set_num_threads(threads)
        batch = min(timed(index, held.vectors, k)[0] for _ in range(BATCH_S))
        alone = sum(timed(index, query[None], k)[0] for query in held.vectors[:ALONE])
        rates = {"batch": len(held.vectors) / batch, "single": min(ALONE, len(held.vectors)) / alone}
        found[str(threads)] = {name: round(rate, 1) for name, rate in rates.items()}
    faiss.omp_set_num_threads(usual)
    return found


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _flat(export: Export, index: VectorIndex) -> VectorIndex | None:
    """A scan of all vectors, by Faiss; None where they would take too much memory."""
    if 4 * export.items.rows * export.items.dim > SCANNED_BYTES:
        return None
    scan = faiss.IndexFlatIP(export.items.dim)
    for _, block in export.items.blocks():
        scan.add(block.numpy())
    return VectorIndex(scan, index.ids, {"parameters": ""})


def _exact_quality(export: Export, held: Held, ks: Sequence[int]) -> dict[str, float]:
    queries, hidden = torch.from_numpy(held.vectors), (torch.from_numpy(held.hidden[0]), torch.from_numpy(held.hidden[1]))
    found = top_k(queries, export.items, max(ks), hidden)
    return _score(found.items.numpy(), held, ks, export.items.rows)


def _quality(index: VectorIndex, held: Held, ks: Sequence[int]) -> dict[str, float]:
    return _score(recommend(index, held.vectors, max(ks), held.hidden)[1], held, ks, len(index.ids))


def _score(found: np.ndarray, held: Held, ks: Sequence[int], items: int) -> dict[str, float]:
    metrics = RetrievalMetrics(ks, items)
    metrics.update(torch.from_numpy(found), *(torch.from_numpy(part) for part in held.targets))
    return metrics.compute()


def _lists(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.flatten().to_numpy().astype(np.int64), offsets - offsets[0]
