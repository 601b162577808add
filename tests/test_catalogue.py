"""The catalogue: its ids, features by item, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrec.config.layout import layout
from distrec.config.load import parse
from distrec.data.catalogue import Catalogue, CatalogueReader, open_catalogue
from distrec.errors import UserError

COLUMNS: dict[str, Any] = {
    "id": ["b", "a", "d", "c"],
    "genre": pa.array([[0, 1], [], None, [3]], pa.list_(pa.int64())),
    "maker": [4, None, 2, 0],
    "price": [1.0, 2.0, 3.0, 4.0],
    "name": ["B", "A", None, "C"],
    "kind": [10, 20, 30, 40],
    "sold": [3, 0, 1, 5],
}


def opened(tmp_path: Path, files: int = 1, columns: dict[str, Any] | None = None, **retrieval: Any) -> Catalogue:
    table = pa.table(COLUMNS | (columns or {}))
    size = -(-table.num_rows // files)
    for part in range(files):
        pq.write_table(table.slice(part * size, size), tmp_path / f"items-{part}.parquet")
    config = parse(
        {
            "name": "x",
            "data": {"train": "rows"},
            "tables": {name: {"rows": 5, "dim": 4} for name in ("genre", "maker", "user")},
            "features": {
                "dense": ["age", "price"],
                "sparse": [
                    {"name": "maker", "table": "maker"},
                    {"name": "user", "table": "user"},
                    {"name": "genre", "table": "genre", "pooling": "mean"},
                ],
                "sequence": [{"name": "history", "table": "maker", "max_length": 3}],
            },
            "retrieval": {
                "items": str(tmp_path),
                "item_id": "id",
                "item_features": ["price", "genre", "maker"],
                "title": "name",
                "category": "kind",
                "train_count": "sold",
            }
            | retrieval,
            "model": {"name": "two_tower"},
        }
    )
    assert config.retrieval is not None
    return open_catalogue(config.retrieval, config.data, layout(config.features, config.tables))


def ids_of(batch: Any, name: str) -> list[list[int]]:
    """A feature's ids, row by row, wherever its lookup is."""
    for keyed in (batch.sparse, batch.sequence):
        if keyed is not None and name in keyed.keys():  # noqa: SIM118
            part = keyed[name]
            return [values.tolist() for values in part.values().split(part.lengths().tolist())]
    raise AssertionError(name)


@pytest.mark.parametrize("files", [1, 3])
def test_any_items_in_any_order_are_a_batch_without_a_query(tmp_path: Path, files: int) -> None:
    catalogue = opened(tmp_path, files)
    batch = catalogue.batch(np.array([3, -1, 0, 0, 2]))
    assert catalogue.rows == 4
    assert ids_of(batch, "genre") == [[3], [], [0, 1], [0, 1], []]
    assert ids_of(batch, "maker") == [[0], [], [4], [4], [2]]
    assert ids_of(batch, "user") == ids_of(batch, "history") == [[]] * 5
    assert batch.dense.tolist() == [[0, 4], [0, 0], [0, 1], [0, 1], [0, 3]]
    assert batch.items is not None
    assert batch.items.tolist() == [3, -1, 0, 0, 2]
    assert (batch.queries, batch.weights.tolist()) == (0, [0] * 5)


def test_ids_are_found_and_what_it_lacks_is_not(tmp_path: Path) -> None:
    catalogue = opened(tmp_path)
    assert catalogue.find(["c", "b", "z", ""]).tolist() == [3, 0, -1, -1]
    assert catalogue.find(pa.array(["d"]).dictionary_encode()).tolist() == [2]
    assert catalogue.find([1, 2]).tolist() == [-1, -1]  # numbers, where ids are text
    assert catalogue.find([]).tolist() == []
    assert catalogue.ids.to_pylist() == COLUMNS["id"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.uint64()])
def test_numbers_are_ids_too(tmp_path: Path, kind: pa.DataType) -> None:
    catalogue = opened(tmp_path, columns={"id": pa.array([70, 5, 9, 1000], kind)})
    assert catalogue.find([1000, 5, 6, 70]).tolist() == [3, 1, -1, 0]
    assert catalogue.find(["70"]).tolist() == [-1]


def test_what_people_know_items_by(tmp_path: Path) -> None:
    catalogue = opened(tmp_path)
    assert catalogue.titles is not None
    assert catalogue.categories is not None
    assert catalogue.titles.to_pylist() == COLUMNS["name"]
    assert catalogue.categories.to_pylist() == ["10", "20", "30", "40"]
    assert catalogue.train_count is not None
    assert catalogue.train_count.tolist() == COLUMNS["sold"]
    bare = opened(tmp_path, title=None, category=None, train_count=None)
    assert (bare.titles, bare.categories, bare.train_count) == (None, None, None)


@pytest.mark.parametrize(
    ("columns", "retrieval", "said"),
    [
        ({"id": ["b", "a", "b", "c"]}, {}, "row 2: item 'b' of column 'id' is there twice"),
        ({"id": ["b", "a", None, "c"]}, {}, "row 2: null, but every item needs an id"),
        ({"id": [1.0, 2.0, 3.0, 4.0]}, {}, "column 'id' (retrieval.item_id) has type double"),
        ({}, {"item_id": "ids"}, "no column 'ids' (retrieval.item_id); did you mean 'id'?"),
        ({"maker": [4, 5, 0, 0]}, {}, "row 1: id 5 is outside [0, 5)"),
        ({"price": [1.0, None, 1.0, 1.0]}, {}, "feature 'price'"),
        ({"sold": [1, -1, 0, 0]}, {}, "retrieval.train_count column 'sold'"),
        ({"sold": [0, 0, 0, 0]}, {}, "column 'sold' is 0 for every item"),
        ({name: pa.array([], pa.table(COLUMNS).schema.field(name).type) for name in COLUMNS}, {}, "no rows in"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, columns: dict, retrieval: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        opened(tmp_path, 1, columns, **retrieval)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value) or "sold" in said


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["p", "q", None, "r"], "retrieval.own_id: column 'own' is null for 1 of 4 items"),
        ([7, 8, 9, 8], "column 'own' has 3 distinct values for 4 items, and answers would not say which item is meant"),
    ],
)
def test_ids_to_answer_with_must_tell_items_apart(tmp_path: Path, ids: list, said: str) -> None:
    assert opened(tmp_path, 2, {"own": ["p", "q", "s", "r"]}, own_id="own").own_ids.to_pylist() == ["p", "q", "s", "r"]
    with pytest.raises(UserError) as error:
        _ = opened(tmp_path, 2, {"own": ids}, own_id="own").own_ids
    assert said in str(error.value)


def test_a_title_column_that_is_not_there_is_named_when_titles_are_asked_for(tmp_path: Path) -> None:
    catalogue = opened(tmp_path, title="nome")
    with pytest.raises(UserError, match=r"no column 'nome' \(retrieval\.title\)"):
        _ = catalogue.titles


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_read_every_item_once_in_as_many_batches_of_as_many_rows(tmp_path: Path, world: int) -> None:
    catalogue = opened(tmp_path)
    shares = [CatalogueReader(catalogue, rank, world, 2) for rank in range(world)]
    batches = [list(share.batches()) for share in shares]
    found = [[int(i) for batch in share for i in batch.items if i >= 0] for share in batches]  # type: ignore[union-attr]
    assert [item for share in found for item in share] == [0, 1, 2, 3]
    assert len({tuple(len(batch.weights) for batch in share) for share in batches}) == 1
    assert {share.steps_per_epoch for share in shares} == {len(batches[0])}
