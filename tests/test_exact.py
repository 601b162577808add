"""Exact search against a sorted matrix of scores in NumPy, ties and hidden items included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distrec.retrieval import exact
from distrec.retrieval.exact import Share, pair_scores, split_rows, top_k


def brute_force(queries: np.ndarray, items: np.ndarray, k: int, hidden: list[list[int]]) -> np.ndarray:
    """Best first, the first of equal ones first; -1 where all others are hidden."""
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    best = []
    for row, gone in zip(scores, hidden, strict=True):
        row[gone] = -np.inf
        order = np.lexsort((np.arange(len(row)), -row))[:k]
        best.append(np.where(np.isneginf(row[order]), -1, order))
    return np.array(best)


def lists(draw: np.random.Generator, rows: int, items: int, longest: int) -> list[list[int]]:
    return [draw.integers(0, items, n).tolist() for n in draw.integers(0, longest, rows)]


def ragged(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([i for row in rows for i in row], dtype=torch.int64), torch.tensor(np.cumsum([0, *map(len, rows)]))


@pytest.mark.parametrize(
    ("queries", "items", "k", "block"), [(40, 300, 10, 64), (20, 40, 40, 16), (7, 1000, 3, 10**6), (1, 5, 1, 2)]
)
def test_it_finds_what_sorting_finds(monkeypatch: pytest.MonkeyPatch, queries: int, items: int, k: int, block: int) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", block)
    monkeypatch.setattr(Share.blocks, "__defaults__", (block,))
    draw = np.random.default_rng(queries)
    q, v = (draw.integers(-2, 3, (n, 4)).astype(np.float32) for n in (queries, items))  # few values: most scores are tied
    hidden = lists(draw, queries, items, items)
    found = top_k(torch.from_numpy(q), Share.alone(torch.from_numpy(v)), k, ragged(hidden), budget=4 * block * 3)
    np.testing.assert_array_equal(found.items.numpy(), brute_force(q, v, k, hidden))
    scores = np.take_along_axis(q @ v.T, np.maximum(found.items.numpy(), 0), 1)
    np.testing.assert_array_equal(found.scores.numpy(), np.where(found.items.numpy() < 0, -np.inf, scores))


def test_a_query_from_which_all_is_hidden_gets_nothing() -> None:
    found = top_k(torch.ones(2, 3), Share.alone(torch.ones(4, 3)), 2, ragged([[0, 1, 2, 3], []]))
    assert found.items.tolist() == [[-1, -1], [0, 1]]


def test_no_query_is_no_result() -> None:
    assert top_k(torch.ones(0, 3), Share.alone(torch.ones(4, 3)), 2).items.shape == (0, 2)


def test_more_items_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="the best 5 of 4 items"):
        top_k(torch.ones(1, 3), Share.alone(torch.ones(4, 3)), 5)


def test_pairs_have_the_scores_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Share.blocks, "__defaults__", (7,))
    draw = np.random.default_rng(1)
    q, v = draw.normal(size=(5, 4)).astype(np.float32), draw.normal(size=(30, 4)).astype(np.float32)
    items = draw.integers(0, 30, (5, 9))
    found = pair_scores(torch.from_numpy(q), Share.alone(torch.from_numpy(v)), torch.from_numpy(items), budget=64)
    np.testing.assert_allclose(found.numpy(), np.take_along_axis(q @ v.T, items, 1), rtol=1e-5)


def test_shares_are_even_and_cover_all() -> None:
    assert split_rows(10, 3) == [0, 3, 6, 10]
    assert split_rows(1, 3) == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="2 vectors for rows 0 to 3"):
        Share(torch.ones(2, 4), split_rows(10, 3))
