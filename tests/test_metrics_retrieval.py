"""Retrieval metrics against a brute-force oracle: plain Python over sorted lists, one query at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.errors import UserError
from distrec.metrics.retrieval import RetrievalMetrics
from distrec.metrics.sampled import SampledMetrics, sample_unseen

ITEMS, KS = 12, (1, 3, 5)


def ragged(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = np.cumsum([0, *map(len, lists)])
    return torch.tensor([i for row in lists for i in row], dtype=torch.int64), torch.tensor(offsets)


def oracle(found: list[list[int]], targets: list[list[int]], counts: list[int]) -> dict[str, float]:
    """By the definitions, with loops."""
    numbers: dict[str, float] = {}
    for k in KS:
        rows = []
        for best, wanted in zip(found, targets, strict=True):
            if not wanted:
                continue
            hits = [item in wanted for item in best[:k]]
            gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(set(wanted)))))
            first = next((1 / (place + 1) for place, hit in enumerate(hits) if hit), 0.0)
            rows.append((sum(hits) / len(set(wanted)), gain / ideal, float(any(hits)), first))
        for name, column in zip(("recall", "ndcg", "hit_rate", "mrr"), zip(*rows, strict=True), strict=True):
            numbers[f"{name}@{k}"] = sum(column) / len(column)
        shown = [item for best in found for item in best[:k] if item >= 0]
        numbers[f"coverage@{k}"] = len(set(shown)) / ITEMS
        usual = np.mean([math.log(1 + counts[item]) for wanted in targets for item in set(wanted)])
        numbers[f"popularity@{k}"] = math.exp(np.mean([math.log(1 + counts[item]) for item in shown]) - usual)
    return numbers


lists_of_targets = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=2, max_size=9)


@given(targets=lists_of_targets, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_metric_is_what_its_definition_says_in_whatever_batches(targets: list[list[int]], seed: int) -> None:
    targets = [[3, 3, 7], [], *targets]  # a target named twice, a query without targets
    draw = np.random.default_rng(seed)
    found = [draw.permutation(ITEMS)[:6].tolist() for _ in targets]
    found[0][4:] = [-1, -1]  # nothing more was found
    counts = draw.integers(0, 100, ITEMS).tolist()
    metrics = RetrievalMetrics(KS, ITEMS, torch.tensor(counts))
    for rows in (slice(0, 2), slice(2, None)):
        metrics.update(torch.tensor(found[rows]), *ragged(targets[rows]))
    assert metrics.compute() == pytest.approx(oracle(found, targets, counts))


def test_recall_is_over_all_targets_and_ndcg_over_those_that_fit() -> None:
    metrics = RetrievalMetrics((2,), ITEMS)
    metrics.update(torch.tensor([[5, 6]]), *ragged([[5, 6, 7, 8]]))
    assert metrics.compute() == pytest.approx(
        {"recall@2": 0.5, "ndcg@2": 1.0, "hit_rate@2": 1.0, "mrr@2": 1.0, "coverage@2": 2 / 12}
    )


def test_without_a_query_that_has_targets_nothing_is_known() -> None:
    metrics = RetrievalMetrics((2,), ITEMS, torch.ones(ITEMS))
    metrics.update(torch.tensor([[0, 1]]), *ragged([[]]))
    numbers = metrics.compute()
    assert all(math.isnan(numbers[f"{name}@2"]) for name in ("recall", "ndcg", "hit_rate", "mrr", "popularity"))
    assert numbers["coverage@2"] == 2 / ITEMS


def test_fewer_items_than_the_largest_k_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="2 items a query, and metrics at 5"):
        RetrievalMetrics(KS, ITEMS).update(torch.tensor([[0, 1]]), *ragged([[1]]))


# -- one target against N sampled items --------------------------------------------------------------------------------


def test_the_place_among_sampled_items_is_pessimistic_about_ties() -> None:
    scores = torch.tensor([3.0, 2.0, 1.0, 5.0])
    sampled = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [2.0, 3.0, 4.0], [1.0, 1.0, 1.0]])  # places 1, 2 (a tie), 4, 1
    metrics = SampledMetrics((1, 2, 10), 3)
    metrics.update(scores[:3], sampled[:3])
    metrics.update(scores[3:], sampled[3:])
    log = math.log2
    assert metrics.compute() == pytest.approx(
        {
            "sampled_3/ndcg@1": 2 / 4,
            "sampled_3/ndcg@2": (2 + 1 / log(3)) / 4,
            "sampled_3/hit_rate@1": 2 / 4,
            "sampled_3/hit_rate@2": 3 / 4,
            "sampled_3/mrr@1": 2 / 4,
            "sampled_3/mrr@2": 2.5 / 4,
        }
    )


def test_sampled_items_are_distinct_unseen_and_depend_on_nothing_but_the_query() -> None:
    draw = np.random.default_rng(0)
    lists = [draw.permutation(50)[:n].tolist() for n in (0, 5, 30, 10, 30, 7)]
    sampled = sample_unseen(20, ragged(lists), 50, seed=3)
    for row, seen in zip(sampled.tolist(), lists, strict=True):
        assert len(set(row)) == 20
        assert not {*row} & {*seen}
    assert {*sampled[2].tolist()} == {*range(50)} - {*lists[2]}  # all that are left
    alone = torch.cat([sample_unseen(20, ragged([seen]), 50, seed=3) for seen in reversed(lists)])
    torch.testing.assert_close(alone.flip(0), sampled)
    assert not torch.equal(sample_unseen(20, ragged(lists), 50, seed=4)[0], sampled[0])


def test_every_unseen_item_is_as_likely() -> None:
    lists = [[query % 7, 90 - query % 40, query] for query in range(4000)]
    counts = torch.bincount(sample_unseen(10, ragged(lists), 5000, seed=0).flatten() // 250, minlength=20)
    assert counts.sum() == 40_000
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)  # five standard deviations


def test_a_query_that_has_seen_almost_everything_is_named() -> None:
    with pytest.raises(UserError, match=r"rank_among = 20: a query has all but 19 of the 50 items"):
        sample_unseen(20, ragged([[1], list(range(31))]), 50, seed=0)
