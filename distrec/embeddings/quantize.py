"""Tables in fewer bits, a row at a time: what is stored, and what that stands for. FBGEMM's own row-wise scheme."""

from __future__ import annotations

from typing import Literal, NamedTuple

import fbgemm_gpu  # noqa: F401  # registers torch.ops.fbgemm
import torch
from torch import Tensor

Precision = Literal["fp32", "fp16", "int8"]


class Rows(NamedTuple):
    """Embedding rows as they are stored."""

    values: Tensor  # (N, D) float32, float16, or uint8
    scale: Tensor | None = None  # (N,) float32; with int8, a weight is `values * scale + offset`
    offset: Tensor | None = None  # (N,) float32, the row's smallest weight


def quantize(weights: Tensor, precision: Precision) -> Rows:
    """Store (N, D) weights, D a multiple of 4; `int8` spreads 256 levels from each row's smallest to its largest weight.

    fp16 keeps its largest finite number where a weight is beyond it.
    """
    weights = weights.float().contiguous()
    if precision == "fp32":
        return Rows(weights)
    if precision == "fp16":
        largest = torch.finfo(torch.float16).max
        return Rows(weights.clamp(-largest, largest).half())
    fused = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(weights)  # D bytes, then scale and offset as float32
    dim = weights.shape[1]
    tail = fused[:, dim:].contiguous().view(torch.float32)
    return Rows(fused[:, :dim], tail[:, 0], tail[:, 1])


def restore(rows: Rows) -> Tensor:
    """The weights (N, D) float32 that stored rows stand for."""
    if rows.scale is None or rows.offset is None:
        return rows.values.float()
    return rows.values.float() * rows.scale.unsqueeze(1) + rows.offset.unsqueeze(1)
