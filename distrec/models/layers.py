"""Layers that several models are built from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from distrec.models.jagged import accumulable

Activation = Literal["relu", "prelu", "dice", "sigmoid", "tanh"]


class Dice(nn.Module):
    """Data-adaptive activation: f(s) = p(s) s + (1 - p(s)) alpha s, p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps)).

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, equation 3. Mean and variance are
    those of the batch in training, over every row of the (N, width) input, and running averages in evaluation. With
    jagged histories the rows are the valid positions, so padding cannot shift the statistics.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.eps, self.momentum = eps, momentum

    def forward(self, s: Tensor) -> Tensor:
        """(N, width) -> (N, width), of the input's type; N may be 0."""
        wide = accumulable(s)
        mean, var = self._batch_statistics(wide) if self.training else (self.mean, self.var)
        p = torch.sigmoid((wide - mean) / (var + self.eps).sqrt())
        return (wide * (p + (1 - p) * self.alpha)).to(s.dtype)

    def _batch_statistics(self, s: Tensor) -> tuple[Tensor, Tensor]:
        mean = s.mean(0)
        var = (s - mean).square().mean(0)
        with torch.no_grad():
            self._follow(self.mean, mean)
            self._follow(self.var, var)
        return mean, var

    def _follow(self, running: Tensor, batch: Tensor) -> None:
        # No positions give NaN, and so does a batch that training will skip: neither may spoil the average.
        running.lerp_(torch.where(batch.isfinite(), batch, running), self.momentum)


class MLP(nn.Sequential):
    """For each width: linear, batch norm where asked for, activation, dropout. Without widths, the identity."""

    def __init__(
        self,
        in_width: int,
        widths: Sequence[int],
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((in_width, *widths)):
            layers.append(nn.Linear(fan_in, fan_out, bias=not batch_norm))  # batch norm has a bias of its own
            layers += [nn.BatchNorm1d(fan_out)] * batch_norm
            layers.append(_activation(activation, fan_out))
            layers += [nn.Dropout(dropout)] * (dropout > 0)
        super().__init__(*layers)
        self.out_width = (in_width, *widths)[-1]


class DotInteraction(nn.Module):
    """Dot products of all pairs of F vectors: (B, F, D) -> (B, F (F - 1) / 2), pairs (1,0), (2,0), (2,1), (3,0), ...

    Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019, section 2.
    """

    pairs: Tensor

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        row, column = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.register_buffer("pairs", row * num_vectors + column, persistent=False)
        self.out_width = len(self.pairs)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, D) -> (B, F (F - 1) / 2)."""
        gram = torch.bmm(vectors, vectors.transpose(1, 2))
        return gram.flatten(1).index_select(1, self.pairs)


class CrossNet(nn.Module):
    """Explicit feature crosses of degree up to layers + 1: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, element by element.

    Wang et al., "DCN V2", WWW 2021: equation 1 with a full matrix W_l, equation 2 with W_l = U_l V_l^T of the given rank,
    equations 3 and 4 with `experts` of that rank and a gate.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None, experts: int = 1) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(_cross_kernel(width, rank, experts) for _ in range(layers))
        self.out_width = width

    def forward(self, x0: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        x = x0
        for kernel in self.kernels:
            x = x0 * kernel(x) + x
        return x


class LowRankExperts(nn.Module):
    """What a cross layer multiplies x_0 by: sum_i G_i(x) U_i tanh(C_i tanh(V_i^T x)) + b, with G a softmax over experts.

    Wang et al., "DCN V2", WWW 2021, equations 3 and 4, where b stands once, because the gate's weights add up to 1. The U_i
    lie side by side in one matrix, as the V_i do, so that their number costs no loop.
    """

    def __init__(self, width: int, rank: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.down = nn.Linear(width, experts * rank, bias=False)
        self.core = nn.Parameter(torch.empty(experts, rank, rank))
        self.up = nn.Linear(experts * rank, width)
        for matrix in (self.down.weight, *self.core, self.up.weight):
            nn.init.xavier_normal_(matrix)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        hidden = self.down(x).unflatten(1, self.core.shape[:2]).tanh().transpose(0, 1)  # (experts, B, rank)
        # bmm, because an exported graph with einsum refuses a batch of one row
        hidden = torch.bmm(hidden, self.core.transpose(1, 2)).tanh().transpose(0, 1)
        return self.up((self.gate(x).softmax(dim=1).unsqueeze(2) * hidden).flatten(1))


class FactorizationMachine(nn.Module):
    """Second-order interactions by dimension: sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2, (B, F, D) -> (B, D).

    The sum over D is the pairwise term of Rendle, "Factorization Machines", ICDM 2010, with x_i already multiplied into
    v_i, in linear time by the identity of lemma 3.1.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, D) -> (B, D)."""
        wide = accumulable(vectors)  # the difference of two large sums loses all its digits in bf16
        return (wide.sum(1).square() - wide.square().sum(1)) / 2


def _activation(name: Activation, width: int) -> nn.Module:
    match name:
        case "relu":
            return nn.ReLU()
        case "prelu":
            return nn.PReLU(width)
        case "dice":
            return Dice(width)
        case "sigmoid":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()


def _cross_kernel(width: int, rank: int | None, experts: int) -> nn.Module:
    if experts > 1:
        if rank is None:
            raise ValueError("experts of a cross layer have a rank")
        return LowRankExperts(width, rank, experts)
    down = [] if rank is None else [nn.Linear(width, rank, bias=False)]
    up = nn.Linear(width if rank is None else rank, width)
    for linear in (*down, up):
        nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(*down, up)
