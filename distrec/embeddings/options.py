"""What the planner chooses from: how each table may be sharded, and what TorchRec's estimators say that takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import Shard, ShardEstimator, ShardingOption, Storage
from torchrec.distributed.types import CacheParams, ModuleSharder, PipelineType
from torchrec.modules.embedding_configs import DataType
from torchrec.optim import SGD, Adam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from distrec.config.schema import Table
from distrec.embeddings.cluster import Cluster
from distrec.embeddings.proposals import hopeful_proposers

SHARD_COLUMNS = 32  # of a column-wise shard, where a table is that wide: narrow shards multiply the lookups
STATE_BYTES = 4  # FBGEMM keeps optimizer state in fp32, whatever the weights are


def planner(
    types: Mapping[str, Sequence[str]],
    tables: Mapping[str, Table],
    cluster: Cluster,
    batch_size: int,
    pooling: Mapping[str, Sequence[float]],
    using: Sequence[ModuleSharder],
) -> EmbeddingShardingPlanner:
    """TorchRec's planner over the allowed types.

    Args:
        types: allowed sharding types by table.
        tables: the config's tables.
        cluster: ranks, memory and bandwidths.
        batch_size: rows a rank and step.
        pooling: by table, the mean number of ids a row of each of its features.
        using: the sharders of the run.
    """
    prefetch = any((getattr(sharder, "fused_params", None) or {}).get("prefetch_pipeline") for sharder in using)
    topology = cluster.topology()
    limits = {name: _constraints(tables[name], kinds, pooling.get(name, (1.0,))) for name, kinds in types.items()}
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=limits,
        enumerator=SortedOptions(
            topology,
            batch_size,
            limits,
            estimator=[
                OncePerSize(EmbeddingPerfEstimator(topology, limits)),
                OncePerSize(
                    TableMemory(
                        topology,
                        limits,
                        PipelineType.TRAIN_PREFETCH_SPARSE_DIST if prefetch else PipelineType.NONE,
                        run_embedding_at_peak_memory=True,
                    )
                ),
            ],
        ),
        proposer=hopeful_proposers(topology),
        storage_reservation=FixedPercentageStorageReservation(0.0),  # `Cluster.topology` holds back what is not for tables
        stats=[],
        debug=False,
    )


def _constraints(table: Table, kinds: Sequence[str], pooling: Sequence[float]) -> ParameterConstraints:
    cached = table.cache is not None
    return ParameterConstraints(
        sharding_types=list(kinds),
        compute_kernels=["fused_uvm_caching"] if cached else ["fused", "dense"],
        cache_params=CacheParams(load_factor=table.cache) if cached else None,
        min_partition=table.dim // table.column_shards if table.column_shards else _shard_columns(table.dim),
        pooling_factors=list(pooling),
    )


def _shard_columns(dim: int) -> int:
    """A multiple of 4, as the kernels need, that cuts all but the narrowest tables at least in two."""
    return min(SHARD_COLUMNS, max(dim // 8 * 4, 4))


class SortedOptions(EmbeddingEnumerator):
    """TorchRec's enumerator, in an order that does not change from one process to the next: ties fall the same way."""

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder]) -> list[ShardingOption]:
        """Every option of every table, with its estimates."""
        options = super().enumerate(module, sharders)
        tables = {name: place for place, name in enumerate(dict.fromkeys(option.fqn for option in options))}
        return sorted(options, key=lambda option: (tables[option.fqn], option.sharding_type, option.compute_kernel))


class OncePerSize(ShardEstimator):
    """Asks another estimator about one shard of each size: on a thousand ranks nearly all are alike."""

    def __init__(self, estimator: ShardEstimator):
        self._estimator = estimator

    def estimate(self, sharding_options: list[ShardingOption], *rest: Any, **named: Any) -> None:
        """Fill in `perf` or `storage` of every shard."""
        thin = [_with_shards(option, {tuple(shard.size): shard for shard in option.shards}) for option in sharding_options]
        self._estimator.estimate(thin, *rest, **named)
        for option, one in zip(sharding_options, thin, strict=True):
            option.is_weighted = one.is_weighted
            found = {tuple(shard.size): shard for shard in one.shards}
            for shard in option.shards:
                like = found[tuple(shard.size)]
                shard.perf, shard.storage = like.perf, like.storage


def _with_shards(option: ShardingOption, shards: Mapping[tuple[int, ...], Shard]) -> ShardingOption:
    thin = copy.copy(option)
    thin.shards = [Shard(s.size, s.offset, s.storage, s.perf) for s in shards.values()]
    return thin


class TableMemory(EmbeddingStorageEstimator):
    """TorchRec's estimate, put right where it leaves something out.

    Half-precision tables have their state and the vectors looked up from them in fp32, as FBGEMM does, and a replicated
    table has a gradient as large as itself.
    """

    def estimate(self, sharding_options: list[ShardingOption], *rest: Any, **named: Any) -> None:
        """Fill in `storage` of every shard, in bytes."""
        for option in sharding_options:
            option.output_dtype = DataType.FP32
        super().estimate(sharding_options, *rest, **named)
        for option in sharding_options:
            option.output_dtype = None
            for shard in option.shards:
                missing = _missing_state(option, shard) + gradient_bytes(option, shard)
                assert shard.storage is not None
                on_device = self._topology.compute_device == "cuda" and option.cache_load_factor is None
                shard.storage += Storage(hbm=missing if on_device else 0, ddr=0 if on_device else missing)


def weight_bytes(option: ShardingOption, shard: Shard) -> int:
    """Bytes of a shard's weights."""
    return shard.size[0] * shard.size[1] * option.tensor.element_size()


def state_bytes(option: ShardingOption, shard: Shard) -> int:
    """Bytes of a shard's optimizer state."""
    rows, columns = shard.size
    kind = _optimizer(option)
    if kind is None or issubclass(kind, SGD):
        return 0
    return STATE_BYTES * (rows if issubclass(kind, RowWiseAdagrad) else rows * columns * (2 if issubclass(kind, Adam) else 1))


def gradient_bytes(option: ShardingOption, shard: Shard) -> int:
    """Bytes of the gradient of a replicated table; other tables are updated in backward and never have a whole one."""
    return weight_bytes(option, shard) if option.sharding_type == "data_parallel" else 0


def _missing_state(option: ShardingOption, shard: Shard) -> int:
    """TorchRec counts state in the type of the weights."""
    return state_bytes(option, shard) * (STATE_BYTES - option.tensor.element_size()) // STATE_BYTES


def _optimizer(option: ShardingOption) -> type[torch.optim.Optimizer] | None:
    return getattr(option.tensor, "_optimizer_classes", [None])[0]
