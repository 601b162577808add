"""Each warning appears for its own fault, names the fix, and stays away from a healthy run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distrec.config.schema import Task
from distrec.metrics.ranking import RankingMetrics
from distrec.metrics.suspicions import Evidence, auc_standard_error, idle_features, out_of_proportion, suspicions

HEALTHY = Evidence(Task(), "", rows=10**6, positives=10**5, nan_predictions=0, labels=(0.0, 1.0), predictions=(-6.0, 1.0))


def test_a_healthy_run_raises_none():
    assert suspicions(HEALTHY, {"auc": 0.78}) == []


@pytest.mark.parametrize(
    ("fault", "auc", "words"),
    [
        ({"nan_predictions": 3}, float("nan"), "3 of 1000000 predictions are NaN"),
        (
            {"labels": (0.0, 0.0), "positives": 0},
            float("nan"),
            'the label is 0 in all 1000000 rows: is "label" the right column',
        ),
        ({"predictions": (-2.5, -2.5)}, 0.7, "all 1000000 predictions are -2.5"),
        ({}, 0.501, "AUC is 0.5010 over 1000000 rows, no better than chance: look for a learning rate"),
        ({}, 0.31, "worse than chance"),
        ({"rows": 0, "positives": 0}, float("nan"), "no row of positive weight"),
    ],
)
def test_a_fault_is_named_alone(fault, auc, words):
    (warning,) = suspicions(replace(HEALTHY, **fault), {"auc": auc})
    assert words in warning
    assert 'task "label"' in warning


def test_few_rows_do_not_raise_the_alarm_about_chance():
    assert suspicions(replace(HEALTHY, rows=1000, positives=100), {"auc": 0.5}) == []


def test_the_task_of_several_is_found_by_its_prefix():
    evidence = replace(HEALTHY, task=Task(name="buy"), prefix="buy/")
    assert suspicions(evidence, {"click/auc": 0.5, "buy/auc": 0.7}) == []
    assert len(suspicions(evidence, {"click/auc": 0.7, "buy/auc": 0.5})) == 1


def test_a_regression_has_no_auc_to_suspect():
    assert suspicions(replace(HEALTHY, task=Task(kind="regression")), {"rmse": 1.0}) == []


@pytest.mark.parametrize(
    ("kind", "labels", "predictions", "found"),
    [
        ("binary", [0, 1, 1], [1e30, 3, 3], "logloss is 3.33e+29"),
        ("binary", [0, 1, 1], [3100, 3, 3], "logloss is 1.03e+03"),
        ("binary", [0, 1, 1], [2900, 3, 3], ""),
        ("regression", [0, 1, 5], [1e20, 3, 3], "rmse is 5.77e+19"),
        ("regression", [0, 1, 5], [0, 0, 9000], "rmse is 5.19e+03"),
        ("regression", [0, 1, 5], [0, 0, 8000], ""),
        ("regression", [0, 0, -1e8], [0, 0, 0], ""),  # heavy tails, which a model that predicts 0 has no share in
        ("regression", [1e-6, 0, 0], [10, -30, 20], ""),  # tiny labels, before the first step
    ],
)
def test_a_finite_error_out_of_all_proportion_is_told(kind, labels, predictions, found):
    """Weights of rows change nothing."""
    metrics = RankingMetrics([Task(name="t", kind=kind)])
    metrics.update(torch.tensor(predictions)[:, None], torch.tensor(labels, dtype=torch.float)[:, None], torch.full((3,), 1e5))
    [evidence] = metrics.evidence()
    warning = out_of_proportion(evidence, metrics.compute())
    assert warning.startswith(found)
    assert ("lower the learning rates" in warning) == bool(found)
    assert [text for text in suspicions(evidence, metrics.compute()) if "1,000 times" in text] == (
        [f'task "t": {warning}'] * bool(found)
    )


def test_the_standard_error_is_that_of_random_scores():
    scores = np.random.default_rng(0).random((5000, 200))
    rank_sums = (scores.argsort(1).argsort(1) + 1)[:, :60].sum(1)  # of the 60 positives among 200
    areas = (rank_sums - 60 * 61 / 2) / (60 * 140)
    assert auc_standard_error(60, 140) == pytest.approx(areas.std(), rel=0.04)


def test_evidence_of_real_updates_raises_what_is_wrong_with_them():
    metrics = RankingMetrics([Task(name="stuck"), Task(name="flat", label="is_click")])
    logits = torch.stack([torch.randn(100), torch.full((100,), 0.25)], 1)
    labels = torch.stack([torch.ones(100), torch.arange(100) % 2.0], 1)
    metrics.update(logits, labels, torch.ones(100))
    found = [suspicions(evidence, metrics.compute()) for evidence in metrics.evidence()]
    assert [len(warnings) for warnings in found] == [1, 1]
    assert "the label is 1 in all 100 rows" in found[0][0]
    assert "all 100 predictions are 0.25" in found[1][0]


def test_features_without_ids_are_named():
    (warning,) = idle_features({"movie_id": 12, "genres": 0})
    assert 'feature "genres" got no id' in warning
    assert idle_features({"movie_id": 1}) == []
