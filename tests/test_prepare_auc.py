"""The expected AUC, against scikit-learn and against a loop over all pairs."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from distrec.prepare.auc import expected_auc


def by_pairs(scores, probabilities):
    concordant = pairs = 0.0
    for i, (s_i, p_i) in enumerate(zip(scores, probabilities, strict=True)):
        for j, (s_j, p_j) in enumerate(zip(scores, probabilities, strict=True)):
            if i != j:
                weight = p_i * (1 - p_j)
                pairs += weight
                concordant += weight * (1.0 if s_i > s_j else 0.5 if s_i == s_j else 0.0)
    return concordant / pairs


@pytest.mark.parametrize("levels", [5, 10**9])
def test_with_hard_labels_it_is_the_ordinary_auc(levels):
    rng = np.random.default_rng(0)
    scores = np.floor(rng.random(2000) * levels)
    labels = rng.random(2000) < 0.2 + 0.4 * scores / levels
    assert expected_auc(scores, labels.astype(float)) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [4, 10**9])
def test_with_soft_labels_it_is_the_weighted_share_of_concordant_pairs(levels):
    rng = np.random.default_rng(1)
    scores, probabilities = np.floor(rng.random(60) * levels), rng.random(60)
    assert expected_auc(scores, probabilities) == pytest.approx(by_pairs(scores, probabilities), abs=1e-12)


def test_it_is_the_mean_auc_over_many_drawings_of_the_labels():
    rng = np.random.default_rng(2)
    logit = rng.normal(size=400)
    p = 1 / (1 + np.exp(-logit))
    drawn = [roc_auc_score(rng.random(400) < p, logit) for _ in range(400)]
    assert expected_auc(logit, p) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(400))


def test_one_class_has_no_auc():
    assert math.isnan(expected_auc(np.array([1.0, 2.0]), np.array([1.0, 1.0])))
