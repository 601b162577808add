"""Indexes: exact where Faiss is exact, tuned by what they find, part by part, and whole on disk or refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest

from distrec.errors import UserError
from distrec.recall import index as index_module
from distrec.recall import screen, search
from distrec.recall.auto import Point, efforts, overlap, tune
from distrec.recall.factory import candidates, fill, lists_for, subvectors_for
from distrec.recall.index import VectorIndex, build, sample_rows
from distrec.recall.report import halves, processors, unbeaten
from distrec.recall.search import recommend
from distrec.recall.vectors import Vectors, VectorWriter, list_column

MODEL = {"run": "r", "config": "c", "step": 3, "checkpoint": "k"}
ROWS, DIM = 3000, 16


def exact(queries: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(60, DIM))
    return (centres[draw.integers(0, 60, ROWS)] + 0.3 * draw.normal(size=(ROWS, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def vectors(items: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """In three parts, one of them empty, with ids that are text."""
    folder, parts = tmp_path_factory.mktemp("vectors"), []
    for number, rows in enumerate((range(1100), range(0), range(1100, ROWS))):
        parts.append(folder / f"part-{number}.parquet")
        with VectorWriter(parts[-1], DIM, [("id", pa.string())]) as writer:
            for low in range(rows.start, rows.stop, 500):
                block = items[low : min(low + 500, rows.stop)]
                writer.write(block, pa.array([f"item-{low + i}" for i in range(len(block))]))
    return Vectors(tuple(parts), DIM, ROWS)


@pytest.fixture(scope="module")
def queries(items: np.ndarray) -> np.ndarray:
    return items[::30] + 0.1 * np.random.default_rng(1).normal(size=items[::30].shape).astype(np.float32)


# -- vectors on disk -----------------------------------------------------------------------------------------------------


def test_vectors_come_back_in_order_whatever_the_block(vectors: Vectors, items: np.ndarray) -> None:
    for size in (7, 1000, 10**6):
        blocks = list(vectors.blocks(size))
        assert [first for first, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks[:-1])]).tolist()
        assert max(len(block) for _, block in blocks) <= size
        np.testing.assert_array_equal(np.concatenate([block.numpy() for _, block in blocks]), items)
    assert vectors.column("id").to_pylist() == [f"item-{i}" for i in range(ROWS)]


def test_a_sample_is_rows_once_and_the_same_for_a_seed(vectors: Vectors, items: np.ndarray) -> None:
    drawn = vectors.draw(100, seed=5)
    assert len(np.unique(drawn)) == 100
    assert drawn.tolist() == vectors.draw(100, seed=5).tolist() != vectors.draw(100, seed=6).tolist()
    np.testing.assert_array_equal(vectors.take(drawn), items[drawn])
    assert vectors.draw(10**6, seed=0).tolist() == list(range(ROWS))


def test_lists_may_be_empty() -> None:
    assert list_column(np.array([3, 1, 2]), np.array([0, 2, 2, 3])).to_pylist() == [[3, 1], [], [2]]


# -- factory strings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "rows", "dim", "filled"),
    [
        ("IVFx,PQyx4fsr,RFlat", 400_000, 50, "IVF1024,PQ50x4fsr,RFlat"),
        ("IVFx_HNSW32,Flat", 40_981, 64, "IVF512_HNSW32,Flat"),
        ("IVFx,Flat", 100, 64, "IVF2,Flat"),  # 39 vectors a list at least
        ("OPQ16,IVF64,PQyx4fs", 10**6, 300, "OPQ16,IVF64,PQ100x4fs"),
        ("HNSW32", 10**6, 8, "HNSW32"),
    ],
)
def test_x_and_y_are_filled_in(factory: str, rows: int, dim: int, filled: str) -> None:
    assert fill(factory, rows, dim) == filled


def test_what_is_tried_depends_on_the_size_and_on_the_recall() -> None:
    assert candidates(1000, 0.9) == candidates(10**6, 1.0) == ["Flat"]
    assert candidates(10**6, 0.98) == ["IVFx,PQyx4fsr,RFlat", "IVFx,Flat", "Flat"]
    assert candidates(10**8, 0.98)[0] == "IVFx_HNSW32,PQyx4fsr,RFlat"
    assert (lists_for(1), subvectors_for(256), subvectors_for(7)) == (1, 128, 7)


def test_lists_with_few_vectors_each_are_told_once(
    vectors: Vectors, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for lists, told in ((64, 0), (128, 1)):
        build(vectors, f"IVF{lists},Flat", MODEL)
        assert len(caplog.messages) == told
    assert "'IVF128,Flat' sorts 3,000 vectors into 128 lists, and k-means wants 39 a list" in caplog.text
    assert "IVF64 would fit" in caplog.text
    assert "WARNING" not in "".join(capfd.readouterr())  # Faiss' own


# -- building, searching, tuning -------------------------------------------------------------------------------------------


def test_flat_finds_what_sorting_finds_and_answers_with_the_users_ids(
    vectors: Vectors, items: np.ndarray, queries: np.ndarray
) -> None:
    index = build(vectors, "Flat", MODEL)
    scores, rows = index.search(queries, 20)
    np.testing.assert_array_equal(rows, exact(queries, items, 20))
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ items.T, rows, 1), rtol=1e-5)
    assert index.ids[int(rows[0, 0])].as_py() == f"item-{rows[0, 0]}"


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF32,PQ16x4fsr,RFlat", "HNSW16", "IVF16_HNSW8,Flat"])
def test_tuning_finds_the_cheapest_that_finds_enough(
    factory: str, vectors: Vectors, items: np.ndarray, queries: np.ndarray
) -> None:
    index, truth = build(vectors, factory, MODEL), exact(queries, items, 10)
    points = tune(index, queries, truth, 0.9)
    chosen = next(p for p in points if p.parameters == index.facts["parameters"])
    assert chosen.recall >= 0.9
    assert chosen.qps == max(p.qps for p in points if p.recall >= 0.9)
    found = index.search(queries, 10)[1]
    shares = [len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    assert chosen.recall == pytest.approx(np.mean(shares))
    assert overlap(found, truth) == pytest.approx(np.mean(shares))


def test_a_recall_out_of_reach_leaves_the_best_there_is(vectors: Vectors, items: np.ndarray, queries: np.ndarray) -> None:
    index = build(vectors, "IVF8,PQ4x4fs", MODEL)
    points = tune(index, queries, exact(queries, items, 10), 0.999)
    chosen = next(p for p in points if p.parameters == index.facts["parameters"])
    assert chosen.recall == max(p.recall for p in points) < 0.999


def test_efforts_reach_all_lists_and_flat_has_none() -> None:
    make = faiss.index_factory
    assert efforts(make(8, "Flat")) == [""]
    assert efforts(make(8, "IVF100,Flat"))[:3] == ["nprobe=1", "nprobe=2", "nprobe=3"]
    assert efforts(make(8, "IVF100,PQ4x4fs,RFlat"))[-1] == "nprobe=100"
    assert efforts(make(8, "PCA4,HNSW16"))[0] == "efSearch=16"


def test_a_sample_for_training_is_bounded(vectors: Vectors) -> None:
    large = Vectors((), 1024, 10**9)
    assert sample_rows(64, large) == 64 * 256
    assert sample_rows(2**20, large) == 2**30 // 4096
    assert sample_rows(64, vectors) == ROWS


@pytest.mark.parametrize(("at_once", "parts"), [(2**28, 1), (4 * DIM * ROWS // 2, 2), (4 * DIM * 100, math.ceil(ROWS / 100))])
def test_it_is_trained_on_the_sample_and_filled_part_by_part(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch, at_once: int, parts: int
) -> None:
    monkeypatch.setattr(index_module, "ADD_BYTES", at_once)
    calls: list[tuple[str, int]] = []

    class Spy:
        is_trained, d = False, DIM

        def train(self, x: np.ndarray) -> None:
            calls.append(("train", len(x)))

        def add(self, x: np.ndarray) -> None:
            calls.append(("add", len(x)))

    monkeypatch.setattr(index_module, "make", lambda factory, rows, dim: Spy())
    monkeypatch.setattr(index_module, "lists_of", lambda index: 2)
    build(vectors, "IVF2,Flat", MODEL)
    assert calls[0] == ("train", 512)
    assert sum(count for what, count in calls if what == "add") == ROWS
    assert len(calls) == 1 + parts


def test_on_a_gpu_too_there_is_a_sample_for_every_list(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an index that is there, Faiss cannot tell the lists."""

    class OnGpu:
        is_trained, samples = False, 0

        def __init__(self, index: Any):
            self.index = index

        def train(self, x: np.ndarray) -> None:
            OnGpu.samples = len(x)
            self.index.train(x)

        def add(self, x: np.ndarray) -> None:
            self.index.add(x)

    monkeypatch.setattr(index_module, "on_gpus", lambda index, factory: OnGpu(index))
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda there: there.index, raising=False)
    monkeypatch.setattr(index_module, "UNTRAINED", 7)
    built = build(vectors, "IVF2,Flat", MODEL)
    assert OnGpu.samples == 2 * 256
    assert built.index.ntotal == ROWS


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_what_is_hidden_is_left_out_and_others_take_its_place(
    at_once: int, vectors: Vectors, items: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "AT_ONCE", at_once)
    index = build(vectors, "Flat", MODEL)
    order = exact(queries[:3], items, ROWS)
    hidden = [order[0, :4].tolist(), [], order[2, 1:9].tolist()]
    flat, offsets = np.array([i for row in hidden for i in row]), np.cumsum([0, *map(len, hidden)])
    scores, rows = recommend(index, queries[:3], 5, (flat, offsets))
    expected = [[i for i in row if i not in gone][:5] for row, gone in zip(order.tolist(), hidden, strict=True)]
    assert rows.tolist() == expected
    assert (np.diff(scores, axis=1) <= 0).all()
    asked: list[int] = []
    monkeypatch.setattr(index, "search", lambda q, k: (asked.append(k), VectorIndex.search(index, q, k))[1])
    recommend(index, queries[:3], 5, (flat, offsets))
    assert asked == {1: [9, 5, 13], 2: [9, 13], 256: [13]}[at_once]  # no deeper than the neighbours need
    everything = np.arange(ROWS - 2)
    scores, rows = recommend(index, queries[:1], 5, (everything, np.array([0, len(everything)])))
    assert sorted(rows[0].tolist()) == [-1, -1, -1, ROWS - 2, ROWS - 1]
    assert np.isneginf(scores[0, 2:]).all()


# -- on disk ---------------------------------------------------------------------------------------------------------------


def test_an_index_comes_back_with_its_parameters(vectors: Vectors, queries: np.ndarray, tmp_path: Path) -> None:
    index = build(vectors, "IVF32,PQ16x4fsr,RFlat", MODEL)
    index.tune("nprobe=5,k_factor_rf=4")
    size = index.save(tmp_path / "index")
    assert size == (tmp_path / "index/index.faiss").stat().st_size
    again = VectorIndex.load(tmp_path / "index")
    for one, other in zip(again.search(queries, 9), index.search(queries, 9), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.ids.to_pylist() == index.ids.to_pylist()
    assert again.facts["model"] == MODEL
    assert (again.facts["dim"], again.facts["rows"], again.facts["metric"]) == (DIM, ROWS, "inner_product")


@pytest.mark.parametrize(
    ("queries", "k", "said"),
    [
        (np.zeros((1, 8)), 1, "queries of dim 8 and an index of dim 16: they are of two models"),
        (np.zeros((1, 16)), ROWS + 1, f"k = {ROWS + 1} and the index has 3,000 items"),
        (np.zeros((1, 16)), 0, "k = 0 and the index has 3,000 items"),
        (np.array([[0.0] * 16, [np.nan] * 16]), 1, "query 1: its vector is not finite"),
    ],
)
def test_queries_that_cannot_be_asked(vectors: Vectors, queries: np.ndarray, k: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(vectors, "Flat", MODEL).search(queries.astype(np.float32), k)


# -- on GPUs, as far as a machine without one can tell -----------------------------------------------------------------------


def test_gpus_share_an_index_where_there_are_some_and_it_is_saved_from_the_host(
    vectors: Vectors, items: np.ndarray, queries: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[Any] = []

    class Options:
        shard = False

    def to_gpus(index: Any, options: Options) -> Any:
        went.append(("there", options.shard))
        return faiss.clone_index(index)

    def to_host(index: Any) -> Any:
        went.append("back")
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", Options, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_gpus)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", to_host, raising=False)
    index = build(vectors, "IVF8,Flat", MODEL)
    assert went == [("there", True), "back"]
    assert build(vectors, "Flat", MODEL).index.ntotal == ROWS  # Faiss' shards of it take one part alone
    assert went == [("there", True), "back"]
    index.tune("nprobe=8")
    np.testing.assert_array_equal(index.search(queries, 5)[1], exact(queries, items, 5))
    assert index.save(tmp_path / "index") > 0


def test_an_index_without_gpu_kernels_is_built_on_the_cpu(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: Any, options: Any) -> Any:
        raise RuntimeError("Error in x at y.cpp:3: not supported on GPU")

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", type("Options", (), {}), raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", refuse)
    assert build(vectors, "IVF8,PQ4x4fs", MODEL).index.ntotal == ROWS


# -- the report --------------------------------------------------------------------------------------------------------------


def test_a_curve_holds_what_nothing_beats() -> None:
    points = [Point("a", 0.5, 100), Point("b", 0.4, 90), Point("c", 0.9, 10), Point("d", 0.9, 12), Point("e", 0.5, 100)]
    assert [p.parameters for p in unbeaten(points)] == ["a", "d"]


def test_queries_are_tuned_on_or_measured_with_not_both() -> None:
    tuned, measured = halves(7)
    assert sorted([*tuned, *measured]) == list(range(7))
    assert [part.tolist() for part in halves(1)] == [[0], [0]]
    assert processors() >= 1


def test_an_index_does_not_replace_what_is_none(vectors: Vectors, tmp_path: Path) -> None:
    """An export, a checkpoint or somebody's notes would be lost."""
    index = build(vectors, "Flat", MODEL)
    folder = tmp_path / "folder"
    for file, said in (("manifest.json", '{"kind": "distrec export"}'), ("manifest.json", "{cut sh"), ("notes.json", "{}")):
        folder.mkdir()
        (folder / file).write_text(said)
        with pytest.raises(UserError, match="holds something that 'distrec index' did not write; name another"):
            index.save(folder)
        assert (folder / file).read_text() == said
        assert len(list(folder.iterdir())) == 1
        shutil.rmtree(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another folder with --out"):
        index.save(tmp_path / "file")


def test_an_index_with_a_damaged_manifest_can_be_built_again(vectors: Vectors, tmp_path: Path) -> None:
    index = build(vectors, "Flat", MODEL)
    index.save(tmp_path / "index")
    manifest = tmp_path / "index/manifest.json"
    manifest.write_text(manifest.read_text()[:60])
    with pytest.raises(UserError, match="build"):
        VectorIndex.load(tmp_path / "index")
    index.save(tmp_path / "index")
    assert VectorIndex.load(tmp_path / "index").facts["rows"] == ROWS


def test_an_index_that_cannot_be_written_leaves_the_older_one(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(vectors, "Flat", MODEL).save(tmp_path / "index")
    write = faiss.write_index

    def full(index: Any, path: str) -> None:
        write(index, path)
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(UserError, match=r"the index cannot be written to .*: No space left on device"):
        build(vectors, "HNSW8", MODEL).save(tmp_path / "index")
    assert VectorIndex.load(tmp_path / "index").facts["factory"] == "Flat"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]  # the room is free again


def test_of_two_indexes_written_at_once_the_last_one_stays(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = faiss.write_index
    other = build(vectors, "HNSW8", MODEL)

    def meanwhile(index: Any, path: str) -> None:
        monkeypatch.setattr(faiss, "write_index", write)
        other.save(tmp_path / "index")
        assert VectorIndex.load(tmp_path / "index").facts["factory"] == "HNSW8"
        write(index, path)

    monkeypatch.setattr(faiss, "write_index", meanwhile)
    build(vectors, "Flat", MODEL).save(tmp_path / "index")
    assert VectorIndex.load(tmp_path / "index").facts["factory"] == "Flat"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("title", ["Song [live]", "[/b]", "Party :tada:"])
def test_titles_are_shown_letter_by_letter(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal library may take brackets for markup: it drops some, and stops at others."""
    screen.recommended(f"for {title}", ["", "title"], [["1", title]])
    assert capsys.readouterr().out.count(title) == 2
