"""Exact search: the best items of each query by inner product, over a catalogue that lies in shares on the ranks.

Blocks of vectors go round, each from the rank that holds it, and every rank scores its own queries against them. No rank
ever holds the catalogue, nor the scores of more than a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

BUDGET = 2**28  # bytes of scores at once
BLOCK_ROWS = 2**15  # items a block: long enough for a matrix product, short enough to be sent while memory is short
TORN_ROWS = 2**8  # queries whose ties are told apart at once
NOTHING = -torch.inf


class Found(NamedTuple):
    """The best items of B queries."""

    scores: Tensor  # (B, k) float32, best first; -inf where there are no more items
    items: Tensor  # (B, k) int64 rows of the catalogue; -1 there


class Catalogue(Protocol):
    """Vectors that come in blocks, in order."""

    @property
    def rows(self) -> int:
        """Of all blocks."""
        ...

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Each as (its first row, vectors (b, D))."""
        ...


@dataclass(frozen=True)
class Share:
    """This rank's rows of a catalogue; the ranks' shares follow each other in the order of ranks."""

    vectors: Tensor  # (n, D) float32
    starts: Sequence[int]  # (world + 1,) the first row of each rank's share, and the rows of all
    rank: int = 0

    def __post_init__(self) -> None:
        low, high = self.starts[self.rank : self.rank + 2]
        if len(self.vectors) != high - low:
            raise ValueError(f"{len(self.vectors)} vectors for rows {low} to {high}")

    @classmethod
    def alone(cls, vectors: Tensor) -> Share:
        """All of a catalogue in one process."""
        return cls(vectors, (0, len(vectors)))

    @property
    def rows(self) -> int:
        """Of the whole catalogue."""
        return self.starts[-1]

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Tensor]]:
        """The catalogue in order, each block as (its first row, vectors (b, D)). Every rank must take them all."""
        width = self.vectors.shape[1]
        for owner, (start, stop) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            for low in range(start, stop, rows):
                high = min(low + rows, stop)
                mine = owner == self.rank
                block = self.vectors[low - start : high - start] if mine else self.vectors.new_empty(high - low, width)
                if len(self.starts) > 2:
                    dist.broadcast(block, owner)
                yield low, block


def split_rows(rows: int, world: int) -> list[int]:
    """Starts of `world` shares of nearly one size, and `rows`."""
    return [rows * rank // world for rank in range(world + 1)]


@torch.no_grad()
def top_k(
    queries: Tensor, catalogue: Catalogue, k: int, hidden: tuple[Tensor, Tensor] | None = None, budget: int = BUDGET
) -> Found:
    """The k items of largest inner product with each query; of equal ones, the first in the catalogue.

    Every rank must call it, each with queries of its own, maybe none. Beside queries and results, memory is a block and
    `budget` bytes.

    Args:
        queries: (B, D).
        catalogue: what to search: this rank's `Share` of the item vectors, say.
        k: how many; at most the catalogue.
        hidden: items (N,) int64 and offsets (B + 1,): what query i must not be given.
        budget: bytes of scores at once.

    Raises:
        ValueError: k is larger than the catalogue.
    """
    if not 0 < k <= catalogue.rows:
        raise ValueError(f"the best {k} of {catalogue.rows} items")
    longest = min(BLOCK_ROWS, catalogue.rows)
    best = Found(queries.new_full((len(queries), k), NOTHING), torch.full((len(queries), k), -1, device=queries.device))
    chunk = max(1, budget // (4 * longest))
    veil = _Veil(hidden, catalogue.rows, chunk, queries.device) if hidden is not None else None
    scores = queries.new_empty(min(chunk, len(queries)) * longest)
    for first, block in catalogue.blocks():
        for number, low in enumerate(range(0, len(queries), chunk)):
            part = queries[low : low + chunk]
            found = torch.mm(part, block.T, out=scores[: len(part) * len(block)].view(len(part), len(block)))
            if veil is not None:
                veil.hide(found, number, first)
            _merge(best, low, _best(found, k), first)
    return best


@torch.no_grad()
def pair_scores(queries: Tensor, catalogue: Catalogue, items: Tensor, budget: int = BUDGET) -> Tensor:
    """Inner products of query i with `items[i]` (B, n) -> (B, n). Every rank must call it."""
    scores = queries.new_zeros(items.shape)
    step = max(1, budget // (8 * queries.shape[1]))
    for first, block in catalogue.blocks():
        rows, columns = ((items >= first) & (items < first + len(block))).nonzero(as_tuple=True)
        for low in range(0, len(rows), step):
            at, place = rows[low : low + step], columns[low : low + step]
            scores[at, place] = (queries[at] * block[items[at, place] - first]).sum(1)
    return scores


class _Veil:
    """Which items are hidden from which queries, ready to be looked up by chunk of queries and block of items."""

    def __init__(self, hidden: tuple[Tensor, Tensor], items: int, chunk: int, device: torch.device):
        ids, offsets = (part.to(device) for part in hidden)
        rows = torch.arange(len(offsets) - 1, device=device).repeat_interleave(offsets.diff())
        self._keys, order = (rows // chunk * items + ids).sort()  # by chunk, then by item
        self._rows, self._items = (rows % chunk)[order], items

    def hide(self, scores: Tensor, chunk: int, first: int) -> None:
        """Set to -inf what chunk number `chunk` must not be given of the block that begins with item `first`."""
        start = chunk * self._items + first
        low, high = torch.searchsorted(self._keys, self._keys.new_tensor([start, start + scores.shape[1]])).tolist()
        scores[self._rows[low:high], self._keys[low:high] - start] = NOTHING


def _best(scores: Tensor, k: int) -> Found:
    """The k best columns of each row, the first of equal ones; fewer where there are not so many."""
    values, at = scores.topk(min(k + 1, scores.shape[1]))
    if values.shape[1] <= k:
        return _in_order(values, at)
    torn = (values[:, k - 1] == values[:, k]) & (values[:, k] > NOTHING)  # equal ones on both sides of the cut
    at = at[:, :k].clone()
    for row in torn.nonzero().flatten().split(TORN_ROWS):
        at[row] = _first_of_equals(scores[row], values[row, k - 1 : k], k)
    return _in_order(scores.gather(1, at), at)


def _first_of_equals(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """The k columns of each row with a score over `least` (R, 1) or, as far as there is room, the first that equal it."""
    over, equal = scores > least, scores == least
    room = k - over.sum(1, keepdim=True)
    chosen = over | (equal & (equal.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(len(scores), k)


def _in_order(values: Tensor, at: Tensor) -> Found:
    """Best first, equal ones by column."""
    at, by_column = at.sort(dim=1)
    values, by_value = values.gather(1, by_column).sort(dim=1, descending=True, stable=True)
    return Found(values, at.gather(1, by_value))


def _merge(best: Found, low: int, found: Found, first: int) -> None:
    """Take what a later block has found into rows `low` onwards of the best so far."""
    rows, k = slice(low, low + len(found.items)), best.items.shape[1]
    items = torch.where(found.scores > NOTHING, found.items + first, -1)
    scores, order = torch.cat([best.scores[rows], found.scores], 1).sort(dim=1, descending=True, stable=True)
    best.scores[rows] = scores[:, :k]
    best.items[rows] = torch.cat([best.items[rows], items], 1).gather(1, order[:, :k])
