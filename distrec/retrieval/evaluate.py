"""A retriever judged by exact search: each query ranks the whole catalogue, less what its mask hides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from distrec.config.retrieval import Retrieval
from distrec.dist import Ranks, refuse, together
from distrec.evaluate import Evaluation
from distrec.metrics.retrieval import RetrievalMetrics, distinct, sum_over
from distrec.metrics.sampled import SampledMetrics, sample_unseen
from distrec.retrieval.exact import Share, pair_scores, split_rows, top_k

QUERY_ROWS = 2**16  # queries of a rank that are searched for at once: the catalogue goes round once for them all
SAMPLE_SEED = 0  # of the items that `retrieval.rank_among` draws: part of the protocol, and no setting

Lists = tuple[Tensor, Tensor]  # values (N,), offsets (B + 1,)


@dataclass(frozen=True)
class Queries:
    """Queries of this rank, without padding."""

    vectors: Tensor  # (B, D)
    targets: Lists
    mask: Lists  # empty lists where nothing is masked

    def __len__(self) -> int:
        return len(self.vectors)


class RetrievalEvaluation:
    """Counts queries; `result` adds up over ranks. All methods are called by every rank together."""

    def __init__(self, retrieval: Retrieval, share: Share, counts: Tensor | None, group: dist.ProcessGroup | None):
        """Search `share` of the catalogue; `counts` (items,) are occurrences in training, if they are known."""
        self._retrieval, self._share, self._group = retrieval, share, group
        device = share.vectors.device
        self._metrics = RetrievalMetrics(retrieval.ks, share.rows, counts, device)
        self._sampled = SampledMetrics(retrieval.ks, retrieval.rank_among or 0, device)
        self._odd = torch.zeros(5, dtype=torch.int64, device=device)  # queries; without targets, zero, not finite; lost targets

    def add(self, queries: Queries) -> None:
        """Rank the catalogue for some queries, on this rank maybe none."""
        found = top_k(queries.vectors, self._share, max(self._retrieval.ks), queries.mask)
        self._metrics.update(found.items, *queries.targets)
        self._count_odd(queries)
        if self._retrieval.rank_among is not None:
            self._add_sampled(queries, self._retrieval.rank_among)

    def result(self) -> Evaluation:
        """What came out."""
        rows, untargeted, zero, broken, lost = sum_over(self._odd, self._group).tolist()
        if broken:
            _refuse_vectors(f"{broken} of {rows} queries")
        numbers = self._metrics.compute(self._group) | self._sampled.compute(self._group)
        warnings = [
            f"{count:,} {what}"
            for count, what in (
                (untargeted, f"of {rows:,} queries have no targets, and count for nothing but coverage and popularity"),
                (
                    zero,
                    f"of {rows:,} queries have a zero vector: the model knows no feature of them, and every item is as good",
                ),
                (lost, "targets are masked too, so that no model can find them: look at retrieval.mask"),
            )
            if count
        ]
        return Evaluation(numbers, rows, warnings)

    def _add_sampled(self, queries: Queries, count: int) -> None:
        known = _joined(queries.targets, queries.mask)
        drawn = together(lambda: sample_unseen(count, known, self._share.rows, SAMPLE_SEED))
        sampled = pair_scores(queries.vectors, self._share, drawn)
        keys, lengths = distinct(*queries.targets, self._share.rows)
        rows = torch.arange(len(queries), device=keys.device).repeat_interleave(lengths)
        own = pair_scores(queries.vectors[rows], self._share, (keys % self._share.rows).unsqueeze(1))
        self._sampled.update(own.squeeze(1), sampled[rows])

    def _count_odd(self, queries: Queries) -> None:
        targets, held = distinct(*queries.targets, self._share.rows)
        masked, _ = distinct(*queries.mask, self._share.rows)
        vectors = queries.vectors
        self._odd += torch.stack(
            [
                held.new_tensor(len(queries)),
                (held == 0).sum(),
                (vectors == 0).all(1).sum(),
                (~vectors.isfinite().all(1)).sum(),
                torch.isin(targets, masked).sum(),
            ]
        )


def evaluate_retrieval(
    items: Iterable[Mapping[str, Tensor]],
    queries: Iterable[Mapping[str, Tensor]],
    retrieval: Retrieval,
    rows: int,
    counts: Tensor | None,
    ranks: Ranks,
) -> Evaluation:
    """Metrics at `retrieval.ks` over all ranks (see `RetrievalMetrics`), and with `rank_among` those of `SampledMetrics`.

    Every query counts once. Every rank must call it.

    Args:
        items: this rank's share of the catalogue as `RetrievalTask` gives it, `item` and `items`.
        queries: its queries: `query`, `weights`, `targets`, `targets_offsets`, and where there is a mask that.
        retrieval: what to measure.
        rows: of the whole catalogue.
        counts: (rows,) occurrences in training.
        ranks: this rank among all.

    Raises:
        UserError: a vector is not finite.
    """
    share = collect_items(items, rows, ranks)
    counting = RetrievalEvaluation(retrieval, share, counts, dist.group.WORLD)
    for part in collect_queries(queries):
        counting.add(part)
    return counting.result()


def collect_items(outputs: Iterable[Mapping[str, Tensor]], rows: int, ranks: Ranks) -> Share:
    """This rank's share of the item vectors, from what the model says of a `CatalogueReader`.

    Raises:
        UserError: a vector is not finite.
    """
    vectors = torch.cat([output["item"][output["items"] >= 0] for output in outputs])
    broken = sum_over((~vectors.isfinite().all(1)).sum(), dist.group.WORLD)
    if broken:
        _refuse_vectors(f"{int(broken)} of {rows} items")
    return Share(vectors, split_rows(rows, ranks.world), ranks.rank)


def collect_queries(outputs: Iterable[Mapping[str, Tensor]], rows: int = QUERY_ROWS) -> Iterator[Queries]:
    """Queries by about `rows`, as many times on every rank: steps have as many rows everywhere, padding included."""
    held, count = [], 0
    for output in outputs:
        held.append(_without_padding(output))
        count += len(output["weights"])
        if count >= rows:
            yield _together(held)
            held, count = [], 0
    if held:
        yield _together(held)


def _without_padding(output: Mapping[str, Tensor]) -> Queries:
    kept = output["weights"] > 0
    lists = []
    for name in ("targets", "mask"):
        if name in output:
            lists.append(_rows_of(output[name], output[f"{name}_offsets"], kept))
        else:
            lists.append(_rows_of(kept.new_zeros(0, dtype=torch.int64), kept.new_zeros(len(kept) + 1, dtype=torch.int64), kept))
    return Queries(output["query"][kept], *lists)


def _rows_of(values: Tensor, offsets: Tensor, kept: Tensor) -> Lists:
    """The lists of the rows that are kept."""
    lengths = offsets.diff()
    return values[kept.repeat_interleave(lengths)], _offsets(lengths[kept])


def _together(parts: Sequence[Queries]) -> Queries:
    def lists(side: Sequence[Lists]) -> Lists:
        return torch.cat([values for values, _ in side]), _offsets(torch.cat([offsets.diff() for _, offsets in side]))

    vectors = torch.cat([part.vectors for part in parts])
    return Queries(vectors, lists([part.targets for part in parts]), lists([part.mask for part in parts]))


def _joined(first: Lists, second: Lists) -> Lists:
    """Both lists of each row as one, in whatever order."""
    counts = first[1].diff() + second[1].diff()
    owners = torch.cat(
        [torch.arange(len(counts), device=counts.device).repeat_interleave(o.diff()) for _, o in (first, second)]
    )
    return torch.cat([first[0], second[0]])[owners.argsort(stable=True)], _offsets(counts)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _refuse_vectors(which: str) -> NoReturn:
    refuse(
        f"the vectors of {which} are not finite, so that nothing can be ranked by them: the model has diverged; lower the "
        "learning rates, or score an earlier checkpoint (--step)"
    )
