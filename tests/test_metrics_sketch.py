"""The AUC sketch against scikit-learn, exact and coarsened."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from distrec.metrics.sketch import Sketch, _sum_by, order_key

FLOATS = st.floats(width=32, allow_nan=False)


def clicks(z_scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels that follow standardized logits, so that AUC is near 0.8 however narrow the spread."""
    return (rng.logistic(size=len(z_scores)) < 2 * z_scores - 1).astype(np.float32)


def sketched_auc(sketch: Sketch) -> float:
    area, weight = sketch.weighted_auc().tolist()
    return area / weight


def add_in_batches(sketch: Sketch, logits: np.ndarray, labels: np.ndarray, rows: int = 2**18) -> int:
    """The most entries that the sketch ever held."""
    most = 0
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        sketch.add(torch.tensor(logits[part]), torch.tensor(labels[part]), torch.ones(len(logits[part])))
        most = max(most, len(sketch.codes))
    return most


@given(st.lists(FLOATS, min_size=2, max_size=20))
def test_keys_order_as_the_floats_do(values):
    floats = np.array(values, dtype=np.float32)
    keys = order_key(torch.tensor(floats)).numpy()
    assert (np.sign(keys[:, None] - keys) == np.sign((floats[:, None] > floats) * 1 - (floats[:, None] < floats) * 1)).all()
    assert keys.min() >= 0
    assert keys.max() < 2**32


def test_both_zeros_tie():
    assert order_key(torch.tensor([-0.0])) == order_key(torch.tensor([0.0]))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(1, 5)), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label, _ in rows}) == 2
    ),
    st.integers(1, 39),
)
def test_equals_scikit_learn_with_ties_and_weights_in_any_batches(rows, cut):
    logits, labels, weights = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    sketch = Sketch()
    for part in (slice(0, cut), slice(cut, None)):
        sketch.add(*(torch.tensor(column[part]) for column in (logits, labels, weights)))
    assert sketched_auc(sketch) == pytest.approx(roc_auc_score(labels, logits, sample_weight=weights), abs=1e-12)


@pytest.mark.parametrize("case", ["all narrow", "narrow last"])
def test_millions_of_rows_keep_the_capacity_and_six_digits(case):
    rng = np.random.default_rng(3)
    z_scores = rng.normal(size=3_000_000)
    narrow = (np.arange(len(z_scores)) >= 1_600_000) | (case == "all narrow")
    logits = np.where(narrow, -3.4 + 1e-3 * z_scores, z_scores).astype(np.float32)
    labels = clicks(z_scores, rng)
    sketch = Sketch()
    assert add_in_batches(sketch, logits, labels) <= 2**20
    assert (len(sketch.codes) < len(np.unique(logits))) == (case != "all narrow")  # these have some 40,000 distinct values
    assert sketched_auc(sketch) == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)


def test_a_long_stream_in_little_room_stays_close():
    rng = np.random.default_rng(5)
    z_scores = rng.normal(size=100_000)
    sketch, labels = Sketch(min_capacity=4096), clicks(z_scores, rng)
    assert add_in_batches(sketch, z_scores.astype(np.float32), labels, rows=500) <= 4096
    assert sketched_auc(sketch) == pytest.approx(roc_auc_score(labels, z_scores), abs=1e-5)


def test_merged_entries_tie():
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=50_000).astype(np.float32), (rng.random(50_000) < 0.5).astype(np.float32)
    sketch = Sketch(min_capacity=1)
    add_in_batches(sketch, logits, labels)
    tied = (sketch.mass.prod(1) / sketch.mass.sum(0).prod()).sum().item()
    assert tied > 2e-3  # what counting ties whole or not at all would add, halved
    assert sketched_auc(sketch) == pytest.approx(roc_auc_score(labels, logits), abs=2e-4)


def test_merged_entries_stay_light_and_in_order():
    sketch = Sketch(min_capacity=1024)
    logits = torch.cat([torch.linspace(-3, 3, 6000), torch.full((2000,), 0.1234)])
    sketch.add(logits, torch.ones(8000), torch.ones(8000))
    codes, mass = sketch.codes, sketch.mass.sum(1)
    assert len(codes) <= 512 + 1
    assert (codes.diff() > 0).all()
    assert order_key(torch.tensor([-3.0])) <= codes[0]
    assert codes[-1] <= order_key(torch.tensor([3.0]))
    heavy = mass > 4 * 8000 / 1024
    assert heavy.sum() == 1  # only the logit that 2000 rows share
    assert abs(codes[heavy] - order_key(torch.tensor([0.1234]))) < 2**16


def test_capacity_is_256_entries_a_group_once_that_is_more():
    sketch = Sketch(min_capacity=1000)
    groups = torch.arange(10).repeat_interleave(1000)
    sketch.add(torch.randn(10_000), torch.ones(10_000), torch.ones(10_000), groups)
    assert sketch.capacity == 2560
    assert 1000 < len(sketch.codes) <= 2560
    assert _sum_by(sketch.codes >> 32, sketch.mass.sum(1), 10).tolist() == [1000.0] * 10


def test_a_large_group_is_coarsened_before_small_ones():
    g = torch.Generator().manual_seed(0)
    groups = torch.cat([torch.zeros(20_000), torch.arange(400) % 20 + 1, torch.tensor([21, 22])]).long()
    logits, labels = torch.randn(20_402, generator=g), (torch.rand(20_402, generator=g) < 0.5).float()
    coarse, exact = Sketch(min_capacity=1), Sketch()
    for sketch in (coarse, exact):
        sketch.add(logits, labels, torch.ones(20_402), groups)
    assert len(coarse.codes) < 6000 < len(exact.codes)
    small = exact.groups > 0
    assert torch.equal(coarse.only(small).codes, exact.only(small).codes)
    assert torch.equal(coarse.only(small).mass, exact.only(small).mass)


def test_absorbing_is_as_adding_the_rows():
    parts, whole = (Sketch(), Sketch()), Sketch()
    g = torch.Generator().manual_seed(0)
    for part, first_group in zip(parts, (0, 3), strict=True):
        rows = torch.randn(500, generator=g).round(decimals=1), (torch.rand(500, generator=g) < 0.3).float(), torch.rand(500)
        groups = torch.randint(first_group, first_group + 5, (500,), generator=g)
        part.add(*rows, groups)
        whole.add(*rows, groups)
    parts[0].absorb(parts[1])
    assert torch.equal(parts[0].groups, whole.groups)
    assert torch.equal(parts[0].codes, whole.codes)
    torch.testing.assert_close(parts[0].mass, whole.mass, rtol=1e-12, atol=0)


def test_only_keeps_the_marked_groups():
    groups = torch.tensor([7, -5, 7, 30, -5, 30])
    logits, labels = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    sketch = Sketch()
    sketch.add(logits, labels, torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0, 1.0]), groups)
    part = sketch.only(sketch.groups == 30)
    assert part.groups.tolist() == [30]
    assert part.mass.tolist() == [[9.0, 0.0], [0.0, 1.0]]
    assert part.weighted_auc().tolist() == [0.0, 10.0]
