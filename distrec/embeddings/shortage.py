"""Why no plan fits: which table is too large for a rank, or by how much all ranks together are too small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.types import ShardingOption, Storage

from distrec.embeddings.cluster import Cluster


@dataclass(frozen=True)
class Shortage:
    """What is missing. `table` is None when it is all tables together."""

    missing: int  # bytes; 0 or less when there is enough, but not where it is needed
    table: str | None = None
    needed: int = 0  # bytes of the table's largest part, sharded so that this is smallest
    sharding: str = ""
    on_host: bool = False


def find_shortage(options: Sequence[ShardingOption], cluster: Cluster) -> Shortage:
    """The table that is furthest from fitting on a rank; else what all ranks together lack."""
    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        by_table.setdefault(option.name, []).append(option)
    smallest = [min(choices, key=lambda option: _largest_part(option, cluster)) for choices in by_table.values()]
    worst = max(smallest, key=lambda option: _largest_part(option, cluster))
    needed = _largest_part(worst, cluster)
    if needed > cluster.for_tables:
        return Shortage(needed - cluster.for_tables, worst.name, needed, worst.sharding_type)
    return _in_all(by_table, cluster)


def _in_all(by_table: dict[str, list[ShardingOption]], cluster: Cluster) -> Shortage:
    on_device = sum(min(_device(option.total_storage, cluster) for option in choices) for choices in by_table.values())
    missing = on_device - cluster.world * cluster.for_tables
    if missing <= 0 and cluster.device == "cuda" and cluster.host_memory is not None:
        on_host = sum(min(option.total_storage.ddr for option in choices) for choices in by_table.values())
        return Shortage(on_host - cluster.world * cluster.host_memory, on_host=True)
    return Shortage(missing)


def _largest_part(option: ShardingOption, cluster: Cluster) -> int:
    return max(_device(shard.storage, cluster) for shard in option.shards if shard.storage is not None)


def _device(storage: Storage, cluster: Cluster) -> int:
    return storage.hbm if cluster.device == "cuda" else storage.ddr
