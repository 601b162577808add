"""TensorBoard's page of items: who they are, each beside its own vector, and no more of them than a browser can move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrec.export.vectors import write_page
from distrec.metrics.projector import write_projector
from distrec.recall.vectors import VectorWriter

DIM = 3


def page(folder: Path, count: int, **words: Sequence[str | None]) -> tuple[int, list[list[str]], np.ndarray]:
    """How many items the page of a catalogue says it has, its lines, the header first, and its vectors.

    Item i of the catalogue has the id `i<i>` and the vector (i, -i, i / 2); the vectors lie in two parts.
    """
    number, parts = np.arange(count), [folder / "part-0.parquet", folder / "part-1.parquet"]
    vectors = np.stack([number, -number, number / 2], axis=1).astype(np.float32)
    for path, rows in zip(parts, np.array_split(number, 2), strict=True):
        with VectorWriter(path, DIM, [("id", pa.string())]) as writer:
            writer.write(vectors[rows], pa.array([f"i{i}" for i in rows]))
    columns: dict[str, Any] = {"titles": None, "categories": None} | {name: pa.array(column) for name, column in words.items()}
    own_ids = pa.array([f"i{i}" for i in number])
    told = write_page(folder / "page", SimpleNamespace(rows=count, own_ids=own_ids, **columns), parts, DIM)  # type: ignore[arg-type]
    (metadata,), (tensors,) = ([*(folder / "page").rglob(name)] for name in ("metadata.tsv", "tensors.tsv"))
    return told, [line.split("\t") for line in metadata.read_text().splitlines()], np.loadtxt(tensors, ndmin=2)


def test_an_item_has_its_title_its_id_and_its_category_beside_its_vector(tmp_path: Path) -> None:
    titles, categories = [f"Item {i}" for i in range(30)], [f"kind {i % 4}" for i in range(30)]
    told, lines, vectors = page(tmp_path, 30, titles=titles, categories=categories)
    assert told == 30
    assert lines[0] == ["title", "id", "category"]
    assert lines[1:] == [[f"Item {i}", f"i{i}", f"kind {i % 4}"] for i in range(30)]
    np.testing.assert_allclose(vectors, [[i, -i, i / 2] for i in range(30)])


def test_a_category_stands_there_without_a_title(tmp_path: Path) -> None:
    _, lines, _ = page(tmp_path, 4, categories=["a", None, "a", "c"])
    assert lines == [["id", "category"], ["i0", "a"], ["i1", "-"], ["i2", "a"], ["i3", "c"]]


def test_ids_alone_have_no_header(tmp_path: Path) -> None:
    """TensorBoard takes the first line of a single column for an item."""
    _, lines, _ = page(tmp_path, 3)
    assert lines == [["i0"], ["i1"], ["i2"]]


def test_of_more_items_than_a_browser_can_move_5000_are_drawn(tmp_path: Path) -> None:
    count = 5100
    told, (header, *lines), vectors = page(tmp_path, count, categories=[f"kind {i % 4}" for i in range(count)])
    assert told == len(lines) == len(vectors) == 5000
    assert header == ["id", "category"]
    number = vectors[:, 0].astype(int)
    assert len(set(number.tolist())) == 5000
    assert number.max() >= 5000  # not the first ones: a catalogue often begins with what is oldest, or what sells
    np.testing.assert_allclose(vectors, np.stack([number, -number, number / 2], axis=1))
    assert lines == [[f"i{i}", f"kind {i % 4}"] for i in number]


@pytest.mark.parametrize(("title", "shown"), [("a\tb", "a b"), ("a\n b\r\n", "a b"), ("", "-"), (" ", "-")])
def test_a_title_stays_in_its_cell(title: str, shown: str, tmp_path: Path) -> None:
    write_projector(tmp_path / "page", torch.eye(2), ["title", "id"], [[title, "7"], ["plain", "8"]])
    (metadata,) = (tmp_path / "page").rglob("metadata.tsv")
    assert metadata.read_text().splitlines() == ["title\tid", f"{shown}\t7", "plain\t8"]
