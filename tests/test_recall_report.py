"""What `distrec recall --report` says of an index, against NumPy on the vectors that were exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Command
from matplotlib import image
from single_rank import alone
from small_retrieval import retrieval_values, write_retrieval

from distrec.config.load import parse
from distrec.export.write import export
from distrec.recall import report as recall_report
from distrec.recall import screen
from distrec.recall.index import VectorIndex
from distrec.trainer import build

KS = (5, 10)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of some steps and its export, with 40 items and 60 queries."""
    folder = tmp_path_factory.mktemp("exported")
    data = write_retrieval(folder / "data")
    values = retrieval_values(data, folder / "run", train={"device": "cpu", "steps": 12})
    values["data"] |= {"valid": str(data / "valid")}
    with alone() as ranks:
        trainer = build(parse(values), ranks, None)
        trainer.run()
        trainer.pipeline.detach()
        return folder, export(parse(values), ranks, folder / "run", None, None, "fp32", "none").facts


@pytest.fixture
def run(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy, to be indexed."""
    shutil.copytree(exported[0] / "run", tmp_path / "run")
    return tmp_path / "run"


@dataclass(frozen=True)
class Half:
    """Every other query of an export, and what NumPy makes of it."""

    items: np.ndarray
    queries: np.ndarray
    hidden: list[list[int]]
    targets: list[int]

    @classmethod
    def of(cls, export: Path, facts: dict[str, Any], first: int) -> Half:
        items, queries = (
            [row for name in facts[kind]["parts"] for row in pq.read_table(export / name).to_pylist()]
            for kind in ("items", "queries")
        )
        chosen = queries[first::2]
        vectors = [np.array([row["vector"] for row in rows], np.float32) for rows in (items, chosen)]
        return cls(*vectors, [row["hidden"] for row in chosen], [row["targets"][0] for row in chosen])

    def best(self) -> list[list[int]]:
        """All items of each query."""
        return np.argsort(-(self.queries.astype(np.float64) @ self.items.astype(np.float64).T), axis=1).tolist()

    def overlap(self, index: VectorIndex, k: int) -> float:
        """The share of the exact best k that an index finds."""
        found = index.search(self.queries, k)[1].tolist()
        return float(np.mean([len({*a} & {*b[:k]}) / k for a, b in zip(found, self.best(), strict=True)]))

    def hits(self, index: VectorIndex | None, k: int) -> float:
        """The share of the queries whose target is among the best k that are not hidden, of all items or of what is found."""
        found = self.best() if index is None else index.search(self.queries, len(self.items))[1].tolist()
        shown = [[i for i in row if i >= 0 and i not in gone][:k] for row, gone in zip(found, self.hidden, strict=True)]
        return float(np.mean([target in row for target, row in zip(self.targets, shown, strict=True)]))


def timed_index(distrec: Command, run: Path) -> VectorIndex:
    """An index of a run, set to miss much, with times as no small one has them: the more it looks at, the longer it takes."""
    assert distrec("index", run, "--factory", "IVF8,Flat", "--recall", "0.6").code == 0
    index = VectorIndex.load(run / "index")
    points = [point | {"qps": 1000 / (1 + place)} for place, point in enumerate(index.facts["points"])]
    assert len(points) > 2
    index.tune(points[1]["parameters"])
    index.facts |= {"train_s": 12.34, "add_s": 5.67, "points": points}
    index.save(run / "index")
    return index


def test_the_index_is_measured_on_the_half_of_the_queries_that_did_not_choose_its_parameters(
    distrec: Command, exported: tuple[Path, dict[str, Any]], run: Path
) -> None:
    index = timed_index(distrec, run)
    assert distrec("recall", run, f"data.test={exported[0] / 'data/valid'}", "--report").code == 0
    measured = json.loads((run / "report/report.json").read_text())["measured"]
    chose, left = (Half.of(run / "export", exported[1], first) for first in (0, 1))
    tuned = {point["parameters"]: point["recall"] for point in index.facts["points"]}
    assert tuned[index.facts["parameters"]] == pytest.approx(chose.overlap(index, 40))
    found = {k: measured[f"recall@{k}"] for k in (*KS, 40)}
    assert found == pytest.approx({k: left.overlap(index, k) for k in found})
    assert found != pytest.approx({k: chose.overlap(index, k) for k in found})  # so that the halves can be told apart
    for k in KS:
        assert measured["model"][f"recall@{k}"] == pytest.approx(left.hits(None, k))
        assert measured["model_through_index"][f"recall@{k}"] == pytest.approx(left.hits(index, k))
    assert measured["model"]["recall@5"] != pytest.approx(chose.hits(None, 5))
    assert left.hits(index, 10) < left.hits(None, 10)
    for point in measured["curve"]:
        index.tune(point["parameters"])
        assert point["recall"] == pytest.approx(left.overlap(index, 40))
    assert {point["parameters"] for point in measured["curve"]} == set(tuned)


def test_a_model_stands_beside_what_is_popular_with_everyone(
    distrec: Command, exported: tuple[Path, dict[str, Any]], run: Path
) -> None:
    data = exported[0] / "data"
    assert distrec("index", run, "--factory", "Flat").code == 0
    assert distrec("recall", run, f"data.test={data / 'valid'}", "--report").code == 0
    report, page = json.loads((run / "report/report.json").read_text()), (run / "report/report.md").read_text()
    counts = np.array(pq.read_table(data / "items")["train_count"])
    order = np.lexsort((np.arange(len(counts)), -counts)).tolist()
    queries = pq.read_table(data / "valid").to_pylist()
    for k in KS:
        lists = [[item for item in order if item not in row["seen"]][:k] for row in queries]
        hits = np.mean([row["targets"][0] in shown for row, shown in zip(queries, lists, strict=True)])
        assert report["popular"][f"recall@{k}"] == pytest.approx(hits)
        assert report["popular"][f"coverage@{k}"] == pytest.approx(len({i for shown in lists for i in shown}) / len(counts))
    assert report["popular"] != report["exact"]
    assert "\n".join(screen._popular_table(report["popular"], KS)) in page  # pyright: ignore[reportPrivateUsage]
    assert "the most popular items, given to everyone" not in page
    assert "is not known: set retrieval.train_count." in screen.markdown(report | {"popular": None})


def test_a_model_that_is_no_better_than_what_is_popular_is_said_to_be(
    distrec: Command, exported: tuple[Path, dict[str, Any]], run: Path, tmp_path: Path
) -> None:
    """Everybody wants the three items that most rows have."""
    data = exported[0] / "data"
    favourites = np.argsort(-np.array(pq.read_table(data / "items")["train_count"]), kind="stable")[:3].tolist()
    rows = pq.read_table(data / "valid")
    wanted = rows.set_column(rows.schema.get_field_index("targets"), "targets", pa.array([favourites] * len(rows)))
    pq.write_table(wanted, tmp_path / "wanted.parquet")
    assert distrec("index", run, "--factory", "Flat").code == 0
    assert distrec("recall", run, f"data.test={tmp_path / 'wanted.parquet'}", "--report").code == 0
    page = (run / "report/report.md").read_text()
    assert "Warning: the most popular items, given to everyone, find as much as the model or more (recall@10)." in page


def test_the_page_tells_speed_by_threads_what_building_took_and_the_curve(
    distrec: Command, exported: tuple[Path, dict[str, Any]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_index(distrec, run)
    threads: list[int] = []
    usual, use = faiss.omp_get_max_threads(), faiss.omp_set_num_threads
    monkeypatch.setattr(recall_report, "processors", lambda: 3)
    monkeypatch.setattr(faiss, "omp_set_num_threads", lambda count: (threads.append(count), use(count))[1])
    assert distrec("recall", run, f"data.test={exported[0] / 'data/valid'}", "--report").code == 0
    assert threads == [1, 3, usual] * 2  # the index, and a scan of all items
    assert faiss.omp_get_max_threads() == usual
    report, page = json.loads((run / "report/report.json").read_text()), (run / "report/report.md").read_text()
    assert report["index_bytes"] == (run / "index/index.faiss").stat().st_size
    assert "40 vectors of 8: trained in 12.3 s, filled in 5.7 s, 0.0 MiB." in page
    assert ", 7.3 MiB." in screen.markdown(report | {"index_bytes": 7_654_321})
    assert ["1", "3"] == list(report["measured"]["qps"]) == list(report["measured"]["flat_qps"])
    rows = [
        f"| {name}, {said} | {rates[count]['batch']:,.0f} | {rates[count]['single']:,.0f} |"
        for name, rates in (("this index", report["measured"]["qps"]), ("Flat", report["measured"]["flat_qps"]))
        for count, said in (("1", "1 thread"), ("3", "3 threads"))
    ]
    curve = [f"| `{p['parameters']}` | {p['recall']:.4f} | {p['qps']:,.0f} |" for p in report["measured"]["curve"]]
    assert len({*curve}) > 1
    for part in (rows, curve):
        assert "\n".join(part) in page
    pixels = image.imread(run / "report/recall.png")[:, :, :3]
    assert min(pixels.shape[:2]) > 400
    assert max(pixels.shape[:2]) < 4000
    coloured = np.ptp(pixels, axis=2) > 0.2  # axes, their words and the grid are grey
    assert 500 < coloured.sum() < coloured.size / 4
    hues = [np.nonzero(coloured & (pixels.argmax(axis=2) == hue))[1] for hue in range(3)]
    assert min(map(len, hues)) > 50  # the curve, the setting that was chosen and a scan of all items
    assert sorted(map(np.ptp, hues))[1] > pixels.shape[1] / 4  # curve and scan go through it
