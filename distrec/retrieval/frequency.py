"""How often each item comes up in a stream of batches, estimated as the stream goes by, in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RATE = 0.01  # weight of the newest observation
HASHES = 3
MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # odd; of SplitMix64 and its kin


class Frequency(nn.Module):
    """The share of the stream's rows that hold an item.

    Yi et al., RecSys 2019, Algorithm 2: for each item, a moving average of the gap between the batches that hold it,
    in hashed buckets; of several hashes the one that sees the item least often has the fewest collisions. Two things
    are added. An item may be in a batch several times, so the mean of that number is kept too: the share is the one
    over the other. And the clock counts rows, so batches may differ in size.

    Where every item has a bucket of its own, there is one table and no hash.
    """

    clock: Tensor
    last: Tensor
    gap: Tensor
    times: Tensor

    def __init__(self, items: int, buckets: int, rate: float = RATE) -> None:
        """`items` of the catalogue; at most `buckets` numbers of each kind and hash."""
        super().__init__()
        self.own = items <= buckets
        self.size, self.rate = min(items, buckets), rate
        shape = (1 if self.own else HASHES, self.size + 1)  # the last bucket is for rows without an item
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("gap", torch.ones(shape))  # rows from one batch that holds the item to the next
        self.register_buffer("times", torch.ones(shape))  # rows that hold it in such a batch

    @torch.no_grad()
    def expect(self, counts: Tensor, rows: int) -> None:
        """Begin with these counts of all items, (items,), as if batches of `rows` rows had been drawn by them."""
        share = (counts + 1) / (counts + 1).sum()  # what was never seen may be tomorrow
        buckets = self._buckets(torch.arange(len(counts), device=counts.device))
        for h, places in enumerate(buckets):
            total = torch.zeros_like(self.gap[h]).index_add_(0, places, share.to(self.gap))
            total[-1] = 1.0
            total[total == 0] = 1.0 / len(counts)  # a bucket that no item falls into
            self.times[h] = (total * rows).clamp(min=1.0)
            self.gap[h] = self.times[h] / total

    def share(self, items: Tensor) -> Tensor:
        """The probability that a row holds each of these items, (n,) int64 -> (n,) float32; of -1 it means nothing."""
        places = self._buckets(items)
        return torch.stack([self.times[h][p] / self.gap[h][p] for h, p in enumerate(places)]).amin(dim=0)

    @torch.no_grad()
    def see(self, items: Tensor) -> None:
        """Take in the items of one step's rows, of all ranks: (n,) int64, -1 for a row without one."""
        self.clock += (items >= 0).sum()
        for h, places in enumerate(self._buckets(items)):
            counts = torch.zeros_like(self.times[h]).index_add_(0, places, torch.ones_like(places, dtype=torch.float32))
            # Rows of one bucket all write the same number, so their order does not matter.
            gap, times = self.gap[h][places], self.times[h][places]
            self.gap[h][places] = gap + self.rate * ((self.clock - self.last[h][places]).float() - gap)
            self.times[h][places] = times + self.rate * (counts[places] - times)
            self.last[h][places] = self.clock

    def _buckets(self, items: Tensor) -> list[Tensor]:
        if self.own:
            return [torch.where(items < 0, self.size, items)]
        return [torch.where(items < 0, self.size, _hash(items, m).remainder(self.size)) for m in MULTIPLIERS[:HASHES]]


def _hash(items: Tensor, multiplier: int) -> Tensor:
    mixed = (items + 1) * multiplier
    mixed = (mixed ^ (mixed >> 32)) * MULTIPLIERS[0]
    return mixed ^ (mixed >> 29)
