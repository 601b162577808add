"""Losses against NumPy and scikit-learn, and what makes their sum right over rows, ranks and types."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error

from distrec.errors import UserError
from distrec.losses import ranking_loss

ROWS = 40
KINDS = ["binary", "regression", "binary"]
TASK_WEIGHTS = [1.0, 0.5, 2.0]


def case(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, 3)) * 3
    labels = np.stack([rng.integers(0, 2, ROWS), rng.normal(size=ROWS), rng.integers(0, 2, ROWS)], axis=1).astype(float)
    weights = rng.uniform(0, 2, ROWS) * (rng.random(ROWS) < 0.8)
    return [torch.from_numpy(x) for x in (logits, labels, weights)]


def loss(logits, labels, weights, normalizer, **kwargs):
    return ranking_loss(logits, labels, weights, torch.tensor(normalizer), KINDS, TASK_WEIGHTS, **kwargs)


def test_each_task_and_the_total_equal_scikit_learn():
    logits, labels, weights = case()
    total, per_task = loss(logits, labels, weights, 7.0)
    z, y, w = (x.numpy() for x in (logits, labels, weights))
    p = 1 / (1 + np.exp(-z))
    sums = [
        log_loss(y[:, 0], p[:, 0], sample_weight=w, normalize=False),
        mean_squared_error(y[:, 1], z[:, 1], sample_weight=w) * w.sum(),
        log_loss(y[:, 2], p[:, 2], sample_weight=w, normalize=False),
    ]
    np.testing.assert_allclose(per_task.numpy(), np.array(sums) / 7.0)
    np.testing.assert_allclose(total.item(), (sums[0] + 0.5 * sums[1] + 2 * sums[2]) / 7.0)
    assert total.shape == ()


def test_cross_entropy_of_extreme_logits_is_finite_and_exact():
    logits = torch.tensor([[500.0], [-500.0], [500.0]])
    labels = torch.tensor([[1.0], [1.0], [0.0]])
    total, _ = ranking_loss(logits, labels, torch.ones(3), torch.tensor(1.0), ["binary"], [1.0])
    assert total.item() == 1000.0


def test_gradient_is_weighted_residual():
    logits, labels, weights = case()
    logits.requires_grad_()
    loss(logits, labels, weights, 5.0)[0].backward()
    z, y, w = logits.detach().numpy(), labels.numpy(), weights.numpy()
    residual = 1 / (1 + np.exp(-z)) - y
    residual[:, 1] = 2 * (z[:, 1] - y[:, 1])
    np.testing.assert_allclose(logits.grad.numpy(), residual * w[:, None] * TASK_WEIGHTS / 5.0)
    assert (logits.grad[weights == 0] == 0).all()


def test_ranks_with_unequal_rows_average_to_the_mean_over_all_rows():
    logits, labels, weights = case()
    whole, _ = loss(logits, labels, weights, float(ROWS))
    parts = [slice(0, 31), slice(31, ROWS)]
    normalizer = ROWS / len(parts)
    on_ranks = [loss(logits[p], labels[p], weights[p], normalizer)[0].item() for p in parts]
    assert np.mean(on_ranks) == pytest.approx(whole.item())


def test_padding_rows_change_nothing():
    logits, labels, weights = case()
    padded = [torch.cat([x, x.new_full((5, *x.shape[1:]), v)]) for x, v in ((logits, 3.0), (labels, 0.0), (weights, 0.0))]
    assert loss(*padded, 9.0)[0].item() == pytest.approx(loss(logits, labels, weights, 9.0)[0].item(), rel=1e-12)


def test_auxiliary_losses_are_added_as_they_are():
    logits, labels, weights = case()
    extra = {"a": torch.tensor(0.25).double().requires_grad_(), "b": torch.tensor(2.0).double()}
    total, per_task = loss(logits, labels, weights, 9.0, auxiliary=extra)
    plain, plain_per_task = loss(logits, labels, weights, 9.0)
    assert total.item() == pytest.approx(plain.item() + 2.25)
    assert torch.equal(per_task, plain_per_task)
    total.backward()
    assert extra["a"].grad.item() == 1.0


def test_bf16_logits_are_summed_in_single_precision_under_autocast():
    logits, labels, weights = (x.float() for x in case())
    logits = (0.1 * logits).bfloat16()  # small, where a logarithm taken in bf16 would lose most
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, per_task = loss(logits, labels, weights, 9.0, auxiliary={"a": torch.tensor(1.0).bfloat16()})
    assert total.dtype == per_task.dtype == torch.float32
    exact, exact_per_task = loss(logits.double(), labels.double(), weights.double(), 9.0)
    np.testing.assert_allclose(per_task.numpy(), exact_per_task.numpy(), rtol=2e-6)
    assert total.item() == pytest.approx(exact.item() + 1.0, rel=2e-6)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, 4)])
def test_logits_of_another_shape_are_refused(shape):
    _, labels, weights = case()
    with pytest.raises(UserError, match=r"\(40, 3\)"):
        loss(torch.zeros(shape), labels, weights, 1.0)


def test_kinds_must_match_the_columns():
    logits, labels, weights = case()
    with pytest.raises(ValueError, match="zip"):
        ranking_loss(logits, labels, weights, torch.tensor(1.0), ["binary"], [1.0])
