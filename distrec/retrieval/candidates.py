"""What a query's own item is scored against: items of other rows and ranks, and drawn ones; and how often each comes up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from distrec.batch import Batch
from distrec.config.retrieval import Retrieval
from distrec.dist import gather_rows
from distrec.retrieval.frequency import Frequency

NOT_IN = "not_in"  # key of Batch.lists: a query's other items
RARE = 1e-12  # an expected count is at least this, so that its logarithm is finite


class Scores(NamedTuple):
    """Of some queries."""

    positive: Tensor  # (B,), of the query's own item
    negative: Tensor  # (B, K), of other items
    excluded: Tensor  # (B, K) bool: which of them are no negatives of the query


@dataclass(frozen=True)
class Pool:
    """All candidates of a batch's B queries."""

    query: Tensor  # (B, D), over the temperature
    own: Tensor  # (B, D), the queries' items
    shared: Tensor  # (C, D), what every query is scored against
    private: Tensor  # (B, P, D), what each alone is
    keys: tuple[Tensor, Tensor, Tensor]  # (B,), (C,), (B, P): rows of the catalogue of own, shared and private; -1 for none
    offsets: tuple[Tensor, Tensor, Tensor] | None  # of those shapes: added to scores
    others: JaggedTensor | None  # of each query: items that are no negatives of it

    @property
    def rows(self) -> list[Tensor]:
        """What belongs to one query each."""
        return [self.query, self.own, self.private]

    @property
    def width(self) -> int:
        """Candidates of a query."""
        return len(self.shared) + self.private.shape[1]

    def scores(self, here: slice, rows: Sequence[Tensor], shared: Tensor) -> Scores:
        """Of some of the queries; `rows` and `shared` are those parts of the pool, or leaves with their values."""
        query, own, private = rows
        positive = (query * own).sum(dim=1)
        if self.offsets is None:
            negative = [query @ shared.T, torch.bmm(private, query.unsqueeze(2)).squeeze(2)]
        else:
            of_own, of_shared, of_private = self.offsets
            positive = positive + of_own[here]
            negative = [
                torch.addmm(of_shared, query, shared.T),
                torch.baddbmm(of_private[here].unsqueeze(2), private, query.unsqueeze(2)).squeeze(2),
            ]
        _, of_shared, of_private = self.keys
        excluded = [self._excluded(here, of_shared), self._excluded(here, of_private[here])]
        return Scores(positive, _beside(negative), _beside(excluded))

    def _excluded(self, here: slice, keys: Tensor) -> Tensor:
        """(b, K): whatever is no item, or the query's own by whatever way it came (an accidental hit), or another of its."""
        excluded = (keys == self.keys[0][here].unsqueeze(1)).logical_or_(keys < 0)
        if self.others is None or not keys.numel():
            return excluded
        return excluded.logical_or_(_among(self.others, here, keys))


class Candidates(nn.Module):
    """Finds a batch's candidates. With `frequency`, the log of an item's expected count is taken from its score: logQ.

    An item is expected `rows x share + draws x probability` times among a query's candidates: `share` of the rows whose
    items the query sees, by the frequency estimate, and `probability` in each of the sampler's draws that it sees.
    """

    drawn: Tensor

    def __init__(self, retrieval: Retrieval, frequency: Frequency | None, drawn: Tensor):
        """`drawn` (M,): the probability of each item of the catalogue in one draw of the sampler."""
        super().__init__()
        self.frequency = frequency
        self.register_buffer("drawn", drawn, persistent=False)
        self._negatives = retrieval.negatives
        self._temperature = 1.0 if retrieval.loss == "ccl" else retrieval.temperature  # its margin is a cosine

    def forward(self, batch: Batch, query: Tensor, item: Tensor) -> Pool:
        """The candidates of queries (B, D), given the vectors (N, D) of the items of all the batch's rows.

        Items come in this order: the queries' own, shared draws, each query's own draws, each query's own column. Every
        rank must call it, and go backward through it.
        """
        assert batch.items is not None
        rows, wanted = len(query), self._negatives
        last, first = rows + wanted.sampled, 0 if wanted.in_batch else rows
        own, visible = batch.items[:rows], self._gather(batch.items[:last]).view(-1, last)  # (ranks, last)
        private, private_keys = self._private(item[last:], batch.items[last:], rows)
        keys = own, visible[:, first:].flatten(), private_keys
        seen = (visible[:, :rows] >= 0).sum() * wanted.in_batch
        return Pool(
            query / self._temperature,
            item[:rows],
            self._gather(item[first:last]),
            private,
            keys,
            self._corrections(keys, seen, wanted.sampled * len(visible) + wanted.per_row),
            batch.lists[NOT_IN] if batch.lists is not None and wanted.not_in is not None else None,
        )

    def _gather(self, rows: Tensor) -> Tensor:
        return gather_rows(rows) if self._negatives.cross_rank else rows

    def _private(self, item: Tensor, keys: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Vectors (B, P, D) and keys (B, P) of each query's draws and of its column, side by side."""
        counts = [self._negatives.per_row, self._negatives.column_length or 0]
        parts = [item.split([rows * count for count in counts]), keys.split([rows * count for count in counts])]
        vectors, found = ([part.reshape(rows, n, *part.shape[1:]) for part, n in zip(p, counts, strict=True)] for p in parts)
        return _beside(vectors), _beside(found)

    def _corrections(
        self, keys: tuple[Tensor, Tensor, Tensor], seen: Tensor, draws: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Less the log of how often each item is expected among a query's candidates; then the batch itself is counted."""
        if self.frequency is None:
            return None
        own, shared, private = (self._correction(part, seen, draws) for part in keys)
        self.frequency.see(gather_rows(keys[0]))
        return own, shared, private

    def _correction(self, keys: Tensor, seen: Tensor, draws: int) -> Tensor:
        assert self.frequency is not None
        expected = draws * self.drawn[keys.clamp(min=0)] + seen * self.frequency.share(keys)
        return -expected.clamp(min=RARE).log()


def _among(lists: JaggedTensor, here: slice, keys: Tensor) -> Tensor:
    """(b, K) bool: which of the keys, (K,) or (b, K), the lists of some rows hold; -1 is in none."""
    offsets = lists.offsets()[here.start : here.stop + 1]
    values = lists.values()[offsets[0] : offsets[-1]]
    rows = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=keys.device), offsets.diff())
    bound = torch.cat([values, keys.flatten()]).max() + 2 if len(values) else 1
    if keys.dim() == 2:
        own = torch.arange(len(keys), device=keys.device).unsqueeze(1)
        return torch.isin(own * bound + keys + 1, rows * bound + values + 1)
    distinct, places = keys.unique(return_inverse=True)
    found = torch.searchsorted(distinct, values).clamp(max=len(distinct) - 1)
    hit = distinct[found] == values
    table = torch.zeros(len(offsets) - 1, len(distinct), dtype=torch.bool, device=keys.device)
    table[rows[hit], found[hit]] = True
    return table[:, places]


def _beside(parts: Sequence[Tensor]) -> Tensor:
    filled = [part for part in parts if part.shape[1]]
    return filled[0] if len(filled) == 1 else torch.cat(filled or list(parts), dim=1)
