"""Several labels from the config to the export: a model of several tasks, each measured by its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import Command
from small_run import values, write_rows
from toml_text import to_toml

TASKS = [{"name": "click", "label": "label"}, {"name": "like", "label": "liked"}]
PARAMS = {"experts": 2, "task_experts": 1, "expert_mlp": [16, 8], "tower_mlp": [8]}
NO_NUMBERS = {
    "sparse": [{"name": "user", "table": "user"}, {"name": "item", "table": "item"}],
    "sequence": [{"name": "history", "table": "item", "max_length": 4}],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Train and valid: `label` goes by the item, `liked` by the user; beside them, what no model can beat."""
    for split, rows in (("train", 4000), ("valid", 1000)):
        draw = np.random.default_rng(rows)
        user, item = draw.integers(0, 50, rows), draw.integers(0, 40, rows)
        labels = {"label": (item % 2).astype(np.int8), "liked": (user % 3 == 0).astype(np.int8)}
        write_rows(tmp_path / split, rows, user=user, item=item, **labels)
    (tmp_path / "dataset.json").write_text(json.dumps({"bayes_auc": 0.91234, "bayes_auc_liked": 0.87654}))
    return tmp_path


def write_config(data: Path, **sections: Any) -> Path:
    path = data / "tasks.toml"
    shared = {
        "features": NO_NUMBERS,
        "model": {"name": "mmoe", "params": PARAMS},
        "tasks": TASKS,
        "data": {"train": str(data / "train"), "valid": str(data / "valid"), "batch_size": 64, "shuffle_window": 256},
        "train": {"device": "cpu", "log_every": 20, "epochs": 2},
    }
    path.write_text(to_toml(values(data, data / "run", **(shared | sections))), encoding="utf-8")
    return path


def test_two_tasks_are_learned_measured_scored_again_and_exported(distrec: Command, data: Path) -> None:
    path, run = write_config(data), data / "run"
    trained = distrec("train", path)
    assert trained.code == 0, trained.err
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert min(metrics["valid/click/auc"], metrics["valid/like/auc"]) > 0.9
    assert metrics["valid/loss"] == pytest.approx(metrics["valid/click/logloss"] + metrics["valid/like/logloss"], rel=1e-5)
    told = re.sub(" +", " ", trained.out)
    assert "│ valid/click/auc of the true probabilities │ 0.91234 │" in told
    assert "│ valid/like/auc of the true probabilities │ 0.87654 │" in told
    again = distrec("evaluate", run)
    assert again.code == 0, again.err
    assert f"{metrics['valid/like/auc']:.5g}" in again.out
    exported = distrec("export", run)
    assert exported.code == 0, exported.err
    assert list((run / "export").rglob("*.pt2"))


def test_the_labels_are_not_mixed_up(distrec: Command, data: Path) -> None:
    """With one label a coin toss, its task alone has an AUC of a coin."""
    for split in ("train", "valid"):
        for part in (data / split).glob("*.parquet"):
            table = pq.read_table(part)
            tossed = np.random.default_rng(len(part.name)).integers(0, 2, len(table)).astype(np.int8)
            pq.write_table(table.set_column(table.schema.get_field_index("liked"), "liked", [tossed]), part, row_group_size=300)
    assert distrec("train", write_config(data)).code == 0
    metrics = json.loads((data / "run" / "summary.json").read_text())["metrics"]
    assert metrics["valid/click/auc"] > 0.9
    assert abs(metrics["valid/like/auc"] - 0.5) < 0.1


@pytest.mark.parametrize("verb", ["check", "train"])
def test_one_task_is_refused(distrec: Command, data: Path, verb: str) -> None:
    ended = distrec(verb, write_config(data, tasks=TASKS[:1]))
    assert ended.code == 2
    assert "at least two [[tasks]]" in re.sub(r"\s+", " ", ended.err + ended.out)
