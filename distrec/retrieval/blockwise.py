"""A sum over rows whose terms are wide, taken block by block: what is wide never exists for all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Term = Callable[[slice, Sequence[Tensor], Tensor], Tensor]  # of some rows: the slice, their parts, the whole -> ()


def blockwise_sum(term: Term, rows: Sequence[Tensor], whole: Tensor, block: int) -> Tensor:
    """`sum_i term(slice_i, [part[slice_i] for part in rows], whole)`, (), with gradients to `rows` and `whole`.

    The gradients are taken on the way forward, while a block's scores are still in the cache, so they need not be kept or
    computed again: the memory is that of one block.

    Args:
        term: what a block adds; differentiable.
        rows: tensors (B, ...) that are cut into blocks.
        whole: (C, ...), what every block sees.
        block: rows at once.
    """
    return _Sum.apply(term, block, whole, *rows)  # type: ignore[return-value]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: Term, block: int, whole: Tensor, *rows: Tensor) -> Tensor:
        total = whole.new_zeros(())
        gradients = [torch.empty_like(part) for part in rows]
        whole_gradient = torch.zeros_like(whole)
        everything = whole.detach().requires_grad_()
        for low in range(0, len(rows[0]), block):
            here = slice(low, low + block)
            parts = [part[here].detach().requires_grad_() for part in rows]
            with torch.enable_grad():
                added = term(here, parts, everything)
            total += added.detach()
            found = torch.autograd.grad(added, [everything, *parts], allow_unused=True, materialize_grads=True)
            whole_gradient += found[0]
            for gradient, own in zip(gradients, found[1:], strict=True):
                gradient[here] = own
        ctx.save_for_backward(whole_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(gradient * own for own in ctx.saved_tensors)
