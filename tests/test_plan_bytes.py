"""The planner's estimate against what ranks then hold and allocate, and training with a plan that was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from distrec.config.load import dump, parse
from distrec.planner.planning import Machines, Planned, make

pytestmark = pytest.mark.slow  # ranks that train under a watch on their memory, for a minute

GB = 2**30
SHARDED = ("table_wise", "row_wise")


def pooled(kind: str) -> dict[str, Any]:
    """Ten tables, all sharded alike, for a model that is small beside the vectors it is given."""
    return case(
        {f"t{i}": {"rows": 4000, "dim": 64, "sharding": kind} for i in range(10)},
        [{"name": f"t{i}", "table": f"t{i}", "pooling_factor": 2} for i in range(10)],
        [],
        {"name": "dlrm", "params": {"bottom_mlp": [64], "top_mlp": [16]}},
    )


def mixed() -> dict[str, Any]:
    """Each kind of table at once, two optimizers, a history, and a model with attention."""
    return case(
        {
            "user": {"rows": 30_000, "dim": 64, "sharding": "table_wise"},
            "shop": {"rows": 20_000, "dim": 64, "sharding": "row_wise", "optimizer": {"name": "adagrad"}},
            "small": {"rows": 1000, "dim": 64, "sharding": "data_parallel"},
            "item": {"rows": 30_000, "dim": 64, "sharding": "row_wise"},
        },
        [{"name": n, "table": n, "pooling_factor": 4 if n == "shop" else 1} for n in ("user", "shop", "small", "item")],
        [{"name": "history", "table": "item", "max_length": 10}],
        {"name": "din", "params": {"targets": ["item"], "histories": ["history"], "top_mlp": [64], "attention_mlp": [16]}},
    )


def history() -> dict[str, Any]:
    """A long history in one table that one rank holds, so that ranks differ in what they need."""
    return case(
        {
            "user": {"rows": 2500, "dim": 32, "sharding": "row_wise"},
            "item": {"rows": 20_000, "dim": 32, "sharding": "table_wise"},
        },
        [{"name": "user", "table": "user"}],
        [{"name": "history", "table": "item", "max_length": 40}],
        {"name": "dlrm", "params": {"bottom_mlp": [32], "top_mlp": [64]}},
    )


def case(tables: dict, sparse: list, sequence: list, model: dict) -> dict[str, Any]:
    return {
        "name": "bytes",
        "data": {"train": "none", "batch_size": 2048},
        "tables": tables,
        "features": {"dense": ["x", "y"], "sparse": sparse, "sequence": sequence},
        "model": model,
    }


CASES: dict[str, Callable[[], dict[str, Any]]] = {kind: lambda kind=kind: pooled(kind) for kind in SHARDED}
CASES |= {"mixed": mixed, "history": history}


@dataclass(frozen=True)
class Found:
    planned: Planned
    file: dict[str, Any]
    ranks: list[dict[str, Any]]


def on_ranks(folder: Path, count: int, device: str) -> dict[str, Found]:
    """Plan every case with no ranks at all, save the plans, and train a few steps with them."""
    planned = {}
    for name, values in CASES.items():
        config = parse(values() | {"train": {"device": device}})
        planned[name] = make(config, Machines(1, count, device, 8 * GB, 8 * GB))
        planned[name].save(folder / f"{name}.plan.json")
        (folder / f"{name}.case.json").write_text(
            dump(
                config.model_copy(
                    update={"embedding": config.embedding.model_copy(update={"plan": f"{folder}/{name}.plan.json"})}
                )
            )
        )
    outcome = run_ranks("plan_bytes.py", count, folder, device)
    assert outcome.code == 0, outcome.output
    files = {name: json.loads((folder / f"{name}.plan.json").read_text())["tables"] for name in CASES}
    return {name: Found(planned[name], files[name], outcome.results[name]) for name in CASES}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return on_ranks(tmp_path_factory.mktemp("bytes"), 2, "cpu")


@pytest.mark.parametrize("name", CASES)
def test_each_rank_holds_what_the_saved_plan_gives_it(two: dict[str, Found], name: str) -> None:
    found = two[name]
    for rank, held in enumerate(found.ranks):
        for table, entry in found.file.items():
            rows, dim = entry["shape"]
            shards = [s for s in entry["shards"] if s[0] == rank] if entry["shards"] else [[rank, 0, 0, rows, dim]]
            assert held["weights"].get(table, 0) == sum(4 * s[3] * s[4] for s in shards), (rank, table)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_state_are_estimated_to_the_byte(two: dict[str, Found], name: str) -> None:
    found = two[name]
    for estimate, held in zip(found.planned.estimate.bytes, found.ranks, strict=True):
        assert estimate.weights == sum(held["weights"].values())
        assert estimate.optimizer == held["optimizer"]


@pytest.mark.parametrize("name", CASES)
def test_all_bytes_of_a_rank_are_estimated_within_ten_percent(two: dict[str, Found], name: str) -> None:
    found = two[name]
    pairs = [(size, held["peak"]) for size, held in zip(found.planned.device_bytes, found.ranks, strict=True)]
    for rank, (size, peak) in enumerate(pairs):  # shown by pytest -rP
        print(f"{name}, rank {rank}: estimated {size / 2**20:.1f} MB, allocated {peak / 2**20:.1f} MB, {size / peak - 1:+.1%}")
    ratios = [size / peak for size, peak in pairs]
    assert ratios == pytest.approx([1.0, 1.0], abs=0.1)


def test_what_a_step_needs_is_not_hidden_behind_the_tables(two: dict[str, Found]) -> None:
    """Else ten percent would mean little."""
    for name in (*SHARDED, "history"):
        found = two[name]
        tables = max(load.weights + load.optimizer for load in found.planned.estimate.bytes)
        assert max(held["peak"] for held in found.ranks) > 2 * tables, name


def test_the_plan_does_not_change_what_is_learned(two: dict[str, Found]) -> None:
    losses = {kind: [held["losses"] for held in two[kind].ranks] for kind in SHARDED}
    for kind in SHARDED:
        for ours, theirs in zip(losses[kind], losses["table_wise"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_bytes_of_a_gpu_are_estimated_within_ten_percent(tmp_path: Path) -> None:
    for name, found in on_ranks(tmp_path, 1, "cuda").items():
        assert found.planned.device_bytes[0] / found.ranks[0]["peak"] == pytest.approx(1.0, abs=0.1), name
