"""A plan on disk: what is written is what is read, and what does not go with the run is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec import dist
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.embeddings.plan_file import _covers
from distrec.engine import Engine
from distrec.errors import UserError
from distrec.planner.planning import Machines, make

GB = 2**30
KINDS = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")


def config(*overrides: str) -> Config:
    """A table of each sharding type, one more for a history, and one in half precision."""
    tables: dict[str, Any] = {kind: {"rows": 103, "dim": 16, "sharding": kind} for kind in KINDS}
    tables["item"] = {"rows": 50, "dim": 8, "sharding": "row_wise"}
    tables["cached"] = {"rows": 1000, "dim": 8, "cache": 0.2, "precision": "fp16"}
    return parse(
        {
            "name": "kept",
            "data": {"train": "none"},
            "tables": tables,
            "features": {
                "sparse": [{"name": f"{name}_id", "table": name} for name in tables],
                "sequence": [{"name": "history", "table": "item", "max_length": 5}],
            },
            "model": {"name": "dlrm", "params": {"top_mlp": [4], "interaction": "dcn"}},
            "optimizer": {"sparse": {"name": "adagrad"}},
        },
        overrides,
    )


MACHINES = Machines(2, 4, "cuda", GB, GB)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make(config(), MACHINES).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def planned_with(path: Path, *overrides: str, machines: Machines = MACHINES) -> Any:
    return make(config(f"embedding.plan={path}", *overrides), machines)


def test_a_plan_that_was_saved_is_the_plan_that_is_read(saved: Path) -> None:
    fresh, kept = make(config(), MACHINES), planned_with(saved)
    assert {t.name: t.sharding for t in kept.estimate.tables} | {"item": "", "cached": ""} == dict(
        zip(KINDS, KINDS, strict=True)
    ) | {"item": "", "cached": ""}
    assert kept.estimate == fresh.estimate
    parts = {module: dict(part) for module, part in fresh.plan.plan.items()}  # type: ignore[arg-type]
    again = {module: dict(part) for module, part in kept.plan.plan.items()}  # type: ignore[arg-type]
    assert parts.keys() == again.keys()
    for module, part in parts.items():
        assert part.keys() == again[module].keys()
        for name, sharding in part.items():
            found = again[module][name]
            assert (found.sharding_type, found.compute_kernel) == (sharding.sharding_type, sharding.compute_kernel), name
            assert found.ranks == sharding.ranks, name
            assert found.sharding_spec == sharding.sharding_spec, name
            assert (found.cache_params and found.cache_params.load_factor) == (
                sharding.cache_params and sharding.cache_params.load_factor
            )


def test_a_table_stands_on_one_line_with_its_shards(saved: Path) -> None:
    [line] = [line for line in saved.read_text().splitlines() if line.strip().startswith('"row_wise"')]
    entry = json.loads(line.strip().removesuffix(",").partition(": ")[2])
    assert entry["shards"] == [[rank, 13 * rank, 0, 13 if rank < 7 else 12, 16] for rank in range(8)]  # 103 rows over 8


def change(path: Path, edit: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def first_shard(table: str, place: int, value: int) -> Callable[[dict], None]:
    return lambda plan: plan["tables"][table]["shards"][0].__setitem__(place, value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda plan: plan["tables"].pop("item"), "table 'item' is not in the plan"),
        (lambda plan: plan["tables"].update(gone=plan["tables"]["item"]), "table 'gone' is in the plan and not in the config"),
        (
            lambda plan: plan["tables"]["item"].update(shape=[51, 8]),
            "table 'item' is 51 x 8 in the plan and 50 x 8 in the config",
        ),
        (lambda plan: plan["tables"]["cached"].update(cache=0.5), "table 'cached' has cache = 0.5 in the plan and 0.2 in"),
        (
            lambda plan: plan["tables"]["item"].update(sharding="table_row_wise"),
            "table 'item' is sharded table_row_wise in the plan and may be row_wise",
        ),
        (lambda plan: plan["tables"]["item"]["shards"].pop(), "table 'item': its shards do not cover it once"),
        (lambda plan: plan["tables"]["item"].update(shards=[]), "table 'item': its shards do not cover it once"),
        (first_shard("grid_shard", 0, 8), "'grid_shard': its shards do not cover it once, on ranks that are there"),
        (first_shard("column_wise", 2, 4), "'column_wise': its shards do not cover it once"),
        (lambda plan: plan["tables"]["data_parallel"].update(shards=[[0, 0, 0, 103, 16]]), "'data_parallel': its shards"),
        (lambda plan: plan["tables"]["item"].pop("sharding"), "tables.item.sharding: this key is required"),
        (lambda plan: plan.update(format=2), "format: Input should be 1"),
        (lambda plan: plan["tables"]["item"].update(colour="red"), "tables.item.colour: no such key"),
        (first_shard("item", 1, -1), "tables.item.shards.0.1"),
    ],
)
def test_a_plan_that_does_not_go_with_the_config_is_refused(saved: Path, edit: Callable[[dict], None], words: str) -> None:
    change(saved, edit)
    with pytest.raises(UserError) as caught:
        planned_with(saved)
    assert words in str(caught.value)
    assert str(saved) in str(caught.value)


def test_all_faults_are_told_at_once(saved: Path) -> None:
    change(saved, lambda plan: (plan["tables"].pop("item"), plan["tables"]["row_wise"]["shards"].pop()))
    with pytest.raises(UserError, match=r"'item' is not in the plan\n.*'row_wise': its shards"):
        planned_with(saved)


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 4), (1, 8), (4, 2)])
def test_a_plan_is_for_its_ranks(saved: Path, nodes: int, ranks: int) -> None:
    """Also for as many on other machines: sharding within a machine would cross them."""
    with pytest.raises(UserError, match=rf"made for 8 cuda ranks, 4 a machine, and this run has {nodes * ranks} cuda ranks"):
        planned_with(saved, machines=Machines(nodes, ranks, "cuda", GB, GB))


@pytest.mark.parametrize(("text", "words"), [("{", "is no plan: "), ("[1]", "is no plan; write one"), (None, "cannot be read")])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        planned_with(path)


def test_a_plan_cannot_be_written_into_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the plan cannot be written to .*: No such file"):
        make(config(), MACHINES).save(tmp_path / "no" / "plan.json")


# -- what shards cover -----------------------------------------------------------------------------------------------


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[tuple[int, int, int, int, int]], int, int]:
    """A table cut into strips of columns, each cut into runs of rows of its own."""
    shards, column = [], 0
    rows = draw(st.integers(1, 20))
    for width in draw(st.lists(st.integers(1, 8), min_size=1, max_size=4)):
        cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
        edges = [0, *cuts, rows]
        shards += [(0, a, column, b - a, width) for a, b in itertools.pairwise(edges)]
        column += width
    return draw(st.permutations(shards)), rows, column


@given(grids(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_grid_covers_and_any_other_cut_of_it_does_not(grid: tuple[list, int, int], data: st.DataObject) -> None:
    shards, rows, dim = grid
    assert _covers(shards, rows, dim, world=1)
    assert not _covers(shards, rows, dim, world=0)
    at = data.draw(st.integers(0, len(shards) - 1))
    if shards[at][3]:  # a part that holds something: without it, or twice, or moved, there is a hole or an overlap
        assert not _covers(shards[:at] + shards[at + 1 :], rows, dim, 1)
        assert not _covers([*shards, shards[at]], rows, dim, 1)
        rank, row, column, count, width = shards[at]
        assert not _covers([*shards[:at], (rank, row + 1, column, count, width), *shards[at + 1 :]], rows, dim, 1)


# -- training with it ------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    yield dist.start("cpu")
    dist.stop()


def test_training_lays_tables_as_the_plan_says(alone: dist.Ranks, tmp_path: Path) -> None:
    run = {
        "name": "kept",
        "data": {"train": "none"},
        "tables": {"t": {"rows": 30, "dim": 8}},
        "features": {"dense": ["x"], "sparse": [{"name": "f", "table": "t"}]},
        "model": {"name": "deepfm", "params": {"mlp": [4]}},
        "train": {"device": "cpu"},
    }
    path = tmp_path / "plan.json"
    where = Machines(1, 1, "cpu", GB, GB)
    for kind in ("row_wise", "table_wise"):
        make(parse(run, [f"tables.t.sharding={kind}"]), where).save(path)
        engine = Engine.build(parse(run, [f"embedding.plan={path}"]), alone)
        [sharding] = [s for part in engine.plan.plan.values() for s in part.values()]  # type: ignore[attr-defined]
        assert sharding.sharding_type == kind
