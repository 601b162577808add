"""Items of the log as rows of the catalogue, and items that are drawn to join a batch."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from single_rank import alone
from small_retrieval import ITEMS, retrieval_values, write_retrieval

from distrec.batch import Batch, Deal, Position
from distrec.config.layout import layout
from distrec.config.load import parse
from distrec.config.retrieval import Negatives
from distrec.data import Reader, open_dataset, uses
from distrec.data.complete import complete, no_items
from distrec.data.negatives import Drawer
from distrec.data.neighbours import Neighbours
from distrec.errors import UserError
from distrec.retrieval.exact import Share
from distrec.retrieval.retriever import MASK, TARGETS, Items, open_items, reading


def read(data: Path, split: str = "train", **retrieval: Any) -> tuple[list[Batch], Items]:
    """The batches of a split, as a run reads them."""
    values = retrieval_values(data, data / "run")
    values["retrieval"] |= retrieval
    values["data"] |= {"train": str(data / split), "shuffle": False}
    config = parse(values)
    assert config.retrieval is not None
    features = layout(config.features, config.tables)
    items = open_items(config, config.retrieval, features, 0)
    how = reading(config.retrieval, items, features, split)
    found = (*uses(config.data, how.present, ()), *(use.use() for use in how.items))
    dataset = open_dataset(config.data.train, found)
    reader = Reader(dataset, config.data, how.present, (), rank=0, world=1, items=how.items, complete=how.complete)
    with closing(reader.batches(epochs=1)) as batches:
        return list(batches), items


@pytest.mark.parametrize(("text", "shared_by", "draws"), [(False, None, (5, 5)), (True, None, (5, 5)), (False, 16, (20, 15))])
def test_a_training_batch_is_its_rows_and_then_its_negatives(
    tmp_path: Path, text: bool, shared_by: int | None, draws: tuple[int, int]
) -> None:
    negatives = {"sampled": 5, "per_row": 2, "column": "negatives", "column_length": 2, "not_in": "others"}
    negatives |= {"shared_by": shared_by}
    data = write_retrieval(tmp_path, rows=100, text=text)
    batches, items = read(data, negatives=negatives)
    log = pa.concat_tables([pa.parquet.read_table(path) for path in sorted((data / "train").glob("*"))])
    first, last = batches
    assert (first.queries, last.queries) == (64, 36)
    for batch, low, drawn in ((first, 0, draws[0]), (last, 64, draws[1])):
        rows = len(batch.weights.nonzero())
        assert batch.items is not None
        assert batch.sequence is not None
        assert len(batch.weights) == rows + drawn + 4 * rows
        assert batch.items[:rows].tolist() == log["item_index"][low : low + rows].to_pylist()
        given = log["negatives"][low : low + rows].to_pylist()
        expected = [items.catalogue.find(row[:2]).tolist() for row in given]
        assert batch.items[rows + drawn + 2 * rows :].view(rows, 2).tolist() == expected
        ids = batch.sequence["item_index"]
        assert ids.lengths().tolist() == (batch.items >= 0).int().tolist()
        assert ids.values().tolist() == batch.items[batch.items >= 0].tolist()
        assert batch.weights[rows:].eq(0).all()
        assert batch.sequence["history"].lengths()[rows:].eq(0).all()
        assert torch.allclose(batch.dense[rows:, 1], batch.items[rows:].clamp(min=0) / ITEMS * (batch.items[rows:] >= 0))
        assert batch.dense[rows:, 0].eq(0).all()


def test_queries_come_with_what_they_should_find_and_what_is_left_out(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path, text=True, rows=500)
    batches, items = read(data, "valid", item_features=["item_index", "genre", "price"])
    log = pa.concat_tables([pa.parquet.read_table(path) for path in sorted((data / "valid").glob("*"))])
    (batch,) = batches
    assert batch.lists is not None
    for name, column in ((TARGETS, "targets"), (MASK, "seen")):
        part = batch.lists[name]
        found = [values.tolist() for values in part.values().split(part.lengths().tolist())]
        assert found[:60] == [items.catalogue.find(row).tolist() for row in log[column].to_pylist()]
    assert batch.items is None
    assert batch.sequence is not None
    assert batch.sequence["item_index"].lengths().eq(0).all()  # features of items: a query has none


def rewrite(data: Path, split: str, **columns: Any) -> None:
    for path in sorted((data / split).glob("*.parquet")):
        table = pa.parquet.read_table(path)
        for name, change in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, change(table[name].to_pylist()))
        pa.parquet.write_table(table, path)


@pytest.mark.parametrize(
    ("split", "columns", "said"),
    [
        (
            "train",
            {"item_id": lambda ids: pa.array([*ids[:7], 99, *ids[8:]])},
            "column 'item_id', {train}, row 7: item 99 is not in the catalogue (retrieval.items)",
        ),
        ("train", {"item_id": lambda ids: pa.array([*ids[:3], None, *ids[4:]])}, "{train}, row 3: no item"),
        ("train", {"item_id": lambda ids: pa.array([str(i) for i in ids])}, "integers, as the catalogue has"),
        ("valid", {"targets": lambda rows: pa.array([[1, None, 77], *rows[1:]])}, "{valid}, row 0: item 77 is not in"),
        ("valid", {"targets": lambda rows: pa.array([[1.5]] * len(rows))}, "column 'targets' (items, for targets)"),
    ],
)
def test_an_item_that_cannot_be_found_is_named(tmp_path: Path, split: str, columns: dict, said: str) -> None:
    data = write_retrieval(tmp_path, rows=300)
    rewrite(data, split, **columns)
    with pytest.raises(UserError) as error:
        read(data, split)
    assert said.format(**{split: data / split / "part-0.parquet"}) in str(error.value)


def test_what_is_left_out_of_a_ranking_need_not_be_in_the_catalogue(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path, rows=300)
    rewrite(data, "valid", seen=lambda rows: pa.array([[500, 3], *[[]] * (len(rows) - 1)], pa.list_(pa.int64())))
    (batch,), _ = read(data, "valid")
    assert batch.lists is not None
    assert batch.lists[MASK].values()[:1].tolist() == [3]


def drawn(drawer: Drawer, position: Position, shared: int, per_row: int = 0, own: list[int] | None = None) -> np.ndarray:
    rows = torch.tensor(own or [0])
    empty = torch.zeros(len(rows), 0)
    batch = Batch(empty, None, None, empty, torch.ones(len(rows)), torch.tensor(1.0), None, position, items=rows)
    return drawer.draw(batch, shared, per_row)


HERE = Position(2, (Deal(1, 64, 7),))


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_items_are_drawn_as_often_as_they_should_be(distribution: str) -> None:
    counts = np.array([0.0, 1, 5, 20, 100])
    drawer = Drawer(Negatives(distribution=distribution, alpha=0.5), counts, 5, seed=0, rank=0)
    share = np.full(5, 0.2) if distribution == "uniform" else np.sqrt(counts) / np.sqrt(counts).sum()
    found = np.bincount(drawn(drawer, HERE, 20000), minlength=5)
    assert drawer.probability == pytest.approx(share)
    assert found[share == 0].sum() == 0
    assert stats.chisquare(found[share > 0], 20000 * share[share > 0]).pvalue > 1e-3


def test_a_draw_depends_on_the_seed_the_rank_and_the_position_alone() -> None:
    def one(position: Position = HERE, **keys: int) -> list[int]:
        return drawn(Drawer(Negatives(), None, 1000, **{"seed": 1, "rank": 0} | keys), position, 20).tolist()

    others = [one(seed=2), one(rank=1), one(Position(3)), one(Position(2, (Deal(1, 64, 8),))), one(Position(2))]
    assert one() == one()
    assert all(other != one() for other in others)
    assert len({tuple(other) for other in others}) == len(others)


def test_hard_negatives_are_the_nearest_items_of_the_last_search() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    nearest = [set(np.argsort(-row)[:4].tolist()) for row in scores]
    drawer = Drawer(Negatives(distribution="hard", per_row=200, pool=4), None, 30, seed=0, rank=0)
    before = drawn(drawer, HERE, 0, 200, own=[5, 9])
    assert len(set(before.tolist())) > 25  # any items: there has been no search
    assert drawer.neighbours is not None
    with alone():
        drawer.neighbours.search(Share.alone(torch.from_numpy(vectors)))
    found = drawn(drawer, HERE, 0, 200, own=[5, 9]).reshape(2, 200)
    assert [set(row.tolist()) for row in found] == [nearest[5], nearest[9]]
    assert min(Counter(found[0].tolist()).values()) > 30


EVERY_WAY: list[dict[str, Any]] = [
    {},
    {"not_in": "others"},
    {"in_batch": False, "sampled": 3},
    {"in_batch": False, "per_row": 2},
    {"in_batch": False, "sampled": 3, "per_row": 2, "distribution": "popularity"},
    {"in_batch": False, "per_row": 2, "distribution": "hard"},
    {"in_batch": False, "per_row": 2, "distribution": "hard", "not_in": "others"},
    {"in_batch": False, "column": "negatives", "column_length": 2},
]


def few_items(folder: Path, count: int) -> Path:
    """A log in which only the first so many items come up, and a catalogue of them."""
    item = np.arange(100) % count
    lists = pa.array([list(range(count))] * 100)
    write_retrieval(folder, rows=100, item_id=item, item_index=item, negatives=lists, others=lists)
    catalogue = pa.concat_tables([pa.parquet.read_table(path) for path in sorted((folder / "items").glob("*"))])
    for path in (folder / "items").glob("*"):
        path.unlink()
    pa.parquet.write_table(catalogue.slice(0, count), folder / "items/few.parquet")
    return folder


@pytest.mark.parametrize("negatives", EVERY_WAY, ids=str)
def test_one_item_alone_has_no_negatives_however_they_are_drawn(negatives: dict[str, Any], tmp_path: Path) -> None:
    data = few_items(tmp_path, 1)
    with pytest.raises(UserError) as error:
        read(data, negatives=negatives, ks=[1], log_q=False)
    assert f"retrieval.items, {data / 'items'}, has 1 item: a retriever learns to tell items apart" in str(error.value)
    assert "name the whole catalogue" in str(error.value)


@pytest.mark.parametrize("negatives", EVERY_WAY, ids=str)
def test_of_two_items_the_one_is_a_negative_of_the_other(negatives: dict[str, Any], tmp_path: Path) -> None:
    (batch, _), items = read(few_items(tmp_path, 2), negatives=negatives, ks=[1], log_q=False)
    assert batch.items is not None
    assert set(batch.items.tolist()) == {0, 1}
    if (neighbours := items.drawer.neighbours) is not None:
        with alone():
            neighbours.search(Share.alone(torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        assert neighbours.table.tolist() == [[1], [0]]
        assert drawn(items.drawer, HERE, 0, 2, own=[1, 0]).tolist() == [0, 0, 1, 1]


def test_popularity_that_leaves_one_item_to_draw_is_refused(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path, rows=100)
    popularity = {"in_batch": False, "sampled": 3, "distribution": "popularity"}
    counts = [0] * 7 + [3] + [0] * (ITEMS - 8)
    rewrite(data, "items", train_count=lambda old: pa.array([counts.pop(0) for _ in old]))
    with pytest.raises(UserError) as error:
        read(data, negatives=popularity)
    assert f'distribution = "popularity" would draw 1 of the {ITEMS} items of retrieval.items' in str(error.value)
    assert "column 'train_count' to the power of alpha = 0.75" in str(error.value)


def test_a_large_alpha_is_no_overflow() -> None:
    found = Drawer(Negatives(distribution="popularity", alpha=300), np.array([1e3, 999.0, 1]), 3, seed=0, rank=0).probability
    assert found == pytest.approx(np.array([1, 0.999**300, 0]) / (1 + 0.999**300), abs=1e-12)


def test_a_pool_is_at_most_the_other_items() -> None:
    assert Neighbours(3, 50).table.shape == (3, 2)


def test_padding_is_no_item_and_rows_without_features_have_none() -> None:
    """A rank that has run out of rows, while others have some."""
    config = parse(retrieval_values(Path("data"), Path("run")))
    features = layout(config.features, config.tables)
    count = 3
    rows = Batch(
        dense=torch.ones(count, 2),
        sparse=None,
        sequence=None,
        labels=torch.zeros(count, 0),
        weights=torch.tensor([1.0, 0.0, 0.0]),
        normalizer=torch.tensor(1.0),
        groups=None,
        position=HERE,
        items=torch.tensor([7, 0, 0]),
    )
    done = complete(rows, features.only(["x", "price"]), features, no_items())
    assert done.items is not None
    assert done.items.tolist() == [7, -1, -1]
    assert done.queries == count
    assert done.sequence is not None
    assert done.sequence.keys() == [feature.name for feature in features.sequences]
    assert done.sequence.lengths().eq(0).all()
