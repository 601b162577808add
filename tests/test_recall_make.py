"""Which index `distrec index` builds: with `auto` the first that finds enough, by queries that the report leaves alone."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distrec.recall import auto, factory
from distrec.recall import index as index_module
from distrec.recall import make as make_module
from distrec.recall.auto import Point
from distrec.recall.index import VectorIndex
from distrec.recall.make import make_index
from distrec.recall.vectors import LISTS, Export, Vectors, VectorWriter

ROWS, QUERIES, DIM, K = 3000, 201, 16, 10
CODES, LISTED = "IVF64,PQ16x4fsr,RFlat", "IVF64,Flat"  # what `auto` makes of 3,000 vectors of 16, before a scan


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Items and queries in no order at all: to find the nearest of them is as hard as can be."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(ROWS, DIM)).astype(np.float32), draw.normal(size=(QUERIES, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def export(vectors: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder, none = tmp_path_factory.mktemp("export"), pa.array([[]] * QUERIES, LISTS)
    with VectorWriter(folder / "items.parquet", DIM, [("id", pa.int64())]) as writer:
        writer.write(vectors[0], pa.array(range(ROWS)))
    with VectorWriter(folder / "queries.parquet", DIM, [("targets", LISTS), ("hidden", LISTS)]) as writer:
        writer.write(vectors[1], none, none)
    items, queries = (Vectors((folder / f"{name}.parquet",), DIM, n) for name, n in (("items", ROWS), ("queries", QUERIES)))
    return Export(folder, items, queries, {"model": {"run": "r"}})


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The factory strings of the indexes that are built, in a world where 3,000 rows are worth an index."""
    names: list[str] = []
    build = make_module.build

    def note(items: Vectors, name: str, model: Any) -> VectorIndex:
        names.append(name)
        return build(items, name, model)

    monkeypatch.setattr(make_module, "build", note)
    monkeypatch.setattr(factory, "FEW_ROWS", 1000)
    return names


def recall(index: VectorIndex, vectors: tuple[np.ndarray, np.ndarray], rows: slice) -> float:
    """Of some queries: the share of the exact best that the index finds as it is set."""
    items, queries = vectors[0].astype(np.float64), vectors[1][rows]
    best = np.argsort(-(queries.astype(np.float64) @ items.T), axis=1)[:, :K]
    found = index.search(queries, K)[1]
    return float(np.mean([len({*a} & {*b}) / K for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


def hobble(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """`codes`: nothing more than is asked for is ranked again. `lists`: and no more than a list is looked at."""
    if what in ("codes", "lists"):
        monkeypatch.setattr(auto, "REFINED", (1,))
    if what == "lists":
        efforts = auto.efforts
        monkeypatch.setattr(auto, "efforts", lambda index: efforts(index)[:1])


@pytest.mark.parametrize(
    ("hobbled", "target", "tried"),
    [
        ("nothing", 0.9, [CODES]),
        ("codes", 0.9, [CODES, LISTED]),
        ("lists", 0.9, [CODES, LISTED, "Flat"]),
        ("lists", 0.05, [CODES]),
        ("nothing", 1.0, ["Flat"]),
    ],
)
def test_auto_takes_the_first_that_finds_enough_and_builds_no_other(
    hobbled: str,
    target: float,
    tried: list[str],
    built: list[str],
    export: Export,
    vectors: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hobble(monkeypatch, hobbled)
    told: list[str] = []
    index = make_index(export, "auto", target, K, told.append)
    assert built == tried
    assert (index.facts["factory"], index.facts["asked"], index.facts["target"]) == (tried[-1], "auto", target)
    reached = [float(line.rsplit(" ", 1)[1]) for line in told]
    assert all(line.startswith(name) for line, name in zip(told, tried, strict=True))
    assert all(found < target for found in reached[:-1])
    assert reached[-1] >= target
    assert recall(index, vectors, slice(0, None, 2)) == pytest.approx(reached[-1], abs=1e-4)


def test_a_given_factory_is_built_whether_it_finds_enough_or_not(
    built: list[str], export: Export, vectors: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    hobble(monkeypatch, "lists")
    index = make_index(export, "IVF64,Flat", 0.9, K)
    assert built == ["IVF64,Flat"]
    assert recall(index, vectors, slice(0, None, 2)) < 0.9


def test_parameters_are_chosen_on_every_other_query_and_no_more_than_so_many(
    export: Export, vectors: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, rows in ((1000, slice(0, None, 2)), (30, slice(0, 60, 2))):
        monkeypatch.setattr(make_module, "TUNING", most)
        index = make_index(export, "IVF64,Flat", 0.7, K)
        points = [Point(**point) for point in index.facts["points"]]
        assert [asdict(point) for point in points] == index.facts["points"]
        chosen, found = index.facts["parameters"], [point.recall for point in points]
        by_half: list[list[float]] = [[], []]
        for point in points:
            index.tune(point.parameters)
            for half, own in zip(by_half, (rows, slice(1, None, 2)), strict=True):
                half.append(recall(index, vectors, own))
        assert len(points) > 2
        assert found == pytest.approx(by_half[0])
        assert found != pytest.approx(by_half[1])
        assert {point.parameters: point.recall for point in points}[chosen] >= 0.7


def test_the_time_to_train_and_the_time_to_fill_are_told_apart(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    train, fill = index_module._train, index_module._fill

    def slow(work: Any, seconds: float) -> Any:
        def done(*words: Any) -> None:
            work(*words)
            now[0] += seconds

        return done

    monkeypatch.setattr(index_module, "_train", slow(train, 20.0))
    monkeypatch.setattr(index_module, "_fill", slow(fill, 3.0))
    monkeypatch.setattr(index_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    facts = index_module.build(export.items, "IVF64,Flat", {}).facts
    assert (facts["train_s"], facts["add_s"]) == (20.0, 3.0)
