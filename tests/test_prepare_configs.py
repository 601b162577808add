"""The configs in configs/: each is valid, builds its model, says how it is run and fits the data that its command prepares."""

import json
import re
import shlex
from pathlib import Path

import pytest

from distrec.config.check import check
from distrec.config.layout import layout
from distrec.config.load import load
from distrec.models import build
from distrec.models.inputs import InputSpec
from distrec.prepare.movielens_tables import GENRES
from distrec.prepare.synthetic import synthetic

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*.toml"))
NAMES = [path.stem for path in CONFIGS]
RETRIEVERS = [path for path in CONFIGS if load(path).retrieval is not None]
RANKERS = [path for path in CONFIGS if path not in RETRIEVERS]


@pytest.fixture(scope="module")
def synthetic_columns(tmp_path_factory):
    prepared = synthetic(tmp_path_factory.mktemp("synthetic"), rows=64, valid_rows=64)
    return json.loads(prepared.description.read_text())["columns"]


def command(path, program):
    return [shlex.split(line) for line in re.findall(rf"^# ({program} .*)$", path.read_text(), re.MULTILINE)]


def words_read(config):
    """Every column that a config reads, and the table rows of those that hold ids."""
    ids = {
        f.column or f.name: (config.tables[f.table].rows, f.ids) for f in (*config.features.sparse, *config.features.sequence)
    }
    plain = {f.column or f.name for f in config.features.dense} | {t.label for t in config.tasks} | {config.data.group}
    return plain - {None}, ids


def test_there_are_configs_for_every_model_and_dataset():
    wanted = {f"{model}_{data}" for model in ("dlrm", "deepfm", "din") for data in ("synthetic", "movielens")}
    wanted |= {"dcn_movielens", "wide_deep_movielens", "mmoe_synthetic"}
    assert set(NAMES) >= wanted | {"dlrm_dcn_synthetic", "dlrm_movielens100k_rating", "dlrm_criteo"}


@pytest.mark.parametrize("path", RANKERS, ids=lambda p: p.stem)
def test_a_config_is_valid_and_builds_its_model(path):
    config = load(path)
    check(config)
    placed = layout(config.features, config.tables)
    shapes = InputSpec(len(placed.dense), placed.pooled_dims, placed.sequence_dims, len(config.tasks))
    assert sum(p.numel() for p in build(config.model.name, config.model.params, shapes).parameters()) > 1000
    assert config.name == path.stem.replace("_", "-")


@pytest.mark.parametrize("path", RETRIEVERS, ids=lambda p: p.stem)
def test_a_retriever_has_a_row_for_every_published_user_and_item(path):
    config = load(path)
    check(config)
    rows = {name: table.rows for name, table in config.tables.items()}
    users, items = (29858, 40981) if "gowalla" in path.stem else (6040, 3706)
    published = {"user": users, "item": items, "history": items, "gender": 2, "age": 57, "occupation": 21, "genre": len(GENRES)}
    assert {"item"} <= rows.keys() <= published.keys() | {"zip"}
    assert {name: rows[name] for name in rows.keys() & published.keys()} == {n: published[n] for n in rows.keys() - {"zip"}}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_first_lines_are_the_commands_that_run_it(path):
    here = f"configs/{path.name}"
    assert command(path, "distrec train") == [["distrec", "train", here]]
    [torchx] = command(path, "torchx run")
    assert torchx[torchx.index("--config") + 1] == here
    config = load(path)
    for prepare in command(path, "distrec prepare"):
        usual = "ctr" if config.retrieval is None else "retrieval"
        task = prepare[prepare.index("--task") + 1] if "--task" in prepare else usual
        out = f"{prepare[prepare.index('--out') + 1]}/{task}"
        assert {Path(p).parent.as_posix() for p in (*config.data.train, *config.data.valid, *config.data.test)} == {out}
    assert command(path, "distrec prepare") or path.stem == "dlrm_criteo"


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.endswith("_synthetic")], ids=lambda p: p.stem)
def test_its_columns_and_tables_are_those_of_the_synthetic_data(path, synthetic_columns):
    plain, ids = words_read(load(path))
    cardinality = {c["name"]: c.get("cardinality") for c in synthetic_columns}
    assert plain <= set(cardinality)
    assert {name: rows for name, (rows, _) in ids.items()} == {name: cardinality[name] for name in ids}
    assert set(ids) == {c["name"] for c in synthetic_columns if c["role"] in ("sparse", "sequence")}
    assert plain >= {c["name"] for c in synthetic_columns if c["role"] in ("dense", "group")} | {"label"}
    assert ("liked" in plain) == (path.stem == "mmoe_synthetic")


@pytest.mark.parametrize("path", [p for p in RANKERS if "movielens" in p.stem], ids=lambda p: p.stem)
def test_its_tables_hold_the_published_ids_of_movielens(path):
    _, ids = words_read(load(path))
    small = "100k" in path.stem
    published = {"user_id": 943 if small else 6040, "movie_id": 1682 if small else 3952, "age": 73 if small else 56}
    published |= {"gender": 1, "occupation": 20, "genre": len(GENRES) - 1, "genres": len(GENRES) - 1}
    for name, (rows, kind) in ids.items():
        assert kind == ("hash" if name == "zip" else "index")
        if kind == "index":
            assert rows == published[name.removeprefix("history_")] + 1, name


def test_the_criteo_config_reads_criteos_columns():
    plain, ids = words_read(load(next(p for p in CONFIGS if p.stem == "dlrm_criteo")))
    assert plain == {"label", *(f"i{i}" for i in range(1, 14))}
    assert {name: kind for name, (_, kind) in ids.items()} == {f"c{i}": "hash" for i in range(1, 27)}
