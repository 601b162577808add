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


class Parts(NamedTuple):
    """One number of each candidate."""

    own: Tensor  # (G, S)
    shared: Tensor  # (C,)
    grouped: Tensor  # (G, Q)
    private: Tensor  # (G, S, P)


@dataclass(frozen=True)
class Pool:
    """All candidates of a batch's queries, which stand in G groups of S: queries of a group share draws."""

    query: Tensor  # (G, S, D), over the temperature; zeros fill the last group up
    own: Tensor  # (G, S, D), the queries' items
    shared: Tensor  # (C, D), what every query is scored against
    grouped: Tensor  # (G, Q, D), what each group is
    private: Tensor  # (G, S, P, D), what each alone is
    keys: Parts  # rows of the catalogue; -1 for none
    offsets: Parts | None  # added to scores
    others: JaggedTensor | None  # of each query: items that are no negatives of it

    @property
    def parts(self) -> list[Tensor]:
        """What belongs to one group each."""
        return [self.query, self.own, self.grouped, self.private]

    @property
    def width(self) -> int:
        """Candidates of a group."""
        return self.query.shape[1] * (len(self.shared) + self.grouped.shape[1] + self.private.shape[2])

    def filled_up(self, of_rows: Tensor) -> Tensor:
        """(G, S) of what the batch's rows have (B,), with zeros for what fills the last group up."""
        return _filled_up(of_rows, self.query.shape[0], self.query.shape[1], 0)

    def scores(self, here: slice, parts: Sequence[Tensor], shared: Tensor) -> Scores:
        """Of the queries of some groups; `parts` and `shared` are those of the pool, or leaves with their values."""
        query, own, grouped, private = parts
        flat = query.flatten(0, 1)
        positive = (query * own).sum(dim=2)
        of_groups, of_queries = query @ grouped.mT, (private @ query.unsqueeze(3)).squeeze(3)
        if self.offsets is None:
            of_all = flat @ shared.T
        else:
            of_all = torch.addmm(self.offsets.shared, flat, shared.T)
            positive = positive + self.offsets.own[here]
            of_groups = of_groups + self.offsets.grouped[here].unsqueeze(1)
            of_queries = of_queries + self.offsets.private[here]
        negative = _beside([of_all, of_groups.flatten(0, 1), of_queries.flatten(0, 1)])
        keys = [self.keys.shared, self.keys.grouped[here].unsqueeze(1), self.keys.private[here]]
        return Scores(positive.flatten(), negative, _beside([self._excluded(here, part) for part in keys]))

    def _excluded(self, here: slice, keys: Tensor) -> Tensor:
        """(b, K): whatever is no item, or the query's own by whatever way it came (an accidental hit), or another of its.

        Keys are (K,), or (g, 1, K) of groups, or (g, S, K) of queries.
        """
        own = self.keys.own[here].unsqueeze(2)
        excluded = (keys == own).logical_or_(keys < 0).flatten(0, 1)
        if self.others is None or not keys.numel():
            return excluded
        size = own.shape[1]
        rows = slice(here.start * size, here.start * size + len(excluded))
        return excluded.logical_or_(
            _among(self.others, rows, keys if keys.dim() == 1 else keys.expand(-1, size, -1).flatten(0, 1))
        )


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

        Items come in this order: the queries' own, draws that all or a group's queries share, each query's own draws, each
        query's own column. Every rank must call it, and go backward through it.
        """
        assert batch.items is not None
        rows, wanted = len(query), self._negatives
        size, groups, end = wanted.shared_by or 1, wanted.groups(rows), rows + wanted.draws(rows)
        of_all, of_group = (wanted.sampled, 0) if wanted.shared_by is None else (0, wanted.sampled)
        last, first = rows + of_all, 0 if wanted.in_batch else rows
        visible = self._gather(batch.items[:last]).view(-1, last)  # (ranks, last)
        own, own_keys = (_filled_up(part[:rows], groups, size, none) for part, none in ((item, 0), (batch.items, -1)))
        grouped, grouped_keys = (p[last:end].reshape(groups, of_group, *p.shape[1:]) for p in (item, batch.items))
        private, private_keys = self._private(item[end:], batch.items[end:], rows, groups, size)
        keys = Parts(own_keys, visible[:, first:].flatten(), grouped_keys, private_keys)
        seen = (visible[:, :rows] >= 0).sum() * wanted.in_batch
        return Pool(
            _filled_up(query / self._temperature, groups, size, 0),
            own,
            self._gather(item[first:last]),
            grouped,
            private,
            keys,
            self._corrections(keys, seen, of_all * len(visible) + of_group + wanted.per_row),
            _others(batch, groups * size) if wanted.not_in is not None else None,
        )

    def _gather(self, rows: Tensor) -> Tensor:
        return gather_rows(rows) if self._negatives.cross_rank else rows

    def _private(self, item: Tensor, keys: Tensor, rows: int, groups: int, size: int) -> tuple[Tensor, Tensor]:
        """Vectors (G, S, P, D) and keys (G, S, P) of each query's draws and of its column, side by side."""
        counts = [self._negatives.per_row, self._negatives.column_length or 0]
        parts = [item.split([rows * count for count in counts]), keys.split([rows * count for count in counts])]
        vectors, found = ([part.reshape(rows, n, *part.shape[1:]) for part, n in zip(p, counts, strict=True)] for p in parts)
        return _filled_up(_beside(vectors), groups, size, 0), _filled_up(_beside(found), groups, size, -1)

    def _corrections(self, keys: Parts, seen: Tensor, draws: int) -> Parts | None:
        """Less the log of how often each item is expected among a query's candidates; then the batch itself is counted."""
        if self.frequency is None:
            return None
        corrections = Parts(*(self._correction(part, seen, draws) for part in keys))
        self.frequency.see(gather_rows(keys.own.flatten()))
        return corrections

    def _correction(self, keys: Tensor, seen: Tensor, draws: int) -> Tensor:
        assert self.frequency is not None
        expected = draws * self.drawn[keys.clamp(min=0)] + seen * self.frequency.share(keys)
        return -expected.clamp(min=RARE).log()


def _others(batch: Batch, rows: int) -> JaggedTensor | None:
    """Items of `not_in`, with empty lists for what fills the last group up."""
    if batch.lists is None:
        return None
    lists = batch.lists[NOT_IN]
    return JaggedTensor(lists.values(), lengths=_filled_up(lists.lengths(), 1, rows, 0).flatten())


def _filled_up(rows: Tensor, groups: int, size: int, none: int) -> Tensor:
    """(B, ...) -> (groups, size, ...), with `none` for the rows that the last group lacks."""
    lacking = groups * size - len(rows)
    if lacking:
        rows = torch.cat([rows, rows.new_full((lacking, *rows.shape[1:]), none)])
    return rows.unflatten(0, (groups, size))


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
