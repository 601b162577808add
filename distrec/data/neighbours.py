"""Hard negatives: for each item, those that the model can least tell from it."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distrec.dist import gather_rows
from distrec.retrieval.exact import Share, top_k


class Neighbours:
    """The items of largest inner product with each item, by the vectors of the last search; before it, any items.

    An item stands for the queries that want it, so what is near it is what they would be given in its place. Unlike a
    search for each query, this needs no model while batches are read, and the table goes into checkpoints: a run that is
    resumed between two searches draws what it would have drawn.
    """

    def __init__(self, items: int, pool: int):
        """`pool` neighbours an item, or as many as there are."""
        self.table = torch.full((items, min(pool, items - 1)), -1, dtype=torch.int32)

    @torch.no_grad()
    def search(self, share: Share) -> None:
        """Search exactly, with the vectors of all ranks' shares. Every rank must call it."""
        start, stop = share.starts[share.rank : share.rank + 2]
        itself = torch.arange(start, stop), torch.arange(stop - start + 1)
        found = top_k(share.vectors, share, self.table.shape[1], itself).items.int()
        sizes = np.diff(share.starts)
        padded = found.new_full((int(sizes.max()), found.shape[1]), -1)
        padded[: len(found)] = found
        everyone = gather_rows(padded).chunk(dist.get_world_size())
        self.table.copy_(torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)]))

    def draw(self, own: Tensor, count: int, generator: np.random.Generator) -> np.ndarray:
        """`(B, count) int64`: of each of the items `own` (B,), some of its neighbours, with replacement."""
        places = generator.integers(0, self.table.shape[1], (len(own), count))
        anything = generator.integers(0, len(self.table), (len(own), count))
        near = self.table.numpy()[own.numpy()[:, None], places]
        return np.where(near < 0, anything, near)
