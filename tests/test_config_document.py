"""The JSON Schema accepts what distrec accepts, says what each key means, and docs/config.md is its newest form."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from json_schema_rules import breaches

from distrec.config.document import json_schema, markdown
from distrec.config.load import parse, validate
from distrec.errors import UserError
from distrec.models import MODELS, RETRIEVERS

ROOT = Path(__file__).parents[1]
PARAMS = {name: model.Params for name, model in (MODELS | RETRIEVERS).items()}
SCHEMA = json_schema(PARAMS)
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
DIN = tomllib.loads((ROOT / "configs/din_synthetic.toml").read_text())


def test_the_page_of_keys_is_up_to_date():
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == markdown(PARAMS), "run `make docs`"


def test_every_key_says_what_it_means():
    sections = {"Config": SCHEMA} | SCHEMA["$defs"]
    assert len(sections) > 15
    for name, section in sections.items():
        assert section["description"], name
        for key, node in section["properties"].items():
            assert "$ref" in node or len(node.get("description", "")) > 2, f"{name}.{key}"


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_keeps_the_schema(path):
    assert list(breaches(SCHEMA, SCHEMA, tomllib.loads(path.read_text()))) == []


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("train.epoch", 3, ".train.epoch"),
        ("train.epochs", 0, ".train.epochs"),
        ("train.epochs", "three", ".train.epochs"),
        ("train.device", "gpu", ".train.device"),
        ("train.seed", -1, ".train.seed"),
        ("train.seed", 2**32, ".train.seed"),
        ("data.train", 7, ".data.train"),
        ("data.shuffle", "yes please", ".data.shuffle"),
        ("tables.item.dims", 8, ".tables.item.dims"),
        ("tables.a b", {"rows": 4, "dim": 4}, ".tables.a b"),
        ("tables.item.sharding", "rowwise", ".tables.item.sharding"),
        ("optimizer.dense.betas", [0.9], ".optimizer.dense.betas"),
        ("optimizer.dense.betas", [0.9, 1.0], ".optimizer.dense.betas[1]"),
        ("optimizer.dense.eps", 0, ".optimizer.dense.eps"),
        ("features.dense", [{"nam": "i1"}], ".features.dense[0]"),
        ("tasks", [], ".tasks"),
        ("model.params.target", ["item"], ".model.params.target"),
        ("model.params.top_activation", "gelu", ".model.params.top_activation"),
    ],
)
def test_what_distrec_refuses_the_schema_refuses_at_the_same_key(path, value, where):
    assert {breach.partition(": ")[0] for breach in breaches(SCHEMA, SCHEMA, changed(path, value))} == {where}
    with pytest.raises(UserError):
        accept(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.train", "one/folder"),
        ("data.train", ["one", "two"]),
        ("tables.item.sharding", "row_wise"),
        ("tables.item.sharding", ["row_wise", "table_wise"]),
        ("tables.item.optimizer", {"name": "sgd"}),
        ("features.dense", ["i1", {"name": "i2", "null": 0}]),
        ("train.clip_norm", 1),
        ("model.name", "my_models:Wide"),
    ],
)
def test_what_distrec_accepts_the_schema_accepts(path, value):
    values = changed(path, value)
    if path == "model.name":
        values["model"]["params"] = {"anything": 1}
    accept(values)
    assert list(breaches(SCHEMA, SCHEMA, values)) == []


def changed(path: str, value) -> dict:
    values = copy.deepcopy(DIN)
    *above, last = path.split(".")
    at = values
    for key in above:
        at = at.setdefault(key, {})
    at[last] = value
    return values


def accept(values: dict) -> None:
    config = parse(values)
    if config.model.name in MODELS:
        validate(MODELS[config.model.name].Params, config.model.params, "params")


def test_the_command_prints_the_schema():
    done = subprocess.run([sys.executable, "-m", "distrec", "schema"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == SCHEMA


def test_the_page_shows_keys_types_defaults_and_headings():
    page = markdown(PARAMS)
    for line in (
        "## `[tables.NAME]`",
        "## `[[features.sequence]]`",
        "## `[optimizer.schedule]`",
        "## `[model.params]` of `din`",
        "| `batch_size` | integer > 0 | `1024` | rows a rank and step |",
        '| `kind` | one of `"binary"`, `"regression"` | `"binary"` | binary: BCE on logits, label 0 or 1; regression: MSE |',
    ):
        assert line in page.splitlines()
