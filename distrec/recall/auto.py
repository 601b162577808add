"""Search parameters by measurement: the fastest that find enough of what exact search finds, on queries held out for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from distrec.recall.factory import lists_of
from distrec.recall.index import VectorIndex

REFINED = (1, 2, 4, 8, 16)  # candidates re-ranked exactly, as a multiple of k
EFFORTS = sorted({round(2 ** (half / 2)) for half in range(25)})  # 1, 2, 3, 4, 6, 8, … 4096
NARROWEST = 16  # width of a search through a graph
PLATEAU = 0.0005  # recall that a next step must gain to be worth one more
REPEATS = 2  # of a timing; the shortest counts


@dataclass(frozen=True)
class Point:
    """What an index does under some search parameters."""

    parameters: str
    recall: float  # share of the exact best k that it finds
    qps: float  # queries a second, in one batch


def tune(index: VectorIndex, queries: np.ndarray, truth: np.ndarray, target: float) -> list[Point]:
    """Leave the index at the fastest parameters that reach the target recall, or at the best recall; returns all tried.

    Args:
        index: its parameters are changed.
        queries: (B, dim) float32.
        truth: (B, k) the rows that exact search finds.
        target: share of them to find.
    """
    points = list(_climb(index, queries, truth, target))
    enough = [point for point in points if point.recall >= target]
    index.tune(max(enough, key=lambda p: p.qps).parameters if enough else max(points, key=lambda p: p.recall).parameters)
    return points


def efforts(index: Any) -> list[str]:
    """How much of an index to look at, from little to all of it; one empty text where there is no choice."""
    inner = index
    while isinstance(inner, faiss.IndexRefine | faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.base_index if isinstance(inner, faiss.IndexRefine) else inner.index)
    if lists := lists_of(index):
        return [f"nprobe={probes}" for probes in EFFORTS if probes < lists] + [f"nprobe={lists}"]
    if isinstance(inner, faiss.IndexHNSW):
        return [f"efSearch={width}" for width in EFFORTS if width >= NARROWEST]
    return [""]


def measure(index: VectorIndex, parameters: str, queries: np.ndarray, truth: np.ndarray) -> Point:
    """Recall of the exact best k (B, k), and speed over all queries at once."""
    index.tune(parameters)
    seconds, found = min((timed(index, queries, truth.shape[1]) for _ in range(REPEATS)), key=lambda run: run[0])
    return Point(parameters, overlap(found, truth), len(queries) / seconds)


def timed(index: VectorIndex, queries: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """Seconds, and the rows found."""
    began = time.perf_counter()
    _, found = index.search(queries, k)
    return time.perf_counter() - began, found


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of each row of `truth` (B, k) that is in the same row of `found`; -1 counts nowhere."""
    hits = [np.isin(exact[exact >= 0], row) for row, exact in zip(found, truth, strict=True)]
    return float(np.mean([row.mean() for row in hits if len(row)]))


def _climb(index: VectorIndex, queries: np.ndarray, truth: np.ndarray, target: float) -> Iterator[Point]:
    """More and more effort, at each with more and more candidates re-ranked, until nothing cheaper is left to find.

    Where the target is reached, more effort can only pay with fewer candidates, and more candidates not at all.
    """
    factors = [f"k_factor_rf={factor}" for factor in REFINED] if isinstance(index.index, faiss.IndexRefine) else [""]
    best = -1.0
    for effort in efforts(index.index):
        before, highest = best, -1.0
        for place, factor in enumerate(factors):
            point = measure(index, ",".join(filter(None, (effort, factor))), queries, truth)
            yield point
            gained, highest = point.recall - highest, max(highest, point.recall)
            if point.recall >= target:
                factors = factors[:place]
                break
            if gained < PLATEAU:
                break
        best = highest
        if not factors or best - before < PLATEAU:
            return
