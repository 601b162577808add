"""Which rows of which table are used: counts by bucket of rows, sampled, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

BUCKETS = 2**16


class TableUse:
    """Ids a feature and a table got. A table of up to `BUCKETS` rows is counted row by row, a larger one by equal ranges."""

    def __init__(self, tables: Mapping[str, str], rows: Mapping[str, int], device: torch.device | str = "cpu"):
        """`tables`: feature -> its table; `rows`: table -> its rows."""
        self._table, self._rows = dict(tables), dict(rows)
        self.buckets = {t: torch.zeros(min(n, BUCKETS), dtype=torch.int64, device=device) for t, n in self._rows.items()}
        self.ids = dict.fromkeys(tables, 0)
        self.batches = 0

    def update(self, features: Iterable[tuple[str, Tensor]]) -> None:
        """Count one batch: (feature, its ids (N,) int64)."""
        self.batches += 1
        for name, ids in features:
            table = self._table[name]
            counts = self.buckets[table]
            counts.index_add_(0, ids * len(counts) // self._rows[table], torch.ones_like(ids))  # bincount waits for a GPU
            self.ids[name] += len(ids)

    def merge(self, ranks: dist.ProcessGroup) -> None:
        """Add up over ranks, in place. Every rank must call it."""
        for counts in self.buckets.values():
            dist.all_reduce(counts, group=ranks)
        total = torch.tensor(list(self.ids.values()), device=next(iter(self.buckets.values())).device) if self.ids else None
        if total is not None:
            dist.all_reduce(total, group=ranks)
            self.ids = dict(zip(self.ids, total.tolist(), strict=True))
