"""A retriever's evaluation on this process: what counts, what is left out, what is warned of, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distrec import dist
from distrec.config.retrieval import Retrieval
from distrec.errors import UserError
from distrec.evaluate import Evaluation, better
from distrec.metrics.retrieval import RetrievalMetrics
from distrec.retrieval.evaluate import collect_queries, evaluate_retrieval

ITEMS, DIM = 30, 4
Output = dict[str, torch.Tensor]


def vectors(rows: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32))


def batch(queries: torch.Tensor, targets: list[list[int]], mask: list[list[int]] | None = None, padding: int = 0) -> Output:
    """What the task gives for some queries, and `padding` rows of rubbish that weigh nothing."""
    output = {
        "query": torch.cat([queries, torch.full((padding, DIM), torch.nan)]),
        "weights": torch.tensor([1.0] * len(queries) + [0.0] * padding),
    }
    for name, lists in (("targets", targets), ("mask", mask)):
        if lists is not None:
            padded = lists + [[]] * padding
            output[name] = torch.tensor([i for row in padded for i in row], dtype=torch.int64)
            output[f"{name}_offsets"] = torch.tensor(np.cumsum([0, *map(len, padded)]))
    return output


def items(given: torch.Tensor) -> list[Output]:
    """The catalogue in two steps, with padding that is no item."""
    rubbish = torch.full((2, DIM), torch.nan)
    return [
        {"item": given[:20], "items": torch.arange(20)},
        {"item": torch.cat([given[20:], rubbish]), "items": torch.tensor([*range(20, ITEMS), -1, -1])},
    ]


def evaluated(ranks: dist.Ranks, catalogue: torch.Tensor, *queries: Output, **settings: int) -> Evaluation:
    retrieval = Retrieval(items=("items",), item_features=("item",), ks=(3, 10), **settings)
    return evaluate_retrieval(items(catalogue), queries, retrieval, ITEMS, torch.arange(ITEMS), ranks)


def test_queries_rank_the_catalogue_less_what_is_masked_and_padding_counts_for_nothing(ranks: dist.Ranks) -> None:
    catalogue, queries, draw = vectors(ITEMS, 0), vectors(9, 1), np.random.default_rng(2)
    targets = [draw.permutation(ITEMS)[:n].tolist() for n in draw.integers(1, 5, 9)]
    mask = [[i for i in draw.permutation(ITEMS)[:8].tolist() if i not in wanted] for wanted in targets]
    found = evaluated(
        ranks, catalogue, batch(queries[:5], targets[:5], mask[:5]), batch(queries[5:], targets[5:], mask[5:], padding=3)
    )
    scores = (queries @ catalogue.T).numpy()
    for row, hidden in zip(scores, mask, strict=True):
        row[hidden] = -np.inf
    metrics = RetrievalMetrics((3, 10), ITEMS, torch.arange(ITEMS))
    offsets = torch.tensor(np.cumsum([0, *map(len, targets)]))
    metrics.update(torch.from_numpy(np.argsort(-scores, 1)), torch.tensor([i for row in targets for i in row]), offsets)
    assert found.metrics == pytest.approx(metrics.compute())
    assert (found.rows, found.warnings) == (9, [])


def test_the_sampled_protocol_is_there_when_asked_for(ranks: dist.Ranks) -> None:
    catalogue, queries = vectors(ITEMS, 0), vectors(6, 1)
    best = (queries @ catalogue.T).argmax(1)
    worst = (queries @ catalogue.T).argmin(1)
    found = evaluated(
        ranks, catalogue, batch(queries, [[int(b), int(w)] for b, w in zip(best, worst, strict=True)]), rank_among=20
    )
    assert found.metrics["sampled_20/hit_rate@3"] == found.metrics["sampled_20/mrr@10"] == 0.5  # the best wins, the worst loses
    everything = evaluated(ranks, catalogue, batch(queries, [[int(b)] for b in best], [[]] * 6), rank_among=29)
    assert everything.metrics["sampled_29/mrr@10"] == everything.metrics["mrr@10"] == 1.0
    assert not any("sampled" in name for name in evaluated(ranks, catalogue, batch(queries, [[1]] * 6)).metrics)


def test_what_is_odd_is_told(ranks: dist.Ranks) -> None:
    queries = vectors(4, 1)
    queries[2] = 0
    found = evaluated(ranks, vectors(ITEMS, 0), batch(queries, [[1], [], [2], [3]], [[1], [], [], [4]]))
    assert found.warnings == [
        "1 of 4 queries have no targets, and count for nothing but coverage and popularity",
        "1 of 4 queries have a zero vector: the model knows no feature of them, and every item is as good",
        "1 targets are masked too, so that no model can find them: look at retrieval.mask",
    ]


def test_vectors_that_are_not_finite_are_refused(ranks: dist.Ranks) -> None:
    broken, sound = vectors(ITEMS, 0), vectors(4, 1)
    broken[7, 2] = torch.nan
    with pytest.raises(UserError, match="the vectors of 1 of 30 items are not finite"):
        evaluated(ranks, broken, batch(sound, [[1]] * 4))
    sound[1, 0] = torch.inf
    with pytest.raises(UserError, match="the vectors of 1 of 4 queries are not finite"):
        evaluated(ranks, vectors(ITEMS, 0), batch(sound, [[1]] * 4))


def test_queries_are_gathered_into_searches_of_bounded_size() -> None:
    steps = [batch(vectors(4, seed), [[seed]] * 4, padding=1) for seed in range(5)]
    parts = list(collect_queries(steps, rows=10))
    assert [len(part) for part in parts] == [8, 8, 4]  # two steps of 5 rows each, padding included
    assert parts[1].targets[0].tolist() == [2] * 4 + [3] * 4
    assert parts[1].targets[1].tolist() == list(range(9))
    assert parts[0].mask[1].tolist() == [0] * 9


@pytest.mark.parametrize(("name", "value", "best", "is_better"), [("ndcg@20", 0.2, 0.1, True), ("recall@5", 0.1, 0.2, False)])
def test_more_is_better(name: str, value: float, best: float, is_better: bool) -> None:
    assert better(value, best, name) is is_better
