"""Area under the ROC curve over a stream of rows, by group, in memory that does not grow with the rows.

A sketch is a weighted histogram whose bins are float32 logits themselves: one entry a (group, logit), with the weight
of its positives and of its negatives. That is exact. Past its capacity, neighbouring light entries become one entry at
their mean, as in a quantile sketch, and count as ties, half a pair each. Entries are merged by weight and not by
distance, so logits that crowd into a narrow band are told apart as well as logits that spread.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

MIN_CAPACITY = 2**20
ENTRIES_PER_GROUP = 256
KEY_BITS = 32
KEY_MASK = 2**KEY_BITS - 1


def order_key(logits: Tensor) -> Tensor:
    """Integers in [0, 2**32) that sort as float32 `logits` (N,) do; -0.0 and 0.0 share one. NaN sorts at an end."""
    bits = (logits.float() + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + 2**31


class Sketch:
    """Positive and negative weight by (group, logit).

    It holds at most `capacity` entries of 24 bytes: `max(min_capacity, 256 * groups)`, so that memory is bounded by the
    groups alone. A merged entry holds at most some 4 / capacity of the weight of a lone group.
    """

    def __init__(self, device: torch.device | str = "cpu", min_capacity: int = MIN_CAPACITY):
        self.min_capacity = min_capacity
        self.groups = torch.empty(0, dtype=torch.int64, device=device)  # (G,) distinct ids, ascending
        self.codes = torch.empty(0, dtype=torch.int64, device=device)  # (N,) index of group << 32 | key, distinct, ascending
        self.mass = torch.empty(0, 2, dtype=torch.float64, device=device)  # (N, 2) weight of positives, of negatives

    @property
    def capacity(self) -> int:
        """Entries allowed now."""
        return max(self.min_capacity, ENTRIES_PER_GROUP * len(self.groups))

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None = None) -> None:
        """Count rows: float32 `logits`, `labels` in [0, 1], positive `weights`, int64 `groups` (None: one group); (N,) each."""
        groups = torch.zeros_like(logits, dtype=torch.int64) if groups is None else groups
        positives = weights.double() * labels.double()
        mass = torch.stack([positives, weights.double() - positives], dim=1)
        self._merge(groups, order_key(logits), mass)

    def absorb(self, other: Sketch) -> None:
        """Count what `other` has counted."""
        self._merge(other.groups[other.codes >> KEY_BITS], other.codes & KEY_MASK, other.mass)

    def only(self, keep: Tensor) -> Sketch:
        """The part whose groups are marked in `keep` (G,) bool."""
        part = Sketch(self.codes.device, self.min_capacity)
        held = keep[self.codes >> KEY_BITS]
        index = (keep.cumsum(0) - 1)[self.codes[held] >> KEY_BITS]
        part.groups = self.groups[keep]
        part.codes = index << KEY_BITS | self.codes[held] & KEY_MASK
        part.mass = self.mass[held]
        return part

    def weighted_auc(self) -> Tensor:
        """(2,) float64: sums over the groups that hold both classes of weight * AUC, and of weight."""
        index = self.codes >> KEY_BITS
        totals = _sum_by(index, self.mass, len(self.groups))
        positives, negatives = self.mass.unbind(1)
        first_in_group = totals[:, 1].cumsum(0) - totals[:, 1]
        below = negatives.cumsum(0) - negatives / 2 - first_in_group[index]
        ordered_pairs = _sum_by(index, positives * below, len(self.groups))
        both = (totals > 0).all(1)
        weight = totals[both].sum(1)
        return torch.stack([(weight * ordered_pairs[both] / totals[both].prod(1)).sum(), weight.sum()])

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load_state` takes back."""
        return {"groups": self.groups, "codes": self.codes, "mass": self.mass}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Become what `state` describes, on this sketch's device."""
        device = self.codes.device
        self.groups, self.codes, self.mass = (state[name].to(device) for name in ("groups", "codes", "mass"))

    def _merge(self, groups: Tensor, keys: Tensor, mass: Tensor) -> None:
        """Add rows or entries given by the id of their group and their key."""
        known = torch.cat([self.groups, groups.unique()]).unique()
        old = torch.searchsorted(known, self.groups)[self.codes >> KEY_BITS] << KEY_BITS | self.codes & KEY_MASK
        new = torch.searchsorted(known, groups) << KEY_BITS | keys
        self.groups = known
        self.codes, entry = torch.unique(torch.cat([old, new]), return_inverse=True)
        self.mass = _sum_by(entry, torch.cat([self.mass, mass]), len(self.codes))
        if len(self.codes) > self.capacity:
            self._coarsen()

    def _coarsen(self) -> None:
        """Merge neighbours into at most capacity / 2 + G entries.

        Cutting a group of weight W into steps of weight s costs its AUC in the order of s / W, and the GAUC W times
        that; for a given number of entries, the sum over groups is least near s proportional to sqrt(W).
        """
        index = self.codes >> KEY_BITS
        weight = self.mass.sum(1)
        group_weight = _sum_by(index, weight, len(self.groups))
        step = 2 * group_weight.sqrt() * group_weight.sqrt().sum() / self.capacity
        before = group_weight.cumsum(0) - group_weight
        middle = weight.cumsum(0) - weight / 2 - before[index]
        bin_in_group = (middle / step[index]).long()
        starts = (bin_in_group.diff() != 0) | (index.diff() != 0)
        entry = torch.cat([starts.new_zeros(1), starts]).cumsum(0)
        self._replace(entry, weight)

    def _replace(self, entry: Tensor, weight: Tensor) -> None:
        """Make one entry of those with the same ascending `entry` (N,), at the mean of their keys by `weight` (N,)."""
        size = int(entry[-1]) + 1
        first = torch.searchsorted(entry, torch.arange(size, device=entry.device))
        offset = self.codes - self.codes[first][entry]
        mean = _sum_by(entry, offset * weight, size) / _sum_by(entry, weight, size)
        self.codes = self.codes[first] + mean.long()
        self.mass = _sum_by(entry, self.mass, size)


def _sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """(size, ...) sums of the `values` (N, ...) that share an `index` (N,)."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def merge_owned(sketch: Sketch, ranks: dist.ProcessGroup) -> Sketch:
    """What all `ranks` counted of the groups that this rank owns: those whose id leaves its rank modulo the ranks.

    The ranks send in turn, so that a rank never holds more than its share and one other rank's sketch.
    """
    owned = Sketch(sketch.codes.device, sketch.min_capacity)
    for source in range(ranks.size()):
        sent = _broadcast(sketch, source, ranks)
        owned.absorb(sent.only(sent.groups % ranks.size() == ranks.rank()))
    return owned


def _broadcast(sketch: Sketch, source: int, ranks: dist.ProcessGroup) -> Sketch:
    """The sketch of rank `source`, on every rank."""
    device = sketch.codes.device
    shape = torch.tensor([len(sketch.groups), len(sketch.codes)], device=device)
    dist.broadcast(shape, group=ranks, group_src=source)
    sent = sketch if source == ranks.rank() else Sketch(device, sketch.min_capacity)
    num_groups, num_entries = (int(n) for n in shape.tolist())
    if sent is not sketch:
        sent.groups = sketch.groups.new_empty(num_groups)
        sent.codes, sent.mass = sketch.codes.new_empty(num_entries), sketch.mass.new_empty(num_entries, 2)
    for tensor in (sent.groups, sent.codes, sent.mass) if num_entries else ():
        dist.broadcast(tensor, group=ranks, group_src=source)
    return sent
