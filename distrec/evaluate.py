"""Metrics over a stream of outputs: the same code for validation during training and for `distrec evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from distrec.metrics.ranking import RankingMetrics
from distrec.metrics.suspicions import suspicions

HIGHER_IS_BETTER = {"auc", "gauc"}


@dataclass(frozen=True)
class Evaluation:
    """What came out, the same on every rank."""

    metrics: dict[str, float]  # as RankingMetrics.compute, and `loss`, the objective per row
    rows: int
    warnings: list[str]


def evaluate(
    outputs: Iterable[Mapping[str, Tensor]], metrics: RankingMetrics, ranks: dist.ProcessGroup | None = None
) -> Evaluation:
    """Exhaust `outputs` (see `RankingTask.forward`) into `metrics`. Every rank must call it."""
    metrics.reset()
    for output in outputs:
        metrics.update(output["logits"], output["labels"], output["weights"], output.get("groups"))
    numbers = metrics.compute(ranks)
    evidence = metrics.evidence(ranks)
    return Evaluation(numbers, evidence[0].rows, [warning for each in evidence for warning in suspicions(each, numbers)])


def better(value: float, best: float | None, name: str) -> bool:
    """Whether `value` of the metric `name` beats the best so far; NaN never does."""
    if value != value:
        return False
    if best is None or best != best:
        return True
    return value > best if name.rsplit("/", 1)[-1] in HIGHER_IS_BETTER else value < best
