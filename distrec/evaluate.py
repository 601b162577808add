"""Metrics over a stream of outputs: the same code for validation during training and for `distrec evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from distrec.metrics.ranking import RankingMetrics
from distrec.metrics.suspicions import suspicions

HIGHER_IS_BETTER = {"auc", "gauc", "recall", "ndcg", "hit_rate", "mrr", "coverage"}


@dataclass(frozen=True)
class Evaluation:
    """What came out, the same on every rank."""

    metrics: dict[str, float]  # as RankingMetrics.compute, and `loss`, what training minimizes
    rows: int
    warnings: list[str]


def evaluate(
    outputs: Iterable[Mapping[str, Tensor]], metrics: RankingMetrics, ranks: dist.ProcessGroup | None = None
) -> Evaluation:
    """Exhaust `outputs` (see `RankingTask.forward`) into `metrics`. Every rank must call it."""
    metrics.reset()
    for output in outputs:
        metrics.count(output)
    numbers = metrics.compute(ranks)
    numbers = {"loss": _objective(metrics, numbers)} | numbers
    evidence = metrics.evidence(ranks)
    return Evaluation(numbers, evidence[0].rows, [warning for each in evidence for warning in suspicions(each, numbers)])


def _objective(metrics: RankingMetrics, numbers: Mapping[str, float]) -> float:
    """The training loss without a model's auxiliary terms: what each task minimizes, by the tasks' weights."""
    minimized = {"binary": "logloss", "regression": "mse"}
    return sum(task.weight * numbers[metrics.prefix(task) + minimized[task.kind]] for task in metrics.tasks)


def better(value: float, best: float | None, name: str) -> bool:
    """Whether `value` of the metric `name` beats the best so far; NaN never does. Calibration is best at 1."""
    if value != value:
        return False
    if best is None or best != best:
        return True
    metric = name.rsplit("/", 1)[-1].partition("@")[0]
    if metric == "calibration":
        return abs(value - 1) < abs(best - 1)
    return value > best if metric in HIGHER_IS_BETTER else value < best
