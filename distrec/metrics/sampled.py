"""The protocol of many papers: each target against N sampled items. Named as such wherever its numbers are shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from distrec.errors import UserError
from distrec.metrics.pointwise import ratio
from distrec.metrics.retrieval import NAMES, distinct, list_sums, sum_over

GOLDEN = -0x61C8864680B583EB  # 2**64 over the golden ratio, as a signed word: the step between draws


class SampledMetrics:
    """Hit rate, NDCG and MRR of each target's place among itself and N sampled items, one target at a time.

    A protocol of many papers (He et al., Neural Collaborative Filtering, WWW 2017, section 4.1), only for standing beside
    their numbers: it is far more flattering than ranking the catalogue, and may even order models otherwise (Krichene
    and Rendle, On Sampled Metrics for Item Recommendation, KDD 2020). So its names say what it is: `sampled_99/hit_rate@10`.
    """

    def __init__(self, ks: Sequence[int], sampled: int, device: torch.device | str = "cpu"):
        """Places among 1 + `sampled` items; lengths `ks` that are not shorter than that say nothing and are left out."""
        self.ks, self.sampled = tuple(k for k in sorted(ks) if k <= sampled), sampled
        self._sums = torch.zeros(len(self.ks), len(NAMES), dtype=torch.float64, device=device)
        self._targets = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, scores: Tensor, sampled: Tensor) -> None:
        """Count targets with their `scores` (T,) beside those of the items `sampled` (T, N) for each. A tie is lost."""
        places = (sampled >= scores.unsqueeze(1)).sum(1)
        for index, k in enumerate(self.ks):
            hits = places.unsqueeze(1) == torch.arange(k, device=places.device)
            self._sums[index] += list_sums(hits, torch.ones_like(places))
        self._targets += len(places)

    def compute(self, ranks: dist.ProcessGroup | None = None) -> dict[str, float]:
        """Numbers by name over the targets of all `ranks`. Every rank must call it."""
        sums, targets = sum_over(self._sums, ranks), float(sum_over(self._targets, ranks))
        return {
            f"sampled_{self.sampled}/{name}@{k}": ratio(float(sums[i, j]), targets)
            for j, name in enumerate(NAMES)
            for i, k in enumerate(self.ks)
            if name != "recall"  # with one target it is the hit rate
        }


def sample_unseen(count: int, lists: tuple[Tensor, Tensor], items: int, seed: int) -> Tensor:
    """For each query, `count` distinct items that are not in its list, each as likely as any other: (B, count) int64.

    What a query gets depends on the seed and on what its list holds, not on the batch or the rank it is in.

    Args:
        count: items a query.
        lists: items (N,) and offsets (B + 1,): a query's targets and all that it has seen.
        items: of the catalogue.
        seed: of the sample.

    Raises:
        UserError: a query has seen so many that fewer than `count` are left.
    """
    keys, held = distinct(*lists, items)
    if len(held) and count > items - int(held.max()):
        raise UserError(
            f"retrieval.rank_among = {count}: a query has all but {items - int(held.max())} of the {items} items in its "
            "targets and its mask; sample fewer"
        )
    states = torch.zeros_like(held).index_add_(0, keys // items, _mix(keys % items + 1)) + seed
    draws = 2 * count
    while True:
        drawn = _mix(states.unsqueeze(1) + torch.arange(draws, device=held.device) * GOLDEN).remainder(items)
        fresh = _first_of_each(drawn) & ~torch.isin(
            torch.arange(len(held), device=held.device).unsqueeze(1) * items + drawn, keys
        )
        if not len(held) or int(fresh.sum(1).min()) >= count:
            order = (~fresh).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
            return drawn.gather(1, order)
        draws *= 2


def _first_of_each(values: Tensor) -> Tensor:
    """Which values (B, n) no earlier one in the row equals."""
    ordered, at = values.sort(dim=1, stable=True)
    fresh = torch.ones_like(values, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(fresh).scatter_(1, at, fresh)


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) on int64 words, which wrap."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ ((words >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return words ^ ((words >> 31) & ((1 << 33) - 1))
