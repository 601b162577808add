"""TorchRec's proposals, less those that cannot become the plan: on many ranks, laying out each takes a while."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.types import Enumerator, Proposer, Shard, ShardingOption, Topology

ROUNDING = 1e-9  # of a sum of milliseconds, relative: which of two equal plans is the faster is not for us to say


def hopeful_proposers(topology: Topology) -> list[Proposer]:
    """TorchRec's default proposers, in its order, with one `Incumbent` between them."""
    incumbent = Incumbent(topology)
    inner = (GridSearchProposer(), GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer())
    return [Hopeful(proposer, incumbent) for proposer in inner]


class Incumbent:
    """The best plan's rating so far, and whether a proposal may be laid out and be better.

    A rating is the work of the busiest rank. This is at least what the options with a fixed layout (row-wise, replicated) put
    on one rank, at least the largest part of another option on top of what they put on every rank, and at least the mean. The
    same holds for bytes, and no proposal that these bounds rule out could have been chosen.
    """

    def __init__(self, topology: Topology):
        """Nothing is known yet."""
        room = [device.storage for device in topology.devices]
        self._room = max(one.hbm for one in room), max(one.ddr for one in room)
        self._world = topology.world_size
        self._best = math.inf
        self._loads: dict[int, np.ndarray] = {}

    def rated(self, rating: float) -> None:
        """A proposal was laid out."""
        self._best = min(self._best, rating)

    def rules_out(self, proposal: Sequence[ShardingOption]) -> bool:
        """Whether a proposal does not fit, or is no faster than the best."""
        fixed, free = np.zeros((self._world, 3)), [np.zeros((1, 3))]
        for option in proposal:
            loads = self._load(option)
            if option.partition_by == "uniform" and len(loads) == self._world:
                fixed += loads  # a part a rank, in their order
            else:
                free.append(loads)
        parts = np.concatenate(free)
        bounds = (fixed.max(0), fixed.min(0) + parts.max(0), (fixed.sum(0) + parts.sum(0)) / self._world)
        ms, hbm, ddr = np.max(bounds, axis=0) * (1 - ROUNDING)
        return bool(ms >= self._best or hbm > self._room[0] or ddr > self._room[1])

    def _load(self, option: ShardingOption) -> np.ndarray:
        """Milliseconds, bytes of device memory and of host memory of each part, (parts, 3)."""
        if id(option) not in self._loads:
            self._loads[id(option)] = np.array([_load(shard) for shard in option.shards], dtype=float)
        return self._loads[id(option)]


def _load(shard: Shard) -> tuple[float, int, int]:
    assert shard.perf is not None
    assert shard.storage is not None
    return shard.perf.total, shard.storage.hbm, shard.storage.ddr


class Hopeful(Proposer):
    """Passes on what another proposer proposes, unless the incumbent rules it out. The other must not learn from ratings."""

    def __init__(self, proposer: Proposer, incumbent: Incumbent):
        """Ask `proposer`."""
        self._proposer, self._incumbent = proposer, incumbent

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """All options, before the first proposal."""
        self._proposer.load(search_space, enumerator)

    def propose(self) -> list[ShardingOption] | None:
        """The next proposal that may become the plan."""
        proposal = self._proposer.propose()
        while proposal and self._incumbent.rules_out(proposal):
            self._proposer.feedback(partitionable=False, plan=proposal)
            proposal = self._proposer.propose()
        return proposal

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """What became of the proposal."""
        if perf_rating is not None:
            self._incumbent.rated(perf_rating)
        self._proposer.feedback(partitionable, plan, perf_rating, storage_constraint)
