"""`distrec plan`: what a config takes on a cluster that need not be there, and what to change when it does not fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distrec.config.check import check
from distrec.config.layout import Layout
from distrec.config.schema import Config
from distrec.embeddings import plan as plans
from distrec.embeddings import plan_file, shard
from distrec.embeddings.cluster import Bandwidths, Cluster, share_out
from distrec.embeddings.estimate import Bytes, Estimate, Milliseconds, estimate, imbalance
from distrec.engine import AnyTask, dense_footprint, make_task, plan_for, refuse_on, sharders_for, step_rows
from distrec.errors import UserError
from distrec.planner.footprint import Footprint

if TYPE_CHECKING:
    from torchrec.distributed.types import ShardingPlan


@dataclass(frozen=True)
class Machines:
    """The cluster that a user asks about."""

    nodes: int
    ranks: int  # a node
    device: str  # cuda or cpu
    memory: int  # bytes a rank: of its GPU, or of the host on CPU
    host_memory: int  # bytes of host memory a rank may use beside its GPU
    bandwidths: Bandwidths = field(default_factory=Bandwidths)

    @property
    def name(self) -> str:
        """`2x8 cuda ranks of 80.0 GB`."""
        return f"{self.nodes}x{self.ranks} {self.device} ranks of {plans.human_bytes(self.memory)}"


@dataclass(frozen=True)
class Planned:
    """A config on a cluster."""

    config: Config
    machines: Machines
    cluster: Cluster
    plan: ShardingPlan
    estimate: Estimate
    footprint: Footprint  # of each rank, beside its tables
    seconds: float  # that planning took

    @property
    def title(self) -> str:
        """Which config on which machines, for a heading."""
        count, world = self.cluster.replicas.count, self.cluster.world
        copies = f", {count} replicas of the tables on {world} ranks each: the first" if count > 1 else ""
        return f"{self.config.name} on {self.machines.name}{copies}"

    @cached_property
    def device_bytes(self) -> list[int]:
        """Bytes on each rank's device, all included."""
        return [sum(self.uses(rank).values()) for rank in range(self.cluster.world)]

    def uses(self, rank: int) -> dict[str, int]:
        """Bytes on a rank's device when a step is at its fullest, by what they are for."""
        tables, beside = self.estimate.bytes[rank], self.footprint
        return {
            "weights": tables.weights,
            "optimizer state": tables.optimizer,
            "gradients of replicated tables": tables.gradients,
            "dense part": beside.parameters + beside.gradients + beside.optimizer,
            "lookups and activations": beside.tensors(tables.lookups),
            "batches": beside.batches,
        }

    def save(self, path: Path) -> None:
        """Write the plan for `embedding.plan`.

        Raises:
            UserError: the file cannot be written.
        """
        plan_file.save(self.plan, path, self.config.tables, self.cluster)


def beside_tables(config: Config) -> Footprint:
    """What each rank needs beside its tables; the dense part is built and tried on a few rows."""
    check(config)
    return dense_footprint(*_task(config, torch.device("cpu")), config)


def _task(config: Config, device: torch.device) -> tuple[AnyTask, Layout]:
    with device:  # on meta, the dense part costs neither memory nor time
        return make_task(config, device)


def make(config: Config, machines: Machines, beside: Footprint | None = None) -> Planned:
    """Plan a config on a cluster.

    Args:
        config: of the run.
        machines: the cluster.
        beside: from `beside_tables`, where it is known already.

    Raises:
        DoesNotFit: no plan fits.
        UserError: the config contradicts itself, or no kernel serves a table.
    """
    began = time.perf_counter()
    check(config)
    refuse_on(machines.device, config)
    beside = beside or beside_tables(config)
    task, features = _task(config, torch.device("meta"))
    shard.fuse(task, config.tables, config.optimizer.sparse)
    cluster = _cluster(config, machines, beside.reserved)
    plan = plan_for(task, config, features, cluster)
    found = _estimate(task, plan, config, features, cluster)
    if config.embedding.plan is not None:  # one that was made just now fits
        _refuse_overfull(config.embedding.plan, found, cluster)
    return Planned(config, machines, cluster, plan, found, beside, time.perf_counter() - began)


def _cluster(config: Config, machines: Machines, dense: int) -> Cluster:
    """The ranks of one copy of the tables."""
    world, local_world, replicas = share_out(
        machines.nodes * machines.ranks, machines.ranks, config.embedding.replicas, config.embedding.sync_every
    )
    return Cluster(
        world,
        local_world,
        machines.device,
        machines.memory,
        dense,
        machines.host_memory,
        machines.bandwidths,
        replicas,
    )


def _estimate(task: AnyTask, plan: ShardingPlan, config: Config, features: Layout, cluster: Cluster) -> Estimate:
    using, pooling = sharders_for(config, cluster.device), plans.pooling_factors(features)
    return estimate(task, plan, config.tables, cluster, step_rows(config), pooling, using)


def _refuse_overfull(path: str, found: Estimate, cluster: Cluster) -> None:
    fullest = max(range(cluster.world), key=lambda rank: found.bytes[rank].device)
    needed = found.bytes[fullest].device
    if needed > cluster.for_tables:
        raise UserError(
            f"embedding.plan = {path!r} does not fit: rank {fullest} needs {plans.human_bytes(needed)} for tables, and of "
            f"{plans.human_bytes(cluster.memory)} there are {plans.human_bytes(max(0, cluster.for_tables))} for them; "
            "make a plan for this memory, or remove the key"
        )


def summary(planned: Planned) -> dict[str, Any]:
    """The plan and its numbers, for a file or a program: bytes, and milliseconds of a step."""
    found, beside = planned.estimate, planned.footprint
    return {
        "config": planned.config.name,
        "cluster": planned.machines.name,
        "replicas": planned.cluster.replicas.count,
        "tables": {
            table.name: {
                "shape": [table.rows, table.dim],
                "precision": table.precision,
                "sharding": table.sharding,
                "kernel": table.kernel,
                "ranks": plans.rank_ranges(table.ranks),
                "bytes": table.bytes.device + table.bytes.host,
            }
            for table in found.tables
        },
        "bytes_a_rank": {
            use: spread([load[place] for load in found.bytes]) for place, use in enumerate(Bytes._fields)
        }  # by use of the tables, then what is the same on every rank
        | dict(zip(("dense_" + use for use in Footprint._fields), beside, strict=True))
        | {"device": spread(planned.device_bytes), "memory": planned.cluster.memory, "kept_free": planned.cluster.margin},
        "ms_a_rank": {part: spread([load[place] for load in found.time]) for place, part in enumerate(Milliseconds._fields)}
        | {"total": spread([load.total for load in found.time])},
        "imbalance": imbalances(planned),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and largest over ranks."""
    return {"mean": round(sum(values) / len(values), 4), "max": round(max(values), 4)}


def imbalances(planned: Planned) -> dict[str, float]:
    """Largest over mean of what tables take: bytes and milliseconds."""
    found = planned.estimate
    return {
        "bytes": round(imbalance([load.device for load in found.bytes]), 4),
        "time": round(imbalance([load.total for load in found.time]), 4),
    }


def differences(one: Planned, other: Planned) -> list[tuple[str, str, str]]:
    """Tables that the two plans place differently: name, how the one shards it, how the other does."""
    ours = {table.name: f"{table.sharding} on {len(table.ranks)}" for table in one.estimate.tables}
    theirs = {table.name: f"{table.sharding} on {len(table.ranks)}" for table in other.estimate.tables}
    names = dict.fromkeys((*ours, *theirs))
    return [(n, ours.get(n, "-"), theirs.get(n, "-")) for n in names if ours.get(n) != theirs.get(n)]
