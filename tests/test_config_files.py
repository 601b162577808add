"""Every config that ships trains and evaluates on the data that its first lines prepare."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distrec import dist
from distrec.config.check import find_faults
from distrec.config.load import load
from distrec.prepare.criteo import criteo
from distrec.prepare.movielens import movielens
from distrec.prepare.retrieval.gowalla import gowalla
from distrec.prepare.retrieval.movielens_retrieval import movielens_retrieval
from distrec.prepare.synthetic import synthetic
from distrec.trainer import build

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def given(name: str) -> Path:
    """Real data, where it is."""
    if "DISTREC_DATA" not in os.environ:
        pytest.skip(f"needs {name}; set DISTREC_DATA to the folder that holds it")
    return Path(os.environ["DISTREC_DATA"]) / name


def prepare_movielens(out: Path, which: str, **options: Any) -> None:
    """The dataset, with few rows to evaluate on."""
    movielens(which, out, source=given(f"{which.replace('movielens', 'ml')}.zip"), **options)
    with_few_to_evaluate_on(out)


def prepare_retrieval(out: Path, which: str) -> None:
    """The dataset of a retriever, likewise."""
    if which == "gowalla":
        gowalla(out, source=given("gowalla.zip"))
    else:
        movielens_retrieval(which, out, source=given(f"{which.replace('movielens', 'ml')}.zip"))
    with_few_to_evaluate_on(out)


def prepare_movielens_1m(out: Path) -> None:
    prepare_movielens(out, "movielens-1m")
    prepare_retrieval(out, "movielens-1m")


def with_few_to_evaluate_on(out: Path) -> None:
    for split in ("valid", "test"):
        for path in out.glob(f"*/{split}/*.parquet"):
            pq.write_table(pq.read_table(path).slice(0, 2000), path)


def prepare_criteo(out: Path) -> None:
    out.symlink_to(given("criteo-tb-80k"), target_is_directory=True)


PREPARE: dict[str, Callable[[Path], object]] = {  # folder under data/ -> how to fill it
    "synthetic": lambda out: synthetic(out, rows=3000, valid_rows=1000),
    "gowalla": lambda out: prepare_retrieval(out, "gowalla"),
    "ml-1m": prepare_movielens_1m,
    "ml-100k": lambda out: prepare_movielens(out, "movielens-100k", task="rating", split="random"),
    "criteo-tb": prepare_criteo,
    "criteo-kaggle": lambda out: criteo([given("criteo-kaggle-10k.tsv.gz")], out),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder that holds `data/<name>`; each is prepared once."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "data").mkdir()

    def ready(name: str) -> Path:
        if not (root / "data" / name).exists():
            PREPARE[name](root / "data" / name)
        return root

    return ready


def test_there_are_configs() -> None:
    assert {path.stem.split("_")[0] for path in CONFIGS} >= {
        *("dlrm", "deepfm", "din", "wide", "dcn", "mmoe"),
        *("mf", "two", "dssm", "youtube", "simplex"),
    }
    assert len(CONFIGS) >= 21


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_says_how_to_run_it_and_contradicts_nothing(path: Path) -> None:
    assert list(find_faults(load(path))) == []
    head = path.read_text().split("name =")[0]
    assert f"# distrec train configs/{path.name}" in head
    assert f"--config configs/{path.name}" in head


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_and_evaluates(
    path: Path, prepared: Callable[[str], Path], ranks: dist.Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = load(path).data.train[0].split("/")[1]
    monkeypatch.chdir(prepared(name))
    few = ["train.steps=1", "data.batch_size=256", "data.shuffle_window=1024", "data.eval_batch_size=8192", "train.device=cpu"]
    config = load(path, [*few, "train.log_every=1", f"folder={tmp_path / 'run'}"])
    report = build(config, ranks, None).run()
    assert report.steps == 1
    measured = "loss" if config.retrieval is None else "ndcg@20"
    assert {f"{split}/{measured}" for split in ("valid", "test") if getattr(config.data, split)} <= report.metrics.keys()
    assert all(math.isfinite(value) for tag, value in report.metrics.items() if not tag.endswith("gauc"))
