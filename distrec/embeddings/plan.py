"""Which rank holds which part of which table: constraints from the config, a plan from TorchRec's planner, words for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan

from distrec.config.layout import Layout
from distrec.config.schema import SIZE, SparseOptimizer, Table
from distrec.errors import UserError

# A plan must not change what is learned. Row-wise Adagrad averages over a row's columns, and a column shard has only some.
# And where any table of a collection is pooled by mean, TorchRec 1.8 gets the gradients of its grid shards wrong.
COLUMNS_SPLIT = {"column_wise", "table_column_wise", "grid_shard"}
UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


class AnyDeviceBagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every sharding type on every device: gloo has the collectives that row-wise needs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All of them."""
        return [kind.value for kind in ShardingType if kind.value in BAG_TYPES]


BAG_TYPES = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")
SEQUENCE_TYPES = ("data_parallel", "table_wise", "row_wise", "column_wise")


@dataclass(frozen=True)
class Cluster:
    """What a plan is made for."""

    world: int
    local_world: int  # ranks a machine
    device: str  # cpu or cuda
    memory: int  # bytes a rank may use for tables and their optimizer state


def sharders() -> list[ModuleSharder]:
    """The sharders of the two collections."""
    return [AnyDeviceBagSharder(), EmbeddingCollectionSharder()]  # type: ignore[list-item]


def allowed_types(
    layout: Layout, tables: Mapping[str, Table], default: Sequence[str], optimizer: SparseOptimizer, device: str
) -> dict[str, list[str]]:
    """Sharding types the planner may choose from, by table.

    Raises:
        UserError: a table asks for a type that its collection lacks, or that would change what its optimizer computes.
    """
    unpooled = {f.table for f in layout.sequences}
    averaged = any(f.pooling == "mean" for f in layout.bags)
    chosen: dict[str, list[str]] = {}
    for name, table in tables.items():
        kind = (table.optimizer or optimizer).name
        known = SEQUENCE_TYPES if name in unpooled else BAG_TYPES
        wrong = _wrong_types(kind, averaged)
        able = [t for t in known if t not in wrong and _has_kernel(t, name in unpooled, kind, device)]
        asked = table.sharding or tuple(default)
        chosen[name] = [t for t in asked or able if t in able]
        if not chosen[name]:
            raise UserError(_no_type(name, asked, known, wrong, able, kind, device))
    return chosen


def _wrong_types(optimizer: str, averaged: bool) -> dict[str, str]:
    """Sharding types with which a table would learn something else, and why."""
    split = "its column shards do not see whole rows, which rowwise_adagrad averages over"
    wrong = dict.fromkeys(COLUMNS_SPLIT, split) if optimizer == "rowwise_adagrad" else {}
    return wrong | (
        {"grid_shard": "TorchRec's gradients are wrong with it when any feature is pooled by mean"} if averaged else {}
    )


def _no_type(
    name: str,
    asked: Sequence[str],
    known: Sequence[str],
    wrong: Mapping[str, str],
    able: Sequence[str],
    optimizer: str,
    device: str,
) -> str:
    kind = asked[0] if asked else ""
    if kind in wrong:
        why = f"{kind} would change the result: {wrong[kind]}"
    elif asked and kind not in known:
        why = f"it serves unpooled lookups, which cannot be sharded {kind}"
    else:
        why = f"FBGEMM has no {device} kernel for {optimizer} on it" + (f" sharded {kind}" if kind else "")
    others = f"use {' or '.join(able)}, or another optimizer" if able else "use another optimizer"
    return f"table {name!r}: {why}; {others}, such as adagrad ([tables.{name}.optimizer])"


def _has_kernel(kind: str, unpooled: bool, optimizer: str, device: str) -> bool:
    """FBGEMM's fused kernels have no Adam on CPU, and its dense ones (for replicated tables) cannot but pool there."""
    if device != "cpu":
        return True
    return not unpooled if kind == "data_parallel" else optimizer != "adam"


def make_plan(
    model: nn.Module, types: Mapping[str, Sequence[str]], tables: Mapping[str, Table], cluster: Cluster, batch_size: int
) -> ShardingPlan:
    """The cheapest plan that TorchRec's planner finds.

    Args:
        model: contains the collections, on meta, with their optimizers attached (state counts as memory).
        types: allowed sharding types, from `allowed_types`.
        tables: the config's tables.
        cluster: ranks, device and memory.
        batch_size: rows a rank and step.

    Raises:
        UserError: no plan fits; names the largest tables, what they need and what there is.
    """
    planner = EmbeddingShardingPlanner(
        topology=_topology(cluster),
        batch_size=batch_size,
        constraints={
            name: ParameterConstraints(sharding_types=list(kinds), compute_kernels=["fused", "dense"], min_partition=4)
            for name, kinds in types.items()
        },
        debug=False,
    )
    try:
        return planner.plan(model, sharders())
    except PlannerError as error:
        raise UserError(_does_not_fit(tables, cluster, str(error))) from None


def describe(plan: ShardingPlan, tables: Mapping[str, Table]) -> list[tuple[str, str, str, str, str, str]]:
    """One row a table: name, shape, sharding type, kernel, ranks, size of its weights. For a table on screen or in a text."""
    rows = []
    for part in plan.plan.values():
        assert isinstance(part, EmbeddingModuleShardingPlan)
        for name, sharding in part.items():
            table = tables[name]
            ranks = ",".join(str(rank) for rank in sorted(set(sharding.ranks or [])))
            everywhere = sharding.sharding_type == "data_parallel"
            rows.append(
                (
                    name,
                    f"{table.rows:,} x {table.dim}",
                    sharding.sharding_type,
                    sharding.compute_kernel,
                    "all" if everywhere else ranks,
                    human_bytes(table_bytes(table)),
                )
            )
    return sorted(rows)


def table_bytes(table: Table) -> int:
    """Bytes of a table's weights."""
    return table.rows * table.dim * (4 if table.precision == "fp32" else 2)


def human_bytes(count: float) -> str:
    """`3.2 GB`, in powers of 1024."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def rank_memory(setting: str | None, device: torch.device, local_world: int) -> int:
    """Bytes a rank may use for tables: what the config says (`embedding.memory`), else its share of what is free here."""
    if setting is not None:
        return _parse_bytes(setting)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _free_host_memory() // local_world


def _parse_bytes(text: str) -> int:
    size = SIZE.fullmatch(text.strip())
    assert size is not None, f"the schema lets no {text!r} through"
    return int(float(size[1]) * UNITS[size[2].upper()])


def _free_host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Free bytes of the machine, or of the container where that has a limit of its own (cgroup v2)."""
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used = ((cgroup / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return machine
    return machine if limit == "max" else min(machine, max(0, int(limit) - int(used)))


def _topology(cluster: Cluster) -> Topology:
    cuda = cluster.device == "cuda"
    return Topology(
        world_size=cluster.world,
        local_world_size=cluster.local_world,
        compute_device=cluster.device,
        hbm_cap=cluster.memory if cuda else 0,
        ddr_cap=None if cuda else cluster.memory,
    )


def _does_not_fit(tables: Mapping[str, Table], cluster: Cluster, reason: str) -> str:
    largest = sorted(tables.items(), key=lambda item: -table_bytes(item[1]))[:3]
    total = sum(table_bytes(table) for table in tables.values())
    sizes = "; ".join(f"{name}: {t.rows:,} x {t.dim} {t.precision} = {human_bytes(table_bytes(t))}" for name, t in largest)
    return (
        f"the tables do not fit: weights of {human_bytes(total)}, optimizer state and buffers besides, "
        f"on {cluster.world} rank{'s' if cluster.world > 1 else ''} with {human_bytes(cluster.memory)} each. "
        f"The largest: {sizes}. "
        'Use more ranks, fewer rows (ids = "hash"), a smaller dim, or a larger embedding.memory. '
        f"The planner says: {reason.strip().splitlines()[0].strip()}"
    )
