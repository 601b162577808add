"""Losses of rankers, as weighted sums that add up correctly over ranks and padding rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distrec.errors import UserError


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def _squared_error(predictions: Tensor, labels: Tensor) -> Tensor:
    return (predictions - labels).square()


PER_ROW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"binary": _binary_cross_entropy, "regression": _squared_error}


def ranking_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    normalizer: Tensor,
    kinds: Sequence[str],
    task_weights: Sequence[float],
    auxiliary: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Total loss () and the loss of each task (T,), before the task's weight.

    Task t's loss is sum_b w_b l(logit_bt, label_bt) / normalizer, with l the cross entropy of a Bernoulli variable with
    log-odds `logit` (kind `binary`, in nats) or the squared error (kind `regression`). The total is their sum by
    `task_weights`, plus the auxiliary losses as they are. Everything is computed in float32 or wider, under autocast too.

    Args:
        logits: (B, T), as the model returns them.
        labels: (B, T).
        weights: (B,); 0 takes a row out of the loss and of the gradient.
        normalizer: (), rows that count in this step, averaged over ranks, so that averaging gradients over ranks
            gives the gradient of the mean over all rows.
        kinds: `binary` or `regression` for each task.
        task_weights: factor of each task in the total.
        auxiliary: losses that a model returned beside its logits, each ().

    Raises:
        UserError: the model's logits are not (B, T).
    """
    if logits.shape != labels.shape:
        raise UserError(
            f"the model returned logits of shape {tuple(logits.shape)}; the tasks need {tuple(labels.shape)}, (rows, tasks)"
        )
    with torch.autocast(logits.device.type, enabled=False):
        per_task = _per_task(_wide(logits), _wide(labels), _wide(weights), kinds) / normalizer
        # Python floats, not a tensor of them: copying one to a GPU would make every step wait.
        terms = [weight * loss for weight, loss in zip(task_weights, per_task.unbind(), strict=True)]
        return sum([*terms, *map(_wide, (auxiliary or {}).values())], start=per_task.new_zeros(())), per_task


def _per_task(logits: Tensor, labels: Tensor, weights: Tensor, kinds: Sequence[str]) -> Tensor:
    columns = zip(kinds, logits.unbind(1), labels.unbind(1), strict=True)
    return torch.stack([(weights * PER_ROW[kind](logit, label)).sum() for kind, logit, label in columns])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
