"""Fewer proposals are laid out than TorchRec would lay out, and the plan is TorchRec's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.types import Perf, Shard, Storage

from distrec.config.layout import layout
from distrec.config.schema import Features, SparseOptimizer, Table
from distrec.embeddings import options, plan, shard
from distrec.embeddings.cluster import Cluster
from distrec.embeddings.proposals import Incumbent
from distrec.embeddings.tables import Embeddings, build

MB = 2**20
ADAGRAD = SparseOptimizer(name="adagrad")


def model(tables: dict[str, Table], unpooled: tuple[str, ...] = ()) -> tuple[Embeddings, dict[str, list[str]]]:
    """On meta, and the sharding types that each table may have."""
    sparse = [{"name": f"{name}_id", "table": name} for name in tables if name not in unpooled]
    sequence = [{"name": f"{name}_ids", "table": name, "max_length": 20} for name in unpooled]
    features = layout(Features.model_validate({"sparse": sparse, "sequence": sequence}), tables)
    module = build(features, tables)
    shard.fuse(module, tables, ADAGRAD)
    return module, plan.allowed_types(features, tables, (), ADAGRAD, "cuda")


def planned(tables: dict[str, Table], unpooled: tuple[str, ...], cluster: Cluster) -> str:
    module, types = model(tables, unpooled)
    try:
        return str(plan.make_plan(module, types, tables, cluster, batch_size=64))
    except plan.DoesNotFit as error:
        return str(error)


def torchrecs_own(make: Callable[[], str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "hopeful_proposers", lambda topology: None)  # the planner then takes its default
        return make()


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Table], tuple[str, ...], Cluster]:
    """Tables of one width, some unpooled, some cached, on ranks that hold them easily, barely or not."""
    kinds: st.SearchStrategy[Any] = st.sampled_from(
        [(), (), ("row_wise", "table_wise"), ("table_wise", "data_parallel"), ("row_wise",)]
    )
    rows, cache = st.sampled_from([3, 9, 5_000, 70_000, 90_001]), st.sampled_from([None, None, None, 0.1])
    count, dim = draw(st.integers(1, 4)), draw(st.sampled_from([8, 64]))
    tables = {f"t{place}": Table(rows=draw(rows), dim=dim, cache=draw(cache), sharding=draw(kinds)) for place in range(count)}
    unpooled = tuple(name for name in tables if draw(st.integers(0, 4)) == 0)
    machines, ranks = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (2, 4)]))
    size = sum(table.rows * dim * 8 for table in tables.values()) / (machines * ranks)  # a rank's share, with Adagrad's state
    memory = int(size * draw(st.sampled_from([0.3, 1.2, 1.5, 2, 3, 5, 100]))) + MB
    return (
        tables,
        unpooled,
        Cluster(machines * ranks, ranks, "cuda", memory, host_memory=draw(st.sampled_from([MB, 1000 * MB]))),
    )


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_plan_is_that_of_torchrecs_own_proposers(problem: tuple[dict[str, Table], tuple[str, ...], Cluster]) -> None:
    """Sharding, kernel and rank of every part, or what is short."""
    assert planned(*problem) == torchrecs_own(lambda: planned(*problem))


@pytest.mark.parametrize("memory", [80_000, 100])  # where it fits, and where it does not
def test_few_proposals_are_laid_out(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EmbeddingShardingPlanner] = []
    planner = options.planner

    def kept(*args: object) -> EmbeddingShardingPlanner:
        made.append(planner(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(plan, "planner", kept)
    tables = {f"t{place}": Table(rows=10 ** (2 + place % 6), dim=64) for place in range(20)}
    cluster = Cluster(16, 8, "cuda", memory * MB)
    assert planned(tables, (), cluster) == torchrecs_own(lambda: planned(tables, (), cluster))
    ours, theirs = (one._num_proposals for one in made)
    assert theirs > 100
    assert ours <= theirs / 20


def option(layout: str, parts: list[int], place: int) -> Any:
    """An option whose parts take milliseconds (0), bytes of device memory (1) or of host memory (2)."""
    loads = [[part * (field == place) for field in range(3)] for part in parts]
    return SimpleNamespace(
        partition_by=layout, shards=[Shard([1, 1], [0, 0], Storage(hbm, ddr), Perf(ms, 0, 0, 0)) for ms, hbm, ddr in loads]
    )


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("fixed", "free", "out"),
    [
        ([[4, 1]], [9], False),  # the second of two ranks holds both: 10
        ([[4, 2]], [9], True),
        ([[5, 0], [5, 0]], [], False),
        ([[5, 0], [6, 0]], [], True),  # the first holds 11
        ([], [7, 7, 6], False),  # perhaps; what is known is that one rank holds at least 10
        ([], [7, 7, 7], True),
        ([[3, 3]], [5, 5, 5], True),
    ],
)
def test_what_is_ruled_out_is_more_than_two_ranks_of_ten_hold(
    place: int, fixed: list[list[int]], free: list[int], out: bool
) -> None:
    device = SimpleNamespace(storage=Storage(10, 10))
    incumbent = Incumbent(SimpleNamespace(devices=[device, device], world_size=2))  # type: ignore[arg-type]
    incumbent.rated(12)
    incumbent.rated(10)
    incumbent.rated(11)
    proposal = [*(option("uniform", parts, place) for parts in fixed), option("device", free, place)]
    assert incumbent.rules_out(proposal if free else proposal[:-1]) == out
