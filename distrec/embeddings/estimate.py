"""What a plan takes, rank by rank: bytes by use and milliseconds by part of a step, from TorchRec's estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import nn
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ParameterSharding, ShardingPlan

from distrec.config.schema import Table
from distrec.embeddings.cluster import Cluster
from distrec.embeddings.options import gradient_bytes, planner, state_bytes, weight_bytes


class Bytes(NamedTuple):
    """Bytes that tables take."""

    weights: int = 0  # on the device: all of a shard, or the cached part of it
    optimizer: int = 0  # the state of the fused optimizers
    gradients: int = 0  # of replicated tables
    lookups: int = 0  # a batch's ids after the exchange, and the vectors looked up for them
    host: int = 0  # in host memory beside the GPU, for cached tables

    @property
    def device(self) -> int:
        """All that lies on the device."""
        return sum(self) - self.host

    def plus(self, other: Self) -> Bytes:
        """Both together."""
        return Bytes(*(a + b for a, b in zip(self, other, strict=True)))


class Milliseconds(NamedTuple):
    """A step's work on tables, by part. In a run, parts overlap with each other and with the dense part."""

    lookup: float = 0.0  # reading rows and pooling them
    exchange: float = 0.0  # vectors to the ranks whose rows of the batch they are
    update: float = 0.0  # backward: gradients to rows, and the optimizer
    gradient_exchange: float = 0.0
    prefetch: float = 0.0  # rows from host memory into the cache
    averaging: float = 0.0  # of the replicas, shared out over the steps between

    @property
    def total(self) -> float:
        """Without any overlap."""
        return sum(self)

    def plus(self, other: Self) -> Milliseconds:
        """Both, one after the other."""
        return Milliseconds(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class PlacedTable:
    """A table in a plan."""

    name: str
    rows: int
    dim: int
    precision: str
    sharding: str
    kernel: str
    ranks: tuple[int, ...]
    bytes: Bytes  # on all ranks
    time: Milliseconds  # on the rank that it keeps longest


@dataclass(frozen=True)
class Estimate:
    """A plan's tables, and its load by rank."""

    tables: tuple[PlacedTable, ...]
    bytes: tuple[Bytes, ...]
    time: tuple[Milliseconds, ...]

    @property
    def step(self) -> float:
        """Milliseconds of the slowest rank, for which the others wait."""
        return max(time.total for time in self.time)


def imbalance(loads: Sequence[float]) -> float:
    """The largest load over the mean: 1.0 is perfect."""
    mean = sum(loads) / len(loads)
    return max(loads) / mean if mean else 1.0


def estimate(
    model: nn.Module,
    plan: ShardingPlan,
    tables: Mapping[str, Table],
    cluster: Cluster,
    batch_size: int,
    pooling: Mapping[str, Sequence[float]],
    using: list[ModuleSharder],
) -> Estimate:
    """What `plan` takes on `cluster`.

    Args:
        model: contains the collections, with their optimizers attached.
        plan: for this model and this number of ranks.
        tables: the config's tables.
        cluster: ranks, memory and bandwidths.
        batch_size: rows a rank and step.
        pooling: by table, the mean number of ids a row of each of its features.
        using: the sharders of the run.
    """
    placed = {name: sharding for part in _parts(plan).values() for name, sharding in part.items()}
    types = {name: [sharding.sharding_type] for name, sharding in placed.items()}
    enumerator = planner(types, tables, cluster, batch_size, pooling, using)._enumerator
    choices = {option.name: option for option in enumerator.enumerate(model, using)}
    options = [_place(choices[name], sharding, cluster) for name, sharding in sorted(placed.items())]
    enumerator.populate_estimates(options)
    loads, times = [Bytes()] * cluster.world, [Milliseconds()] * cluster.world
    for option in options:
        for shard in option.shards:
            rank = shard.rank
            assert rank is not None
            loads[rank], times[rank] = loads[rank].plus(_bytes(option, shard)), times[rank].plus(_time(option, shard, cluster))
    return Estimate(
        tuple(sorted((_table(o, tables[o.name], cluster) for o in options), key=_by_size)), tuple(loads), tuple(times)
    )


def _parts(plan: ShardingPlan) -> dict[str, EmbeddingModuleShardingPlan]:
    return plan.plan  # type: ignore[return-value]  # distrec shards nothing but collections of tables


def _place(option: ShardingOption, sharding: ParameterSharding, cluster: Cluster) -> ShardingOption:
    """The option with the shards of the plan, in its kernel and on its ranks."""
    option.compute_kernel = sharding.compute_kernel
    if sharding.sharding_spec is None:
        whole = list(option.tensor.shape)
        option.shards = [Shard(whole, [0, 0], rank=rank) for rank in range(cluster.world)]
    else:
        option.shards = [
            Shard(list(part.shard_sizes), list(part.shard_offsets), rank=part.placement.rank())
            for part in sharding.sharding_spec.shards  # type: ignore[attr-defined]
        ]
    return option


def _bytes(option: ShardingOption, shard: Shard) -> Bytes:
    assert shard.storage is not None
    weights, state, gradient = weight_bytes(option, shard), state_bytes(option, shard), gradient_bytes(option, shard)
    share = option.cache_load_factor
    if share is None:
        total = shard.storage.hbm or shard.storage.ddr
        return Bytes(weights, state, gradient, total - weights - state - gradient)
    cache = round(weights * share)
    return Bytes(cache, lookups=shard.storage.hbm - cache, host=shard.storage.ddr)


def _time(option: ShardingOption, shard: Shard, cluster: Cluster) -> Milliseconds:
    perf = shard.perf
    assert perf is not None
    averaged = weight_bytes(option, shard) + state_bytes(option, shard) if option.sharding_type != "data_parallel" else 0
    parts = perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms, perf.prefetch_compute
    return Milliseconds(*parts, cluster.averaging_ms(averaged))


def _table(option: ShardingOption, table: Table, cluster: Cluster) -> PlacedTable:
    total, slowest = Bytes(), Milliseconds()
    by_rank: dict[int, Milliseconds] = {}
    for shard in option.shards:
        assert shard.rank is not None
        total = total.plus(_bytes(option, shard))
        by_rank[shard.rank] = by_rank.get(shard.rank, slowest).plus(_time(option, shard, cluster))
    return PlacedTable(
        option.name,
        table.rows,
        table.dim,
        table.precision,
        option.sharding_type,
        option.compute_kernel,
        tuple(sorted(by_rank)),
        total,
        max(by_rank.values(), key=lambda time: time.total),
    )


def _by_size(table: PlacedTable) -> tuple[int, str]:
    return -(table.bytes.device + table.bytes.host), table.name
