"""A plan as a JSON file: written by `distrec plan --save`, trained with by `embedding.plan`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ParameterSharding,
    ShardingPlan,
)

from distrec.config.load import validate
from distrec.config.schema import Table
from distrec.config.words import Count, PositiveInt, Section, ShardingType, Share
from distrec.embeddings.cluster import Cluster
from distrec.errors import UserError
from distrec.json_out import to_json


class MadeFor(Section):
    """The ranks of a plan."""

    ranks: PositiveInt
    ranks_a_machine: PositiveInt
    device: Literal["cpu", "cuda"]


class Entry(Section):
    """A table in a plan. `shards`: (rank, first row, first column, rows, columns); none when every rank holds it whole."""

    shape: tuple[PositiveInt, PositiveInt]
    sharding: ShardingType
    cache: Share | None = None
    shards: tuple[tuple[Count, Count, Count, Count, Count], ...] = ()


class PlanFile(Section):
    """All of the file."""

    format: Literal[1]
    made_for: MadeFor
    tables: dict[str, Entry]


def save(plan: ShardingPlan, path: Path, tables: Mapping[str, Table], cluster: Cluster) -> None:
    """Write a plan, one table a line, so that a difference between two plans names the tables that moved.

    Raises:
        UserError: the file cannot be written.
    """
    head = {"ranks": cluster.world, "ranks_a_machine": cluster.local_world, "device": cluster.device}
    parts = [part for part in plan.plan.values() if isinstance(part, EmbeddingModuleShardingPlan)]
    entries = {name: _entry(sharding, tables[name]) for part in parts for name, sharding in part.items()}
    lines = ",\n".join(f"  {to_json(name)}: {to_json(entry)}" for name, entry in sorted(entries.items()))
    try:
        path.write_text(f'{{"format": 1, "made_for": {to_json(head)}, "tables": {{\n{lines}\n}}}}\n', encoding="utf-8")
    except OSError as error:
        raise UserError(f"the plan cannot be written to {path}: {error.strerror}") from None


def _entry(sharding: ParameterSharding, table: Table) -> dict[str, Any]:
    spec = sharding.sharding_spec
    shards = spec.shards if isinstance(spec, EnumerableShardingSpec) else []
    return {
        "shape": [table.rows, table.dim],
        "sharding": sharding.sharding_type,
        "cache": table.cache,
        "shards": [[_rank(part), *part.shard_offsets, *part.shard_sizes] for part in shards],
    }


def _rank(part: ShardMetadata) -> int:
    assert part.placement is not None
    rank = part.placement.rank()
    assert rank is not None
    return rank


def load(
    path: Path, types: Mapping[str, Sequence[str]], tables: Mapping[str, Table], cluster: Cluster, homes: Mapping[str, str]
) -> ShardingPlan:
    """Read a plan back.

    Args:
        path: the file.
        types: allowed sharding types by table, from `distrec.embeddings.plan.allowed_types`.
        tables: the config's tables.
        cluster: the ranks to train on.
        homes: the collection of each table, from `collections_of`.

    Raises:
        UserError: the file is missing or damaged, or made for other tables or ranks.
    """
    file: PlanFile = validate(PlanFile, _read(path), f"embedding.plan = {str(path)!r}")
    made, ours = file.made_for, (cluster.world, cluster.local_world, cluster.device)
    if (made.ranks, made.ranks_a_machine, made.device) != ours:
        raise UserError(
            f"embedding.plan = {str(path)!r} was made for {made.ranks} {made.device} ranks, {made.ranks_a_machine} a machine, "
            f"and this run has {ours[0]} {ours[2]} ranks, {ours[1]} a machine; make a plan for these, or remove the key"
        )
    if faults := [*_strangers(file.tables, tables), *_faults(file.tables, types, tables, cluster.world)]:
        raise UserError("\n".join([f"embedding.plan = {str(path)!r} does not go with this config; make it anew:", *faults]))
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for name, entry in file.tables.items():
        plan.setdefault(homes[name], EmbeddingModuleShardingPlan())[name] = _sharding(entry, cluster)
    return ShardingPlan(plan)  # type: ignore[arg-type]


def collections_of(model: nn.Module, sharders: Sequence[ModuleSharder]) -> dict[str, str]:
    """Table -> qualified name of the collection that holds it."""
    kinds = {sharder.module_type: sharder for sharder in sharders}
    return {
        table: name
        for name, module in model.named_modules()
        if type(module) in kinds
        for table in kinds[type(module)].shardable_parameters(module)
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"embedding.plan = {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"embedding.plan = {str(path)!r} is no plan: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"embedding.plan = {str(path)!r} is no plan; write one with `distrec plan CONFIG --save {path}`")
    return found


def _strangers(entries: Mapping[str, Entry], tables: Mapping[str, Table]) -> Iterator[str]:
    for name in sorted(tables.keys() - entries.keys()):
        yield f"  table {name!r} is not in the plan"
    for name in sorted(entries.keys() - tables.keys()):
        yield f"  table {name!r} is in the plan and not in the config"


def _faults(
    entries: Mapping[str, Entry], types: Mapping[str, Sequence[str]], tables: Mapping[str, Table], world: int
) -> Iterator[str]:
    for name in sorted(entries.keys() & tables.keys()):
        entry, table = entries[name], tables[name]
        (rows, dim), whole = entry.shape, entry.sharding == "data_parallel"
        if (rows, dim) != (table.rows, table.dim):
            yield f"  table {name!r} is {rows:,} x {dim} in the plan and {table.rows:,} x {table.dim} in the config"
        elif entry.cache != table.cache:
            yield f"  table {name!r} has cache = {entry.cache} in the plan and {table.cache} in the config"
        elif entry.sharding not in types[name]:
            yield f"  table {name!r} is sharded {entry.sharding} in the plan and may be {' or '.join(types[name])}"
        elif bool(entry.shards) == whole or not (whole or _covers(entry.shards, rows, dim, world)):
            yield f"  table {name!r}: its shards do not cover it once, on ranks that are there"


def _covers(shards: Sequence[tuple[int, int, int, int, int]], rows: int, dim: int, world: int) -> bool:
    """Whether the shards are a grid over the table: strips of columns side by side, each cut into runs of rows."""
    strips: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for _, row, column, count, width in shards:
        if count and width:
            strips.setdefault((column, width), []).append((row, count))
    on_ranks = all(rank < world for rank, *_ in shards)
    return on_ranks and _adjoin(strips, dim) and all(_adjoin(strip, rows) for strip in strips.values())


def _adjoin(spans: Iterable[tuple[int, int]], length: int) -> bool:
    """Whether (start, count) spans follow each other from 0 to `length`."""
    at = 0
    for start, count in sorted(spans):
        if start != at:
            return False
        at += count
    return at == length


def _sharding(entry: Entry, cluster: Cluster) -> ParameterSharding:
    if entry.sharding == "data_parallel":
        return ParameterSharding("data_parallel", "dense", ranks=list(range(cluster.world)))
    shards = [
        ShardMetadata([row, column], [rows, columns], placement(cluster.device, rank, cluster.local_world))
        for rank, row, column, rows, columns in entry.shards
    ]
    return ParameterSharding(
        entry.sharding,
        "fused" if entry.cache is None else "fused_uvm_caching",
        ranks=[rank for rank, *_ in entry.shards],
        sharding_spec=EnumerableShardingSpec(shards),
        cache_params=None if entry.cache is None else CacheParams(load_factor=entry.cache),
    )
