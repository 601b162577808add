"""What is probably wrong with a run whose numbers look wrong, in words: pure functions from counts to warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from distrec.config.schema import Task

# The half-width around AUC 0.5 that is no better than guessing: 0.005 is far below any useful ranker, and at least
# three standard errors keep few rows from raising the alarm by chance or from hiding behind it.
CHANCE_BAND = 0.005
STANDARD_ERRORS = 3.0

# A mean error so many times what guessing costs: no data and no untrained model come near it, a diverging run passes it by.
HUGE = 1000.0


@dataclass(frozen=True)
class Evidence:
    """What one task's rows of positive weight looked like, over all ranks."""

    task: Task
    prefix: str  # of the task's keys among the metrics
    rows: int
    positives: int  # rows with a label over 0
    nan_predictions: int
    labels: tuple[float, float]  # smallest, largest
    predictions: tuple[float, float]  # smallest, largest; logits of a binary task


def suspicions(evidence: Evidence, metrics: Mapping[str, float]) -> list[str]:
    """Warnings about one task; `metrics` are those of `RankingMetrics.compute`. Empty when nothing looks wrong."""
    task = f'task "{evidence.task.name}"'
    if not evidence.rows:
        return [f"{task} got no row of positive weight: look at data.weight and at the files"]
    found = [
        _not_a_number(evidence),
        out_of_proportion(evidence, metrics),
        _constant_label(evidence),
        _constant_prediction(evidence),
        _chance_level(evidence, metrics.get(f"{evidence.prefix}auc", math.nan)),
    ]
    return [f"{task}: {warning}" for warning in found if warning]


def idle_features(id_counts: Mapping[str, int]) -> list[str]:
    """Warnings about features that got no id in any row; `id_counts` are ids by feature, summed over ranks."""
    return [
        f'feature "{name}" got no id in any row, so its embeddings never train: look at its column and at out_of_range'
        for name, count in id_counts.items()
        if count == 0
    ]


def auc_standard_error(positives: int, negatives: int) -> float:
    """Standard deviation of the AUC of random scores without ties (Mann and Whitney, 1947); infinite for one class."""
    if not positives or not negatives:
        return math.inf
    return math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def out_of_proportion(evidence: Evidence, metrics: Mapping[str, float]) -> str:
    """A warning about a finite error that nothing healthy has; empty otherwise, and without rows.

    Both measures leave weights of rows and tasks aside. Guessing costs a log loss of less than a nat a row, if one half is
    guessed; and a root mean squared error of at most the largest label in size, if 0 is.
    """
    binary = evidence.task.kind == "binary"
    name, usual = ("logloss", 1.0) if binary else ("rmse", max(1.0, *(abs(label) for label in evidence.labels)))
    return diverging(name, metrics.get(evidence.prefix + name, math.nan), usual)


def diverging(name: str, error: float, usual: float) -> str:
    """A warning about an error that is `HUGE` beside what is usual; empty otherwise."""
    if not error > HUGE * usual:
        return ""
    return (
        f"{name} is {error:.3g}, more than {HUGE:,.0f} times what a guess costs: the run diverges, or a dense feature has huge "
        'values; lower the learning rates, or give such a feature a transform = "log1p"'
    )


def _not_a_number(evidence: Evidence) -> str:
    if not evidence.nan_predictions:
        return ""
    return (
        f"{evidence.nan_predictions} of {evidence.rows} predictions are NaN: look at the learning rates, and at dense "
        "features for huge values"
    )


def _constant_label(evidence: Evidence) -> str:
    low, high = evidence.labels
    if low != high:
        return ""
    return (
        f'the label is {low:g} in all {evidence.rows} rows: is "{evidence.task.label}" the right column, and were rows of the '
        "other label filtered out when the data was prepared?"
    )


def _constant_prediction(evidence: Evidence) -> str:
    low, high = evidence.predictions
    if evidence.rows == 1 or low != high:
        return ""
    return (
        f"all {evidence.rows} predictions are {low:g}: the model ignores its inputs; look for a learning rate so high that "
        "every ReLU died, or features that are all null"
    )


def _chance_level(evidence: Evidence, auc: float) -> str:
    error = auc_standard_error(evidence.positives, evidence.rows - evidence.positives)
    if STANDARD_ERRORS * error > CHANCE_BAND or math.isnan(auc) or auc > 0.5 + CHANCE_BAND:
        return ""
    found = f"AUC is {auc:.4f} over {evidence.rows} rows"
    label = f'the label column ("{evidence.task.label}")'
    if auc < 0.5 - CHANCE_BAND:
        return f"{found}, worse than chance: {label} may be inverted, or valid rows may differ in kind from train rows"
    return (
        f"{found}, no better than chance: look for a learning rate that is too low or too high, for {label} not being the "
        "one you mean, or for ids shuffled against the labels"
    )
