"""An export's vectors may be more than a machine holds: what reads them keeps no more than a block."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from distrec.recall.vectors import Vectors, VectorWriter

ROWS, DIM, BLOCK = 40_000, 64, 1000
SIZE = ROWS * DIM * 4


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """One part of 10 MB, which does not compress, in row groups of a block."""
    path, draw = tmp_path_factory.mktemp("vectors") / "part.parquet", np.random.default_rng(0)
    with VectorWriter(path, DIM, [("id", pa.int64())]) as writer:
        for low in range(0, ROWS, BLOCK):
            writer.write(draw.normal(size=(BLOCK, DIM)), pa.array(range(low, low + BLOCK)))
    assert path.stat().st_size > 0.9 * SIZE
    return Vectors((path,), DIM, ROWS)


def test_a_part_is_read_block_by_block_and_none_is_kept(vectors: Vectors) -> None:
    before, most, blocks = pa.total_allocated_bytes(), 0, 0
    for _ in vectors.blocks(BLOCK):
        most, blocks = max(most, pa.total_allocated_bytes() - before), blocks + 1
    assert blocks == ROWS // BLOCK
    assert most < SIZE / 4
