"""What a run of tests/programs/serving.py exported, put together by NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def table(folder: Path, facts: dict[str, Any], name: str) -> np.ndarray:
    """A table put together from its parts; every weight must be there once."""
    whole = np.full((facts["tables"][name]["rows"], facts["tables"][name]["dim"]), np.nan)
    for part in facts["tables"][name]["parts"]:
        read = pq.read_table(folder / part["file"], page_checksum_verification=True)
        values = np.array(read["values"].to_pylist(), np.float64)
        if "scale" in read.column_names:
            values = values * read["scale"].to_numpy()[:, None] + read["offset"].to_numpy()[:, None]
        rows, first = read["row"].to_numpy(), part["first_column"]
        assert np.isnan(whole[rows, first : first + part["columns"]]).all(), "a weight was written twice"
        whole[rows, first : first + part["columns"]] = values
    assert not np.isnan(whole).any()
    return whole


def valid_rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "data/valid").to_pylist()


def ranking(scores: np.ndarray, hidden: list[int]) -> list[int]:
    scores = scores.astype(np.float64)
    scores[hidden] = -np.inf
    return np.lexsort((np.arange(len(scores)), -scores))[: len(scores) - len(set(hidden))].tolist()
