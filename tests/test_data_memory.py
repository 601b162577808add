"""Memory that is used again from window to window: no batch may see what is written there later."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import lists
from test_data_hashing import reference_row

from distrec.config.layout import layout
from distrec.config.schema import Data, DenseFeature, Features, SparseFeature, Table, Task
from distrec.data import Reader, open_dataset, uses
from distrec.data.scratch import Scratch

ROWS = 200
WORDS = ("ann", "bob", None, "cid")


def expected(row: int) -> dict[str, list[int]]:
    """The ids of each feature, from the row's number."""
    word = WORDS[row % 4]
    return {
        "scalar": [] if row % 3 == 0 else [row],
        "narrow": [] if row % 7 == 0 else [row % 50],
        "hashed": [] if row % 5 == 0 else [reference_row(row - 100, 1000)],
        "list": list(range(row % 4)),
        "word": [] if word is None else [reference_row(word, 1000)],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Row groups of 7 rows, so that windows and row groups never end together."""
    rows = range(ROWS)
    columns = {
        "x": pa.array([None if r % 6 == 0 else r for r in rows], pa.float32()),
        "row": pa.array(rows, pa.int64()),
        "flag": pa.array([r % 2 == 0 for r in rows]),
        "label": pa.array([r % 2 for r in rows], pa.int8()),
        "scalar": pa.array([None if r % 3 == 0 else r for r in rows], pa.int64()),
        "narrow": pa.array([None if r % 7 == 0 else r % 50 for r in rows], pa.uint16()),
        "hashed": pa.array([None if r % 5 == 0 else r - 100 for r in rows], pa.int64()),
        "list": pa.array([list(range(r % 4)) for r in rows], pa.list_(pa.int32())),
        "word": pa.array([WORDS[r % 4] for r in rows]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=7)
    return tmp_path


def reader(folder: Path, shuffle: bool, rank: int = 0, world: int = 1) -> Reader:
    names = ("scalar", "narrow", "hashed", "list", "word")
    hashed = {"hashed", "word"}
    features = Features(
        dense=(DenseFeature(name="row"), DenseFeature(name="x", null=-1.0), DenseFeature(name="flag")),
        sparse=tuple(SparseFeature(name=n, table="t", ids="hash" if n in hashed else "index") for n in names),
    )
    data = Data(train=str(folder), batch_size=8, shuffle_window=24, shuffle=shuffle)
    order = layout(features, {"t": Table(rows=1000, dim=4)})
    dataset = open_dataset(data.train, uses(data, order, (Task(),)))
    return Reader(dataset, data, order, (Task(),), rank=rank, world=world)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_that_are_kept_stay_as_they_were(folder: Path, shuffle: bool) -> None:
    batches = list(reader(folder, shuffle).batches(epochs=2))  # all windows are encoded before any batch is looked at
    seen = []
    for batch in batches:
        ids = {name: lists(batch.sparse, name) for name in batch.sparse.keys()}  # noqa: SIM118
        for i, (row, x, flag) in enumerate(batch.dense.tolist()):
            if not batch.weights[i]:
                continue
            assert x == (-1.0 if row % 6 == 0 else row)
            assert flag == batch.labels[i, 0] * -1 + 1
            assert {name: found[i] for name, found in ids.items()} == expected(int(row))
            seen.append(int(row))
    assert sorted(seen) == sorted([*range(ROWS)] * 2)
    assert (seen == [*range(ROWS)] * 2) == (not shuffle)


def test_a_batch_that_is_kept_keeps_no_other(folder: Path) -> None:
    first, *_ = reader(folder, shuffle=True).batches(epochs=1)
    for part in (first.dense, first.labels, first.sparse.values(), first.sparse.lengths()):
        assert part.untyped_storage().nbytes() == part.nbytes


def test_a_batch_may_be_written_to_without_touching_its_neighbours(folder: Path) -> None:
    first, second, *_ = reader(folder, shuffle=False).batches(epochs=1)
    before = second.dense.clone(), second.sparse.values().clone(), second.sparse.lengths().clone()
    for part in (first.dense, first.sparse.values(), first.sparse.lengths(), first.labels, first.weights):
        part.fill_(99)
    for now, then in zip((second.dense, second.sparse.values(), second.sparse.lengths()), before, strict=True):
        assert now.equal(then)


def test_padding_rows_are_empty_whatever_the_memory_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrec.data.encoded.fresh", lambda shape, dtype: np.full(shape, 99, dtype))
    *_, last = reader(folder, shuffle=True, rank=0, world=3).batches(epochs=1)  # 66 rows, where others have 67
    assert last.weights.tolist() == [1, 1, 0]
    assert last.dense[2].tolist() == [0, 0, 0]
    assert last.labels[2].tolist() == [0]
    assert last.sparse.lengths().view(5, 3)[:, 2].tolist() == [0] * 5


def test_scratch_gives_the_same_memory_again_and_more_when_asked() -> None:
    scratch = Scratch()
    first = scratch.lasting("a", 10, np.int64)
    assert np.shares_memory(first, scratch.lasting("a", 20, np.int32))
    assert not np.shares_memory(first, scratch.lasting("b", 10, np.int64))
    assert scratch.lasting("a", 100, np.float32).shape == (100,)


def test_what_passes_is_shared_within_a_thread_and_with_no_other() -> None:
    passing, found = threading.local(), []
    one, other = Scratch(passing), Scratch(passing)
    mine = one.passing("a", 10, np.int64)
    assert np.shares_memory(mine, other.passing("a", 10, np.int64))
    assert not np.shares_memory(mine, one.lasting("a", 10, np.int64))
    thread = threading.Thread(target=lambda: found.append(one.passing("a", 10, np.int64)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, found[0])
