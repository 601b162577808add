"""benchmarks/retrieval_quality.md says what the recorded runs found, of the configs as they are."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import retrieval_quality as quality
from benchmarks.quality_markdown import render
from benchmarks.quality_rows import DATASETS
from distrec import run_folder
from distrec.config.load import load
from distrec.errors import UserError

ROOT = Path(__file__).parents[1]
IDS, TEXT, LIST = pa.int64(), pa.string(), pa.list_(pa.int64())
SCHEMAS = {
    "items": pa.schema([("item_id", IDS), ("train_count", IDS), ("title", TEXT), ("category", TEXT)]),
    "test": pa.schema([("user_id", IDS), ("targets", LIST), ("seen", LIST)]),
}
METRICS = {"hit_rate@10": 0.1, "ndcg@10": 0.05, "hit_rate@50": 0.3, "recall@20": 0.2, "ndcg@20": 0.1}


def run(config: str = "mf_movielens", seed: int = 0, seconds: float = 60.0, **changed: Any) -> dict[str, Any]:
    known = {"config": config, "digest": quality.digest(config), "seed": seed, "metrics": METRICS, "seconds": seconds}
    return known | {"device": "cpu"} | changed


def of(*runs: dict[str, Any], **popular: Any) -> dict[str, Any]:
    """A record."""
    return {"runs": runs, "popular": popular}


def finished(folder: Path, *overrides: str, config: str = "mf_movielens", **summary: Any) -> Path:
    """A run folder as `distrec train configs/<config>.toml` leaves it."""
    folder.mkdir()
    values = load(ROOT / "configs" / f"{config}.toml", ["name=mine", f"folder={folder}", "train.device=cpu", *overrides])
    run_folder.write_config(folder, values)
    metrics = {"valid/ndcg@10": 0.9} | {f"test/{name}": value for name, value in METRICS.items()}
    told = {"stopped_by": None, "metrics": metrics, "seconds": {"train": 9.0, "save": 1.5}, "throughput": {}}
    told |= {"steps": 7, "best_step": 5}
    run_folder.write_summary(folder, told | summary)
    return folder


def test_the_document_is_what_the_record_renders_to() -> None:
    assert quality.DOCUMENT.read_text(encoding="utf-8") == render(quality.read(quality.RECORD))


def test_every_figure_is_of_a_config_as_it_ships() -> None:
    recorded = {(run["config"], run["digest"]) for run in quality.read(quality.RECORD)["runs"]}
    assert [config for config, digest in recorded if digest != quality.digest(config)] == []
    assert len({quality.digest(config) for config in quality.CONFIGS}) == len(quality.CONFIGS)


def test_every_retriever_that_ships_has_a_row_with_its_metrics() -> None:
    shipped = {path.stem: load(path) for path in (ROOT / "configs").glob("*.toml")}
    assert {name for name, config in shipped.items() if config.retrieval} == set(quality.CONFIGS)
    for dataset in DATASETS:
        for row in dataset.rows:
            config = shipped[row.config]
            assert config.retrieval is not None
            assert config.retrieval.mask is not None, "what a user has seen is left out of published figures"
            assert {int(metric.split("@")[1]) for metric in dataset.metrics} <= set(config.retrieval.ks)
            assert config.data.train[0].startswith(dataset.prepare.split(" --out ")[1].split()[0] + "/")


def test_a_row_tells_mean_and_spread_beside_what_was_published() -> None:
    twice = [
        run("mf_gowalla", seed, 60.0 * (seed + 1), metrics={"recall@20": r, "ndcg@20": 0.14})
        for seed, r in ((0, 0.16), (1, 0.18))
    ]
    text = render(of(*twice))
    assert (
        "| 2 | 0.1700 (0.1600 to 0.1800) | 0.1627 (+0.0073) | 0.1400 (0.1400 to 0.1400) | 0.1378 (+0.0022) | 1.5 min |" in text
    )
    assert "[mf_gowalla](../configs/mf_gowalla.toml)" in text
    assert "MovieLens" not in text.split("## Gowalla")[1], "of what was not run there is no row"


def test_what_is_popular_stands_first() -> None:
    popular = {"recall@20": 0.0416, "ndcg@20": 0.0317}
    rows = render(of(run("mf_gowalla"), Gowalla=popular)).partition("## Gowalla")[2].splitlines()
    table = [row for row in rows if row.startswith("|")]
    assert table[2] == "| most popular | none |  | 0.0416 |  | 0.0317 |  |  |"
    assert table[3].startswith("| MF |")
    assert table[0].count("|") == table[2].count("|")


def test_what_is_popular_is_counted_on_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four users want the item that most rows have."""
    data = tmp_path / "data" / "ml-1m" / "retrieval"
    items, users = list(range(3706)), list(range(8))
    counts = [9 if item == 77 else item % 5 for item in items]
    empty: list[list[int]] = [[] for _ in users]
    targets = [[77] if user % 4 else [3] for user in users]
    for name, columns in {
        "items": {"item_id": items, "train_count": counts, "title": ["a"] * 3706, "category": ["b"] * 3706},
        "test": {"user_id": users, "targets": targets, "seen": empty},
    }.items():
        (data / name).mkdir(parents=True)
        pq.write_table(pa.table(columns, schema=SCHEMAS[name]), data / name / "part-0.parquet")
    monkeypatch.chdir(tmp_path)
    found = quality.popular("mf_movielens")
    assert found is not None
    assert found["hit_rate@10"] == found["recall@10"] == 0.75
    assert found["coverage@10"] == pytest.approx(10 / 3706)


def test_a_run_on_a_gpu_is_told_as_such() -> None:
    assert "| 1.0 min (GPU) |" in render(of(run(device="gpu")))
    assert "| 1.0 min (CPU and GPU) |" in render(of(run(), run(seed=1, device="gpu")))


def test_the_time_of_exact_search_is_told_where_it_is_known() -> None:
    assert "exact search" not in render(of(run("mf_gowalla"), run("mf_gowalla", 1, test_s=None))).partition("## Gowalla")[2]
    runs = [run("mf_gowalla", test_s=5.04), run("mf_gowalla", 1), run("simplex_gowalla", test_s=7.26)]
    assert "exact search for all 29,858 test queries, with reading them, takes 5.0 to 7.3 s." in render(of(*runs))


@pytest.mark.parametrize(("ours", "said"), [(0.4474, "0.100 below"), (0.5574, "0.010 above")])
def test_the_gap_is_that_of_the_best_row(ours: float, said: str) -> None:
    better = run("dssm_movielens", metrics={"hit_rate@10": 0.1, "ndcg@10": 0.05, "hit_rate@50": ours})
    assert f"The best row here, DSSM, has HR@50 {said} it; 6,040 queries" in render(of(run(), better))
    assert "a standard error of 0.006." in render(of(run(), better))  # sqrt(.25 / 6040), and nearly that


def test_a_run_joins_those_of_its_config_and_puts_out_what_it_replaces(tmp_path: Path) -> None:
    record, document = tmp_path / "results" / "r.json", tmp_path / "r.md"
    for one in (run(seed=1), run("mf_gowalla"), run(seed=0), run(seed=1, seconds=5.0)):
        quality.keep(one, record, document)
    kept = [(r["config"], r["seed"], r["seconds"]) for r in quality.read(record)["runs"]]
    assert kept == [("mf_gowalla", 0, 60.0), ("mf_movielens", 0, 60.0), ("mf_movielens", 1, 5.0)]
    assert document.read_text() == render(quality.read(record))
    quality.keep(run(seed=4, digest="as it is now"), record, document)
    assert [(r["config"], r["seed"]) for r in quality.read(record)["runs"]] == [("mf_gowalla", 0), ("mf_movielens", 4)]


def test_a_finished_run_is_recorded(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", "train.seed=5")
    record, document = tmp_path / "r.json", tmp_path / "r.md"
    quality.main(["--from", str(folder), "--record", str(record), "--document", str(document)])
    (kept,) = json.loads(record.read_text())["runs"]
    assert (kept["config"], kept["seed"], kept["metrics"], kept["seconds"]) == ("mf_movielens", 5, METRICS, 10.5)
    assert kept["test_s"] is None  # it was scored on data.valid too
    assert (kept["digest"], kept["device"]) == (quality.digest("mf_movielens"), "cpu")
    assert str(tmp_path) not in record.read_text()


@pytest.mark.parametrize(
    ("overrides", "summary", "said"),
    [
        (["retrieval.temperature=0.9"], {}, "mf_movielens.toml has other retrieval.temperature"),
        ([], {"stopped_by": "SIGTERM"}, "was stopped by SIGTERM"),
        ([], {"metrics": {"valid/ndcg@10": 0.9}}, "was not scored on data.test"),
    ],
)
def test_what_is_no_run_of_a_row_is_refused(tmp_path: Path, overrides: list[str], summary: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        quality.finished(finished(tmp_path / "run", *overrides, **summary))


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    (finished(tmp_path / "run") / "summary.json").unlink()
    with pytest.raises(UserError, match="holds no finished run"):
        quality.finished(tmp_path / "run")


def test_it_trains_the_seeds_that_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def trains(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command[1:6])
        seed, folder = (word.partition("=")[2] for word in command[5:])
        finished(Path(folder), f"train.seed={seed}", config=Path(command[4]).stem)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", trains)
    to = ["--record", str(tmp_path / "r.json"), "--document", str(tmp_path / "r.md")]
    quality.keep(run(seed=1), tmp_path / "r.json", tmp_path / "r.md")
    quality.main(["--only", "mf_movielens", "--seeds", "2", *to])
    assert started == [["-m", "distrec", "train", "configs/mf_movielens.toml", "train.seed=0"]]
    quality.main(["--only", "mf_movielens", "--seeds", "2", "--again", *to])
    assert [command[-1] for command in started] == ["train.seed=0", "train.seed=0", "train.seed=1"]


def test_a_run_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    with pytest.raises(SystemExit, match="2"):
        quality.main(["--record", str(tmp_path / "r.json"), "--document", str(tmp_path / "r.md")])
    assert not (tmp_path / "r.json").exists()
