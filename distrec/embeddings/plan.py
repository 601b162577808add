"""Which rank holds which part of which table: constraints from the config, a plan from TorchRec's planner, words for both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan

from distrec.config.layout import Layout
from distrec.config.schema import SparseOptimizer, Table
from distrec.config.words import SIZE
from distrec.embeddings.cluster import Cluster
from distrec.embeddings.options import planner
from distrec.embeddings.sharders import BAG_TYPES, SEQUENCE_TYPES, sharders
from distrec.embeddings.shortage import Shortage, find_shortage
from distrec.errors import UserError

# A plan must not change what is learned. Row-wise Adagrad averages over a row's columns, and a column shard has only some.
COLUMNS_SPLIT = frozenset({"column_wise", "table_column_wise", "grid_shard"})
UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def allowed_types(
    layout: Layout, tables: Mapping[str, Table], default: Sequence[str], optimizer: SparseOptimizer, device: str
) -> dict[str, list[str]]:
    """Sharding types the planner may choose from, by table.

    Raises:
        UserError: a table asks for a type that its collection lacks, or that would change what its optimizer computes, or for
            a cache where there is no GPU.
    """
    unpooled = {f.table for f in layout.sequences}
    chosen: dict[str, list[str]] = {}
    for name, table in tables.items():
        update = table.optimizer or optimizer
        known = SEQUENCE_TYPES if name in unpooled else BAG_TYPES
        wrong = COLUMNS_SPLIT if update.name == "rowwise_adagrad" else frozenset()
        cached = table.cache is not None
        if cached and device == "cpu":
            raise UserError(f"table {name!r}: a cache on the GPU needs one; remove tables.{name}.cache, or train on cuda")
        able = [t for t in known if t not in wrong and _has_kernel(t, update, device, cached)]
        asked = table.sharding or tuple(default)
        chosen[name] = [t for t in asked or able if t in able]
        if not chosen[name]:
            raise UserError(_no_type(name, asked, known, wrong, able, update, device))
    return chosen


def _no_type(
    name: str,
    asked: Sequence[str],
    known: Sequence[str],
    wrong: Collection[str],
    able: Sequence[str],
    optimizer: SparseOptimizer,
    device: str,
) -> str:
    kind = asked[0] if asked else ""
    if kind in wrong:
        why = f"{kind} would change the result: its column shards do not see whole rows, which rowwise_adagrad averages over"
    elif asked and kind not in known:
        why = f"it serves unpooled lookups, which cannot be sharded {kind}"
    else:
        update = optimizer.name + (" with weight_decay" if optimizer.weight_decay else " with every_row" * optimizer.every_row)
        why = f"FBGEMM has no {device} kernel for {update} on it" + (f" sharded {kind}" if kind else "")
    others = f"use {' or '.join(able)}, or another optimizer" if able else "use another optimizer"
    return f"table {name!r}: {why}; {others}, such as adagrad ([tables.{name}.optimizer])"


def _has_kernel(kind: str, optimizer: SparseOptimizer, device: str, cached: bool) -> bool:
    """On CPU, FBGEMM's fused kernels have no Adam and pass over weight decay; replicated tables have optimizers of our own.

    Only fused kernels cache, on GPUs; only replicated tables are moved whole by a step.
    """
    if kind == "data_parallel":
        return not cached
    if optimizer.every_row:
        return False
    return device != "cpu" or not (optimizer.name == "adam" or (optimizer.name == "rowwise_adagrad" and optimizer.weight_decay))


def make_plan(
    model: nn.Module,
    types: Mapping[str, Sequence[str]],
    tables: Mapping[str, Table],
    cluster: Cluster,
    batch_size: int,
    pooling: Mapping[str, Sequence[float]] | None = None,
    using: list[ModuleSharder] | None = None,
) -> ShardingPlan:
    """The cheapest plan that TorchRec's planner finds.

    Args:
        model: contains the collections, on meta, with their optimizers attached (state counts as memory).
        types: allowed sharding types, from `allowed_types`.
        tables: the config's tables.
        cluster: ranks, device, memory and bandwidths.
        batch_size: rows a rank and step.
        pooling: mean number of ids a row, from `pooling_factors`; default: one feature a table, one id a row.
        using: the sharders that the plan is for; default: those that convert nothing between ranks.

    Raises:
        DoesNotFit: no plan fits; names the largest tables, what they need, what there is, and by how much it is short.
    """
    using = using or sharders()
    planning = planner(types, tables, cluster, batch_size, pooling or {}, using)
    try:
        return planning.plan(model, using)
    except PlannerError:
        options = planning._enumerator.enumerate(model, using)
        raise DoesNotFit(tables, cluster, find_shortage(options, cluster)) from None


def pooling_factors(layout: Layout) -> dict[str, list[float]]:
    """By table, the mean number of ids a row of each feature that looks it up."""
    factors: dict[str, list[float]] = {}
    for feature in (*layout.bags, *layout.sequences):
        factors.setdefault(feature.table, []).append(feature.pooling_factor)
    return factors


class DoesNotFit(UserError):
    """The tables are larger than the ranks' memory."""

    def __init__(self, tables: Mapping[str, Table], cluster: Cluster, shortage: Shortage):
        self.cluster, self.shortage = cluster, shortage
        super().__init__(_does_not_fit(tables, cluster, shortage))


def describe(plan: ShardingPlan, tables: Mapping[str, Table]) -> list[tuple[str, str, str, str, str, str]]:
    """One row a table: name, shape, sharding type, kernel, ranks, size of its weights. For a table on screen or in a text."""
    rows = []
    for part in plan.plan.values():
        assert isinstance(part, EmbeddingModuleShardingPlan)
        for name, sharding in part.items():
            table = tables[name]
            everywhere = sharding.sharding_type == "data_parallel"
            rows.append(
                (
                    name,
                    f"{table.rows:,} x {table.dim}",
                    sharding.sharding_type,
                    sharding.compute_kernel,
                    "all" if everywhere else rank_ranges(sharding.ranks or []),
                    human_bytes(table_bytes(table)),
                )
            )
    return sorted(rows)


def rank_ranges(ranks: Sequence[int]) -> str:
    """`0-7,9`."""
    ranges: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if ranges and rank == ranges[-1][1] + 1:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


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
        return parse_bytes(setting)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _free_host_memory() // local_world


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `12GB`, in powers of 1024."""
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


def _does_not_fit(tables: Mapping[str, Table], cluster: Cluster, shortage: Shortage) -> str:
    largest = sorted(tables.items(), key=lambda item: -table_bytes(item[1]))[:3]
    total = sum(table_bytes(table) for table in tables.values())
    sizes = "; ".join(f"{name}: {t.rows:,} x {t.dim} {t.precision} = {human_bytes(table_bytes(t))}" for name, t in largest)
    return (
        f"the tables do not fit: weights of {human_bytes(total)}, optimizer state and lookups besides, "
        f"on {cluster.world} rank{'s' if cluster.world > 1 else ''} with {human_bytes(cluster.memory)} each"
        f"{_taken(cluster)}. {_short(shortage, cluster)} The largest: {sizes}. "
        f"{_advice(cluster)}"
    )


def _advice(cluster: Cluster) -> str:
    if cluster.for_tables <= 0:
        return "Use ranks with more memory, a smaller data.batch_size or a smaller dense part: more ranks do not help."
    return (
        'Use more ranks, fewer rows (ids = "hash"), a smaller dim, or a larger embedding.memory; '
        "`distrec plan CONFIG` tries such ways out."
    )


def _taken(cluster: Cluster) -> str:
    if cluster.for_tables == cluster.memory:
        return ""
    parts = ((cluster.margin, "are kept free"), (cluster.dense, "go to what is not a table"))
    taken = " and ".join(f"{human_bytes(size)} {why}" for size, why in parts if size)
    return f", of which {taken}"


def _short(shortage: Shortage, cluster: Cluster) -> str:
    """Which table, and by how much."""
    if cluster.for_tables <= 0:
        return f"Nothing is left for tables: {human_bytes(-cluster.for_tables)} more go elsewhere than there is."
    if shortage.table is not None:
        return (
            f"Table {shortage.table!r} needs at least {human_bytes(shortage.needed)} on one rank ({shortage.sharding}), "
            f"{human_bytes(shortage.missing)} more than is left for tables there."
        )
    if shortage.missing > 0:
        where = "host memory" if shortage.on_host else "memory"
        return f"All ranks together are short of {human_bytes(shortage.missing)} of {where} for tables."
    return "Together the ranks have enough, but no way was found to lay the parts of the tables into it rank by rank."
