"""A Faiss index of a run's items: built part by part from its export, sealed on disk, searched for the user's own ids."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.errors import UserError
from distrec.log import logger
from distrec.recall.factory import EXAMPLES, FEWEST_A_LIST, lists_for, lists_of, make, reason
from distrec.recall.vectors import ROW_GROUP, Vectors
from distrec.seal import checksum, refuse_to_replace, replacing, seal, unseal, verify

KIND = "distrec index"
FILE = "index.faiss"
IDS = "ids.parquet"
REMEDY = "build it again: distrec index RUN"
SAMPLE_BYTES = 2**30  # of vectors that an index learns from
A_LIST = 256  # and at most so many a list, which is where Faiss stops too
ADD_BYTES = 2**28  # of vectors added at once: the larger the part, the better a graph that grows by parts
UNTRAINED = 2**16  # sample for an index without lists: codes need no more


@dataclass
class VectorIndex:
    """Items by inner product. What it finds are places, which `ids` turns into the user's own ids."""

    index: Any  # faiss.Index
    ids: pa.Array
    facts: dict[str, Any]  # the manifest: model, dim, rows, factory, parameters, …

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B, k), best first, and rows of the catalogue (B, k) int64, -1 where nothing more was found.

        Raises:
            UserError: the queries (B, dim) are of another dim, not finite, or k is larger than the catalogue.
        """
        self.require(queries, k)
        return self.index.search(np.ascontiguousarray(queries, np.float32), k)

    def require(self, queries: np.ndarray, k: int) -> None:
        """Raise a `UserError` for what `search` refuses."""
        if queries.shape[1] != self.index.d:
            raise UserError(f"queries of dim {queries.shape[1]} and an index of dim {self.index.d}: they are of two models")
        if not 0 < k <= len(self.ids):
            raise UserError(f"k = {k} and the index has {len(self.ids):,} items: k is from 1 to that")
        if not np.isfinite(queries).all():
            row = int(np.argmin(np.isfinite(queries).all(1)))
            raise UserError(f"query {row}: its vector is not finite, so that nothing is near it; the model may have diverged")

    def require_model(self, model: Mapping[str, Any], folder: Path) -> None:
        """Raise a `UserError` when the index was built from another model's vectors, or other weights of it."""
        if differing := differences(self.facts["model"], model):
            raise UserError(f"the index in {folder} is of another model ({differing}); {REMEDY}")

    def require_items(self, ids: pa.Array, column: str, folder: Path) -> None:
        """Raise a `UserError` when a catalogue's items are not those of the index, stand in another order, or answer otherwise.

        `column` is the catalogue's column that `ids` are of.
        """
        if (known := self.facts.get("own_id", column)) != column:
            raise UserError(
                f"the index in {folder} answers with column {known!r} of retrieval.items, and now {column!r} is asked for: set "
                f"retrieval.own_id={known}, or export the run with the other and index it again"
            )
        here, there = (each.cast(pa.large_string()) for each in (self.ids, ids))
        if not here.equals(there):
            raise UserError(
                f"the index in {folder} is of another catalogue: retrieval.items has other items now, or in another order; "
                "export the run and index it again"
            )

    def tune(self, parameters: str) -> None:
        """Set search parameters, `nprobe=32,k_factor_rf=4` say; an empty text sets none."""
        if parameters:
            faiss.ParameterSpace().set_index_parameters(self.index, parameters)
        self.facts["parameters"] = parameters

    def save(self, folder: Path) -> int:
        """Write the index, its ids and its manifest, in place of an index that is there; returns the bytes of the index.

        Raises:
            UserError: it cannot be written, or the folder is something else's.
        """
        refuse_to_replace(folder, KIND)
        try:
            with replacing(folder.resolve()) as partial:  # of two that are built at once the last one stays, whole
                faiss.write_index(self.index, str(partial / FILE))
                pq.write_table(pa.table({"id": self.ids}), partial / IDS, write_page_checksum=True)
                files = {name: checksum(partial / name) for name in (FILE, IDS)}
                seal(partial, KIND, self.facts, files)
        except (OSError, RuntimeError) as error:
            raise UserError(f"the index cannot be written to {folder}: {error}") from None
        return files[FILE][0]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an index whose files are as its manifest says.

        Raises:
            UserError: there is none, or a file is cut short or damaged.
        """
        facts = unseal(folder, KIND, "build one: distrec index RUN")
        verify(folder, facts["files"], facts["files"], REMEDY)
        try:
            index = faiss.read_index(str(folder / FILE))
        except RuntimeError as error:
            raise UserError(f"{folder / FILE} cannot be read by this Faiss ({reason(error)}); {REMEDY}") from None
        found = cls(index, pq.read_table(folder / IDS).column("id").combine_chunks(), facts)
        found.tune(facts["parameters"])
        return found


def differences(model: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Where what vectors are of differs from what a run says `now`, as `step 10, now 20; …`; empty where it does not."""
    return "; ".join(f"{key} {model.get(key)}, now {value}" for key, value in now.items() if model.get(key) != value)


def build(items: Vectors, factory: str, model: Mapping[str, Any], seed: int = 0) -> VectorIndex:
    """Train on a sample, then add all vectors part by part; on GPUs where this Faiss has them.

    Args:
        items: with a column `id`.
        factory: a Faiss factory string, complete.
        model: which model the vectors are of.
        seed: of the sample.

    Raises:
        UserError: the string is none or makes an index that vectors cannot be added to, or there are too few of them.
    """
    began = time.perf_counter()
    made = make(factory, items.rows, items.dim)
    index = made if made.is_trained else on_gpus(made, factory)  # one that learns nothing is filled as fast
    if not index.is_trained:
        _train(index, lists_of(made), items, factory, seed)
    trained = time.perf_counter()
    _fill(index, items, factory)
    facts = {
        "model": dict(model),
        "metric": "inner_product",
        "dim": items.dim,
        "rows": items.rows,
        "factory": factory,
        "parameters": "",
        "train_s": round(trained - began, 3),
        "add_s": round(time.perf_counter() - trained, 3),
    }
    whole = index if index is made else faiss.index_gpu_to_cpu(index)
    return VectorIndex(whole, items.column("id"), facts)


def sample_rows(lists: int, items: Vectors) -> int:
    """Vectors to learn from."""
    wanted = A_LIST * lists if lists else UNTRAINED
    return min(items.rows, wanted, max(1, SAMPLE_BYTES // (4 * items.dim)))


def on_gpus(index: Any, factory: str) -> Any:
    """The index sharded over the GPUs that Faiss sees; itself where it sees none or has no kernels for it."""
    if not faiss.get_num_gpus():
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    try:
        return faiss.index_cpu_to_all_gpus(index, options)
    except RuntimeError as error:
        logger.info("factory %r is built on the CPU: Faiss has no GPU kernels for it (%s)", factory, reason(error))
        return index


def _train(index: Any, lists: int, items: Vectors, factory: str, seed: int) -> None:
    """Faiss cannot tell the `lists` of an index on GPUs."""
    if lists * FEWEST_A_LIST > items.rows:
        logger.warning(
            "factory %r sorts %s vectors into %s lists, and k-means wants %d a list: some will be by chance; IVF%d would fit",
            factory,
            f"{items.rows:,}",
            f"{lists:,}",
            FEWEST_A_LIST,
            lists_for(items.rows),
        )
        if inner := faiss.try_extract_index_ivf(index):
            inner.cp.min_points_per_centroid = 1  # or Faiss says the same again, past the log
    try:
        index.train(items.take(items.draw(sample_rows(lists, items), seed)))
    except RuntimeError as error:
        raise UserError(
            f"factory {factory!r} cannot learn from {items.rows:,} vectors: {reason(error)}; "
            'use one with fewer lists and codes, "Flat" say, or "auto"'
        ) from None


def _fill(index: Any, items: Vectors, factory: str) -> None:
    for part in _joined(items, max(1, ADD_BYTES // (4 * items.dim))):
        try:
            index.add(part)
        except RuntimeError as error:
            raise UserError(
                f"factory {factory!r} makes an index that takes no vectors from distrec: {reason(error)}; try {EXAMPLES}"
            ) from None


def _joined(items: Vectors, rows: int) -> Iterator[np.ndarray]:
    """All vectors in order, in parts of `rows` or little more."""
    held: list[np.ndarray] = []
    for _, block in items.blocks(min(rows, ROW_GROUP)):
        held.append(block.numpy())
        if sum(map(len, held)) >= rows:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
