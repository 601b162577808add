"""Real rows: 64-bit hashed ids with nulls and float columns with nulls, against Arrow's own reading of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from parquet_files import lists
from test_data_hashing import reference_row

from distrec.config.layout import layout
from distrec.config.schema import Data, DenseFeature, Features, SparseFeature, Table, Task
from distrec.data import Reader, open_dataset, uses

DENSE = tuple(DenseFeature(name=f"i{i}", null=-1.0, transform="signed_log1p") for i in range(1, 14))
SPARSE = tuple(SparseFeature(name=f"c{i}", table="c", ids="hash") for i in range(1, 27))
LAYOUT = layout(Features(dense=DENSE, sparse=SPARSE), {"c": Table(rows=100_000, dim=4)})


@pytest.fixture(scope="module")
def folder() -> Path:
    if not (root := os.environ.get("DISTREC_DATA")):
        pytest.skip("needs the Criteo sample; set DISTREC_DATA")
    return Path(root) / "criteo-tb-80k"


def reader(folder: Path, **options) -> Reader:
    data, tasks = Data(train=str(folder), batch_size=8192), (Task(),)
    return Reader(open_dataset(data.train, uses(data, LAYOUT, tasks)), data, LAYOUT, tasks, **options)


def test_two_ranks_read_what_arrow_reads(folder):
    table = pq.read_table(folder)
    batches = [b for rank in (0, 1) for b in reader(folder, rank=rank, world=2).batches(epochs=1)]
    dense = np.concatenate([b.dense.numpy() for b in batches])
    raw = np.stack([table.column(f.name).fill_null(-1.0).to_numpy() for f in DENSE], axis=1).astype(np.float64)
    expected = np.sign(raw) * np.log1p(np.abs(raw))
    assert dense.shape == expected.shape == (80_000, 13)
    np.testing.assert_allclose(np.sort(dense, axis=0), np.sort(expected, axis=0), rtol=1e-6)
    assert sum(b.labels.sum().item() for b in batches) == sum(table.column("label").to_pylist())
    assert [sum(len(b.sparse[f.name].values()) for b in batches) for f in SPARSE] == [
        len(table) - table.column(f.name).null_count for f in SPARSE
    ]


def test_ids_are_hashed_row_by_row(folder):
    first = next(reader(folder, rank=0, world=1, shuffle=False).batches(epochs=1))
    table = pq.read_table(folder / "part-0.parquet").slice(0, 500)
    for feature in SPARSE:
        expected = [[] if k is None else [reference_row(k, 100_000)] for k in table.column(feature.name).to_pylist()]
        assert lists(first.sparse, feature.name)[:500] == expected
