"""Operations on rows of varying length, without padding.

`torch.segment_reduce` and `embedding` do the work because each adds up in a fixed order, forward and backward, on CPU
and GPU alike; `index_add` and `index_select`'s backward use atomics on a GPU and differ from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from distrec.errors import UserError
from distrec.models.inputs import Jagged


def accumulable(x: Tensor) -> Tensor:
    """`x` in a type that sums can be taken in: bf16 and fp16 become float32, wider types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum (N, D) values over each row's positions -> (B, D); zeros for a row without any."""
    return _reduce(values, offsets, "sum", initial=0.0)


def segment_mean(jagged: Jagged) -> Tensor:
    """Mean over each row's positions -> (B, D); zeros for a row without any."""
    lengths = jagged.offsets.diff().clamp(min=1).unsqueeze(1)
    return segment_sum(jagged.values, jagged.offsets) / lengths


def segment_softmax(scores: Tensor, offsets: Tensor, padded_to: int = 0) -> Tensor:
    """Softmax of (N, 1) scores over each row's positions -> (N, 1), which adds up to 1 in every row that has any.

    With `padded_to`, a row with fewer positions is reckoned with as many more of score 0, which take their share of the 1.
    """
    scores = accumulable(scores)
    largest = _reduce(scores.detach(), offsets, "max", initial=0.0 if padded_to else -torch.inf)
    exponentials = (scores - repeat_rows(largest, offsets, scores.shape[0])).exp()
    total = segment_sum(exponentials, offsets)
    if padded_to:
        total = total + (padded_to - offsets.diff()).clamp(min=0).unsqueeze(1) * (-largest).exp()
    return exponentials / repeat_rows(total, offsets, scores.shape[0])


def repeat_rows(x: Tensor, offsets: Tensor, positions: int) -> Tensor:
    """Give every position its row of `x`: (B, D) -> (N, D).

    `positions` is N, read off a shape, so that a GPU need not be asked for it. Read it as `x.shape[0]`: `len` would fix
    it to a constant in an exported graph.
    """
    if torch.compiler.is_exporting():
        return F.embedding(_owners(offsets, positions), x)
    rows = torch.arange(x.shape[0], device=x.device)
    return F.embedding(torch.repeat_interleave(rows, offsets.diff(), output_size=positions), x)


def require_aligned(histories: Mapping[str, Jagged]) -> None:
    """Histories that stand side by side must have one length a row.

    Raises:
        UserError: two lengths differ. On a GPU, lengths that differ while their sums agree are found by an
            assertion on the device instead, because an exception would make every step wait for the GPU.
    """
    if torch.compiler.is_compiling():  # an exported graph cannot raise; its inputs have passed here in training
        return
    (first, reference), *others = histories.items()
    for name, history in others:
        _require_equal_lengths(first, reference, name, history)


def _require_equal_lengths(first: str, a: Jagged, second: str, b: Jagged) -> None:
    message = (
        f"histories {first!r} and {second!r} must have as many ids as each other in every row ({len(a.values)} and "
        f"{len(b.values)} in this batch): write the columns side by side, give both features the same max_length, and "
        "let no id of one be dropped (null or out of range) that is kept in the other"
    )
    if len(a.values) == len(b.values) and a.offsets.is_cuda:
        torch._assert_async((a.offsets == b.offsets).all(), message)  # pyright: ignore[reportPrivateImportUsage]
    elif not torch.equal(a.offsets, b.offsets):
        raise UserError(message)


def _reduce(values: Tensor, offsets: Tensor, how: str, initial: float) -> Tensor:
    if torch.compiler.is_exporting():
        return _scatter(accumulable(values), offsets, how, initial)
    # `unsafe` skips a check of the offsets that would make the CPU wait for the GPU.
    return torch.segment_reduce(accumulable(values), how, offsets=offsets, axis=0, unsafe=True, initial=initial)


def _scatter(values: Tensor, offsets: Tensor, how: str, initial: float) -> Tensor:
    """The same in operators that ONNX has."""
    reduced = values.new_full((offsets.shape[0] - 1, values.shape[1]), initial)
    owners = _owners(offsets, values.shape[0]).unsqueeze(1).expand_as(values)
    return reduced.scatter_reduce(0, owners, values, {"sum": "sum", "max": "amax"}[how])


def _owners(offsets: Tensor, positions: int) -> Tensor:
    """The row (N,) that each position belongs to: how many rows have ended."""
    ended = torch.zeros(positions + 1, dtype=torch.int64, device=offsets.device)
    ends = offsets[1:]
    return ended.scatter_add(0, ends, torch.ones_like(ends)).cumsum(0)[:positions]
