"""Losses of retrievers and their sum by blocks, against plain Python and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distrec.retrieval.blockwise import blockwise_sum
from distrec.retrieval.losses import bce_loss, bpr_loss, ccl_loss, softmax_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scores(rows: int = 5, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Row 0 has no negative at all."""
    g = torch.Generator().manual_seed(seed)
    excluded = torch.rand(rows, width, generator=g) < 0.3
    excluded[0] = True
    positive = torch.randn(rows, generator=g, dtype=torch.float64)
    return positive, torch.randn(rows, width, generator=g, dtype=torch.float64), excluded


def by_row(positive: Tensor, negative: Tensor, excluded: Tensor):
    for p, row, out in zip(positive.tolist(), negative.tolist(), excluded.tolist(), strict=True):
        yield p, [n for n, left_out in zip(row, out, strict=True) if not left_out]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def oracle_softmax(p: float, negatives: list[float]) -> float:
    return -math.log(math.exp(p) / (math.exp(p) + sum(math.exp(n) for n in negatives)))


ORACLES = {
    "softmax": (softmax_loss, oracle_softmax),
    "bpr": (bpr_loss, lambda p, ns: mean([-math.log(sigmoid(p - n)) for n in ns])),
    "bce": (
        lambda *s: bce_loss(*s, negative_weight=3.0),
        lambda p, ns: -math.log(sigmoid(p)) + 3 * mean([-math.log(1 - sigmoid(n)) for n in ns]),
    ),
    "ccl": (
        lambda *s: ccl_loss(*s, margin=0.4, negative_weight=2.0),
        lambda p, ns: max(0.0, 1 - p) + 2 * mean([max(0.0, n - 0.4) for n in ns]),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_each_row_has_the_loss_of_its_formula(name: str) -> None:
    loss, oracle = ORACLES[name]
    given = scores()
    expected = [oracle(p, negatives) for p, negatives in by_row(*given)]
    torch.testing.assert_close(loss(*given), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ORACLES)
def test_what_is_excluded_has_no_gradient_and_extreme_scores_have_a_finite_one(name: str) -> None:
    positive, negative, excluded = scores()
    positive, negative = (1e4 * part.float() for part in (positive, negative))
    positive.requires_grad_()
    negative.requires_grad_()
    loss = ORACLES[name][0](positive, negative, excluded)
    loss.sum().backward()
    assert positive.grad is not None
    assert negative.grad is not None
    assert loss.isfinite().all()
    assert positive.grad.isfinite().all()
    assert (negative.grad[excluded] == 0).all()
    assert negative.grad.isfinite().all()


def wide(here: slice, rows: list[Tensor], whole: Tensor) -> Tensor:
    query, private, weight = rows
    return (weight * ((query @ whole.T).logsumexp(1) + (private * query.unsqueeze(1)).sum((1, 2)).sin())).sum()


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_a_sum_by_blocks_has_the_value_and_the_gradients_of_the_sum(block: int) -> None:
    g = torch.Generator().manual_seed(1)
    shapes = [(8, 4), (8, 2, 4), (8,)]
    rows = [torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]
    whole = torch.randn(6, 4, generator=g, dtype=torch.float64, requires_grad=True)
    expected = wide(slice(0, 8), rows, whole)
    wanted = torch.autograd.grad(3 * expected, [*rows, whole])
    widths = []

    def term(here: slice, parts: list[Tensor], whole: Tensor) -> Tensor:
        widths.append(len(parts[0]))
        assert here.start == sum(widths[:-1])
        return wide(here, parts, whole)

    total = blockwise_sum(term, rows, whole, block)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * total, [*rows, whole]), wanted)
    assert max(widths) == min(block, 8)


def test_a_part_that_does_not_matter_has_a_gradient_of_zero() -> None:
    rows, whole = torch.ones(4, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    blockwise_sum(lambda here, parts, whole: parts[0].sum(), [rows], whole, 3).backward()
    assert whole.grad is not None
    assert whole.grad.eq(0).all()
