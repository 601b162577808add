"""Fields: features that enter a model as one vector a row, whatever they were before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from distrec.errors import UserError
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.jagged import segment_mean


def field_dims(spec: InputSpec, without: Iterable[str] = ()) -> dict[str, int]:
    """Embedding dim of every id feature but those in `without`: pooled features first, then sequences."""
    left_out = set(without)
    return {name: dim for name, dim in (spec.pooled | spec.sequences).items() if name not in left_out}


def field_vectors(inputs: Embedded, names: Iterable[str]) -> list[Tensor]:
    """One (B, D) vector a feature: a pooled feature as it is, a sequence as the mean of its vectors (0 when empty)."""
    return [inputs.pooled[n] if n in inputs.pooled else segment_mean(inputs.sequences[n]) for n in names]


def whole_width(spec: InputSpec, model: str) -> int:
    """Width of `whole_row`.

    Raises:
        UserError: there is no feature; names the `model`.
    """
    width = spec.num_dense + sum(field_dims(spec).values())
    if not width:
        raise UserError(f"model {model} has no features: name at least one in features")
    return width


def whole_row(inputs: Embedded, names: Iterable[str]) -> Tensor:
    """The numbers and these features' vectors side by side, (B, width)."""
    return torch.cat([inputs.dense, *field_vectors(inputs, names)], dim=1)


def shared_dim(dims: Mapping[str, int], reason: str) -> int:
    """The one embedding dim of all fields.

    Raises:
        UserError: there is no field, or the dims differ; begins with `reason`, and names features and dims.
    """
    if not dims:
        raise UserError(f"{reason}, and there is none: name at least one in features.sparse or features.sequence")
    if len(set(dims.values())) > 1:
        listed = "; ".join(f"dim {dim}: {_having(dims, dim)}" for dim in sorted(set(dims.values())))
        raise UserError(f"{reason}, but the dims differ ({listed}): give their tables the same dim")
    return next(iter(dims.values()))


def _having(dims: Mapping[str, int], dim: int) -> str:
    return ", ".join(name for name, d in dims.items() if d == dim)
