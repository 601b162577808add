"""Metrics that are functions of a few sums over rows: the sums add up over batches and ranks, and forget the rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def binary_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(4,) float64 of (N,) rows: sums of weight, and of weight times label, cross-entropy and predicted probability."""
    x, y, w = logits.double(), labels.double(), weights.double()
    loss = binary_cross_entropy_with_logits(x, y, reduction="none")
    return torch.stack([w.sum(), w @ y, w @ loss, w @ x.sigmoid()])


def binary_metrics(sums: Tensor) -> dict[str, float]:
    """`ne`, `logloss` (nats) and `calibration` from `binary_sums`; NaN where a class is missing or a logit was NaN.

    Normalized entropy is the log loss over that of predicting the mean label for every row, and calibration the mean
    prediction over the mean label (He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, 2014,
    equation 1 and section 2).
    """
    weight, label, loss, prediction = sums.tolist()
    mean = ratio(label, weight)
    entropy = -mean * math.log(mean) - (1 - mean) * math.log1p(-mean) if 0 < mean < 1 else 0.0
    logloss = ratio(loss, weight)
    return {"ne": ratio(logloss, entropy), "logloss": logloss, "calibration": ratio(prediction, label)}


def regression_sums(predictions: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(3,) float64 of (N,) rows: sums of weight, and of weight times squared and absolute error."""
    error, w = predictions.double() - labels.double(), weights.double()
    return torch.stack([w.sum(), w @ error.square(), w @ error.abs()])


def regression_metrics(sums: Tensor) -> dict[str, float]:
    """`mse`, `rmse` and `mae` from `regression_sums`; NaN without rows or where a prediction was NaN."""
    weight, squared, absolute = sums.tolist()
    mse = ratio(squared, weight)
    return {"mse": mse, "rmse": math.sqrt(mse), "mae": ratio(absolute, weight)}


def ratio(numerator: float, denominator: float) -> float:
    """The quotient; NaN when there is nothing to divide by."""
    return numerator / denominator if denominator else math.nan
