"""How good lists of recommended items are, at several lengths in one pass over the queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from distrec.metrics.pointwise import ratio

NAMES = ("recall", "ndcg", "hit_rate", "mrr")


class RetrievalMetrics:
    """Recall, NDCG, hit rate, MRR, coverage and popularity of the best k items of each query.

    Of a query whose targets are the distinct items T, the mean over queries with at least one target of:

    - `recall@k`: |best k ∩ T| / |T|, as LightGCN and BARS count it. (Some papers divide by min(k, |T|), which is larger.)
    - `ndcg@k`: gains of 1 / log2(1 + place) over those of min(k, |T|) targets in the first places.
    - `hit_rate@k`: 1 when a target is among the best k. With one target a query, this is its recall.
    - `mrr@k`: 1 / place of the first target, 0 when it comes after k.

    Of all queries together, those without targets too:

    - `coverage@k`: share of the catalogue that is among the best k of any query.
    - `popularity@k`: how often the recommended items occur in training, over how often the targets do: the ratio of the
      geometric means of 1 + occurrences. 1 is no bias; 3 says three times as popular as what users went for. The
      idea is that of Abdollahpouri et al., The Unfairness of Popularity Bias in Recommendation, 2019, section 4.1,
      with a geometric mean, because a few items would decide an arithmetic one.

    Memory: a byte an item of the catalogue for the coverage, and sums.
    """

    def __init__(self, ks: Sequence[int], items: int, counts: Tensor | None = None, device: torch.device | str = "cpu"):
        """Measure the best k of a catalogue of `items`, for each of `ks`.

        `counts` (items,) are occurrences in training; without them there is no popularity.
        """
        self.ks, self.items = tuple(sorted(ks)), items
        self.device = torch.device(device)
        self._log_counts = None if counts is None else counts.to(self.device).double().log1p()
        self.reset()

    def reset(self) -> None:
        """Forget all queries."""
        self._sums = torch.zeros(len(self.ks), len(NAMES), dtype=torch.float64, device=self.device)
        self._totals = torch.zeros(
            3, dtype=torch.float64, device=self.device
        )  # queries with targets, targets, their log counts
        self._shown = torch.zeros(len(self.ks), 2, dtype=torch.float64, device=self.device)  # items shown, their log counts
        self._first_k = torch.full((self.items,), len(self.ks), dtype=torch.uint8, device=self.device)  # index of k in `ks`

    @torch.no_grad()
    def update(self, found: Tensor, targets: Tensor, offsets: Tensor) -> None:
        """Count queries.

        Args:
            found: (B, K) int64 items, best first, K at least the largest k; -1 where there were no more items.
            targets: (N,) int64 items; query i is to find `targets[offsets[i]:offsets[i + 1]]`, repeats count once.
            offsets: (B + 1,) int64.

        Raises:
            ValueError: fewer than k items a query.
        """
        if found.shape[1] < self.ks[-1]:
            raise ValueError(f"{found.shape[1]} items a query, and metrics at {self.ks[-1]}")
        keys, wanted = distinct(targets, offsets, self.items)
        hits = self._hits(found, keys)
        answered = wanted > 0
        self._sums += torch.stack([list_sums(hits[answered, :k], wanted[answered]) for k in self.ks])
        self._totals[:2] += torch.stack([answered.sum(), wanted.sum()])
        self._count_shown(found)
        if self._log_counts is not None:
            self._totals[2] += self._log_counts[keys % self.items].sum()

    def compute(self, ranks: dist.ProcessGroup | None = None) -> dict[str, float]:
        """Numbers by name, `recall@10` and so on, over the queries of all `ranks`. Every rank must call it.

        What no query determines is NaN.
        """
        sums, totals, shown = (sum_over(part, ranks) for part in (self._sums, self._totals, self._shown))
        numbers = {
            f"{n}@{k}": ratio(float(sums[i, j]), float(totals[0])) for j, n in enumerate(NAMES) for i, k in enumerate(self.ks)
        }
        numbers |= {f"coverage@{k}": share for k, share in zip(self.ks, self._coverage(ranks), strict=True)}
        if self._log_counts is not None:
            usual = ratio(float(totals[2]), float(totals[1]))
            numbers |= {f"popularity@{k}": math.exp(ratio(*shown[i].flip(0).tolist()) - usual) for i, k in enumerate(self.ks)}
        return numbers

    def _hits(self, found: Tensor, keys: Tensor) -> Tensor:
        rows = torch.arange(len(found), device=found.device).unsqueeze(1)
        return torch.isin(rows * self.items + found, keys, assume_unique=False) & (found >= 0)

    def _count_shown(self, found: Tensor) -> None:
        for index, k in reversed(list(enumerate(self.ks))):
            shown = found[:, :k].flatten()
            shown = shown[shown >= 0]
            self._first_k[shown] = self._first_k[shown].clamp(max=index)
            logs = self._log_counts[shown].sum() if self._log_counts is not None else self._shown.new_zeros(())
            self._shown[index] += torch.stack([logs.new_tensor(len(shown)), logs])

    def _coverage(self, ranks: dist.ProcessGroup | None) -> list[float]:
        first = self._first_k.clone()
        if ranks is not None:
            dist.all_reduce(first, dist.ReduceOp.MIN, group=ranks)
        return [ratio(int((first <= index).sum()), self.items) for index in range(len(self.ks))]


def list_sums(hits: Tensor, wanted: Tensor) -> Tensor:
    """Sums over queries of recall, NDCG, hit rate and reciprocal rank, (4,) float64.

    Args:
        hits: (B, k) bool, whether the item in each place is a target.
        wanted: (B,) int64 number of targets, all positive.
    """
    places = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    gains = (places + 1).log2().reciprocal()
    ideal = gains.cumsum(0)[wanted.clamp(max=len(gains)) - 1]
    marks = hits.double()
    recall, ndcg = marks.sum(1) / wanted, marks @ gains / ideal
    first = (marks / places).amax(1)
    return torch.stack([recall.sum(), ndcg.sum(), (first > 0).double().sum(), first.sum()])


def distinct(items: Tensor, offsets: Tensor, catalogue: int) -> tuple[Tensor, Tensor]:
    """Ragged items without repeats in a row: keys `row * catalogue + item` (N,), ascending, and items a row (B,)."""
    rows = torch.arange(len(offsets) - 1, device=items.device).repeat_interleave(offsets.diff())
    keys = (rows * catalogue + items).unique()
    return keys, torch.bincount(keys // catalogue, minlength=len(offsets) - 1)


def sum_over(values: Tensor, ranks: dist.ProcessGroup | None) -> Tensor:
    """The sum over ranks, in a copy; without ranks, the copy."""
    total = values.clone()
    if ranks is not None:
        dist.all_reduce(total, group=ranks)
    return total
