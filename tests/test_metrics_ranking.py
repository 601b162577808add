"""RankingMetrics in one process against scikit-learn and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from distrec.config.schema import Task
from distrec.errors import UserError
from distrec.metrics import ranking
from distrec.metrics.ranking import RankingMetrics

BINARY, REGRESSION = Task(), Task(name="rating", kind="regression")


def rows(n: int, tasks: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with ties, labels that follow them, weights of which a tenth are 0, and groups of uneven size."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, tasks, generator=g) * 8 - 8).round() / 8
    labels = (torch.rand(n, tasks, generator=g) < logits.sigmoid()).float()
    weights = torch.rand(n, generator=g) * (torch.rand(n, generator=g) > 0.1)
    groups = (torch.rand(n, generator=g).square() * 300).long() * 2**40 - 7
    return logits, labels, weights, groups


def measured(tasks, *batches, grouped=False) -> dict[str, float]:
    metrics = RankingMetrics(tasks, grouped)
    for batch in batches:
        metrics.update(*batch)
    return metrics.compute()


def column(labels: list[float], logits: list[float], weights: list[float] | None = None):
    return torch.tensor(logits)[:, None], torch.tensor(labels)[:, None], torch.tensor(weights or [1.0] * len(labels))


def oracle_gauc(logits, labels, weights, groups) -> float:
    areas, totals = [], []
    for group in groups.unique():
        mine = (groups == group) & (weights > 0)
        if len(labels[mine].unique()) == 2:
            areas.append(roc_auc_score(labels[mine], logits[mine], sample_weight=weights[mine]))
            totals.append(weights[mine].double().sum())
    return float(np.average(areas, weights=totals))


@pytest.mark.parametrize("fold_rows", [100, 2**18])
def test_binary_metrics_equal_scikit_learn(monkeypatch, fold_rows):
    monkeypatch.setattr(ranking, "FOLD_ROWS", fold_rows)
    logits, labels, weights, groups = rows(5000)
    got = measured([BINARY], *zip(*(part.split(77) for part in (logits, labels, weights, groups)), strict=True), grouped=True)
    x, y, w = logits[:, 0].double().numpy(), labels[:, 0].numpy(), weights.double().numpy()
    p = 1 / (1 + np.exp(-x))
    base = np.full_like(p, np.average(y, weights=w))
    expected = {
        "auc": roc_auc_score(y, x, sample_weight=w),
        "gauc": oracle_gauc(logits[:, 0], labels[:, 0], weights, groups),
        "ne": log_loss(y, p, sample_weight=w) / log_loss(y, base, sample_weight=w),
        "logloss": log_loss(y, p, sample_weight=w),
        "calibration": np.average(p, weights=w) / np.average(y, weights=w),
    }
    assert got == pytest.approx(expected, abs=1e-9)


def test_regression_metrics_equal_scikit_learn():
    logits, _, weights, _ = rows(1000)
    labels = logits * 0.5 + 1
    got = measured([REGRESSION], (logits, labels, weights))
    mse = mean_squared_error(labels, logits, sample_weight=weights.double())
    mae = mean_absolute_error(labels, logits, sample_weight=weights.double())
    assert got == pytest.approx({"mse": mse, "rmse": math.sqrt(mse), "mae": mae}, abs=1e-6)


def test_several_tasks_carry_their_names_and_do_not_mix():
    logits, labels, weights, _ = rows(500, tasks=2)
    got = measured([BINARY, REGRESSION], (logits, labels, weights))
    assert got["label/auc"] == pytest.approx(roc_auc_score(labels[:, 0], logits[:, 0], sample_weight=weights))
    assert got["rating/mse"] == pytest.approx(mean_squared_error(labels[:, 1], logits[:, 1], sample_weight=weights))
    assert set(got) == {
        *(f"label/{m}" for m in ("auc", "ne", "logloss", "calibration")),
        "rating/mse",
        "rating/rmse",
        "rating/mae",
    }


def test_rows_of_weight_zero_count_nowhere_even_with_nan_in_them():
    logits, labels, weights, groups = rows(300)
    padding = torch.full((50, 1), math.nan), torch.full((50, 1), math.nan), torch.zeros(50), torch.full((50,), 99)
    got = measured([BINARY], (logits, labels, weights, groups), padding, grouped=True)
    real = weights > 0
    assert got == measured([BINARY], (logits[real], labels[real], weights[real], groups[real]), grouped=True)
    assert not any(map(math.isnan, got.values()))


@pytest.mark.parametrize("task", [BINARY, REGRESSION])
def test_a_nan_prediction_makes_every_metric_nan(task):
    logits, labels, _, groups = rows(300)
    logits[17] = math.nan
    got = measured([task], (logits, labels, torch.ones(300), groups), grouped=True)
    assert got
    assert all(map(math.isnan, got.values()))


def test_ranks_by_logit_where_probabilities_saturate():
    got = measured([BINARY], column([0, 0, 1, 1], [40.0, 41.0, 42.0, 43.0]))
    assert got["auc"] == 1.0


def test_extreme_logits_keep_a_finite_log_loss():
    assert measured([BINARY], column([1, 0], [-100.0, 100.0]))["logloss"] == pytest.approx(100.0)


def test_one_class_has_no_auc_and_no_entropy():
    got = measured([BINARY], column([1, 1], [0.0, 0.0]))
    assert math.isnan(got["auc"])
    assert math.isnan(got["ne"])
    assert got["logloss"] == pytest.approx(math.log(2))
    assert got["calibration"] == 0.5


def test_no_rows_is_nan_throughout():
    assert all(map(math.isnan, measured([BINARY, REGRESSION], grouped=True).values()))
    assert all(map(math.isnan, measured([BINARY], (torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0))).values()))


def test_gauc_leaves_out_groups_of_one_class_and_weights_the_others():
    # Group 1: AUC 1, weight 2. Group 2: AUC 0, weight 6. Group 3: one class. Group 4: a tie, weight 4.
    labels, logits = [0, 1, 1, 0, 1, 1, 0, 1], [0.0, 1.0, 0.0, 5.0, 9.0, 8.0, 2.0, 2.0]
    batch = (*column(labels, logits, [1, 1, 3, 3, 1, 1, 2, 2]), torch.tensor([1, 1, 2, 2, 3, 3, 4, 4]))
    assert measured([BINARY], batch, grouped=True)["gauc"] == pytest.approx((2 * 1 + 6 * 0 + 4 * 0.5) / 12)


def test_the_buffer_is_folded_before_it_grows_past_its_bound(monkeypatch):
    monkeypatch.setattr(ranking, "FOLD_ROWS", 1000)
    metrics = RankingMetrics([BINARY])
    for seed in range(25):
        metrics.update(*rows(300, seed=seed)[:3])
        assert sum(len(kept[0]) for kept in metrics._rows) < 1000


def test_update_keeps_copies():
    logits, labels, weights = column([0, 1], [0.0, 1.0])
    metrics = RankingMetrics([BINARY])
    metrics.update(logits, labels, weights)
    logits.zero_(), labels.zero_(), weights.zero_()
    assert metrics.compute()["auc"] == 1.0


def test_a_state_carries_the_rows_on():
    first, second = rows(400, seed=1), rows(400, seed=2)
    saved = RankingMetrics([BINARY], grouped=True)
    saved.update(*first)
    state = {name: tensor.clone() for name, tensor in saved.state().items()}
    resumed = RankingMetrics([BINARY], grouped=True)
    resumed.update(*rows(50, seed=3))  # forgotten by load_state
    resumed.load_state(state)
    resumed.update(*second)
    assert resumed.compute() == pytest.approx(measured([BINARY], first, second, grouped=True), abs=1e-12)


def test_a_state_is_not_changed_by_later_rows():
    metrics = RankingMetrics([BINARY])
    metrics.update(*rows(100)[:3])
    state = metrics.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    metrics.update(*rows(100, seed=1)[:3])
    metrics.compute()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_a_state_of_other_tasks_is_the_users_error():
    with pytest.raises(UserError, match=r"differ in label/auc/codes.*resume with the \[\[tasks\]\]"):
        RankingMetrics([REGRESSION]).load_state(RankingMetrics([BINARY]).state())


def test_reset_forgets_folded_and_buffered_rows():
    metrics = RankingMetrics([BINARY])
    metrics.update(*rows(100)[:3])
    metrics.compute()
    metrics.update(*rows(100, seed=1)[:3])
    metrics.reset()
    metrics.update(*rows(100, seed=2)[:3])
    assert metrics.compute() == measured([BINARY], rows(100, seed=2)[:3])


def test_shapes_that_would_broadcast_are_refused():
    metrics = RankingMetrics([BINARY])
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), expected \(3, 1\)"):
        metrics.update(torch.zeros(3, 1), torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="needs groups"):
        RankingMetrics([BINARY], grouped=True).update(torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(3))


def test_half_precision_and_integer_columns_are_taken():
    logits, labels, weights = column([0, 1, 1], [0.5, 1.0, 0.25])
    got = measured([BINARY], (logits.bfloat16(), labels.long(), weights.double()))
    assert got == measured([BINARY], (logits, labels, weights))
