"""The ranks that a plan is made for: how many, what memory they have, and how fast it and the links between them are."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner import constants as torchrec_default

from distrec.errors import UserError

MARGIN = 0.15  # of a GPU's memory that no plan fills: the allocator's gaps, NCCL's buffers, CUDA's context
MS = 1000


@dataclass(frozen=True)
class Bandwidths:
    """Bytes a second of one rank. TorchRec's defaults: NVLink within a machine, a 100 Gb/s card a rank between machines."""

    device: float = torchrec_default.HBM_MEM_BW * MS  # a GPU's memory
    host: float = torchrec_default.DDR_MEM_BW * MS  # the machine's memory
    host_to_device: float = torchrec_default.HBM_TO_DDR_MEM_BW * MS
    intra: float = torchrec_default.INTRA_NODE_BANDWIDTH * MS  # between ranks of a machine
    inter: float = torchrec_default.CROSS_NODE_BANDWIDTH * MS  # between machines


@dataclass(frozen=True)
class Replicas:
    """Copies of all sharded tables, each on ranks of its own that are neighbours in number (2D parallel)."""

    count: int = 1
    sync_every: int = 1  # steps from one averaging to the next
    within_machine: bool = True  # whether the ranks that average with each other share a machine


@dataclass(frozen=True)
class Cluster:
    """What a plan is made for: the ranks that share one copy of the tables."""

    world: int
    local_world: int  # ranks a machine
    device: str  # cpu or cuda
    memory: int  # bytes of device memory that a rank may use (of host memory on CPU)
    dense: int = 0  # bytes of it that go to what is not a table: see distrec.planner.footprint
    host_memory: int | None = None  # bytes of host memory a rank may use beside its GPU, for cached tables
    bandwidths: Bandwidths = field(default_factory=Bandwidths)
    replicas: Replicas = Replicas()

    @property
    def margin(self) -> int:
        """Bytes of a rank's memory that no plan fills."""
        return int(self.memory * MARGIN) if self.device == "cuda" else 0

    @property
    def for_tables(self) -> int:
        """Bytes of a rank's memory for tables, their optimizer state and their lookups; below 0 when nothing is left."""
        return self.memory - self.margin - self.dense

    def averaging_ms(self, size: int) -> float:
        """Milliseconds a step in which replicas average `size` bytes of a rank, by an all-reduce around a ring."""
        link = self.bandwidths.intra if self.replicas.within_machine else self.bandwidths.inter
        count = self.replicas.count
        return MS * 2 * (count - 1) / count * size / link / self.replicas.sync_every

    def topology(self) -> Topology:
        """The same as TorchRec's planner takes it: what a rank may fill, and bytes a millisecond."""
        cuda, speed, memory = self.device == "cuda", self.bandwidths, max(1, self.for_tables)  # 0 would mean TorchRec's default
        return Topology(
            world_size=self.world,
            local_world_size=self.local_world,
            compute_device=self.device,
            hbm_cap=memory if cuda else 0,
            ddr_cap=self.host_memory if cuda else memory,
            hbm_mem_bw=speed.device / MS,
            ddr_mem_bw=speed.host / MS,
            hbm_to_ddr_mem_bw=speed.host_to_device / MS,
            intra_host_bw=speed.intra / MS,
            inter_host_bw=speed.inter / MS,
        )


def share_out(world: int, local_world: int, replicas: int, sync_every: int) -> tuple[int, int, Replicas]:
    """Ranks of one copy of the tables, those of them on one machine, and the copies.

    Args:
        world: all ranks.
        local_world: ranks a machine.
        replicas: copies of the tables.
        sync_every: steps from one averaging of the copies to the next.

    Raises:
        UserError: ranks cannot be shared out so, each copy on whole machines or several on one.
    """
    group = world // replicas
    local = min(group, local_world)
    if world % replicas or group % local or local_world % local:
        raise UserError(
            f"embedding.replicas = {replicas} does not share out {world} ranks, {local_world} a machine: each copy of the "
            "tables needs whole machines, or an equal part of one"
        )
    return group, local, Replicas(replicas, sync_every, within_machine=world <= local_world)
