"""Layers and jagged operations against NumPy and by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distrec.models.inputs import Jagged
from distrec.models.jagged import repeat_rows, segment_mean, segment_softmax, segment_sum
from distrec.models.layers import MLP, CrossNet, Dice, DotInteraction, FactorizationMachine


def double(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# MLP


def test_mlp_is_linear_then_relu_at_every_width():
    mlp = MLP(2, [2, 1])
    with torch.no_grad():
        mlp[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        mlp[0].bias.copy_(torch.tensor([0.0, 1.0]))
        mlp[2].weight.copy_(torch.tensor([[2.0, -3.0]]))
        mlp[2].bias.copy_(torch.tensor([-1.0]))
    # [3, 1]: relu(4), relu(3) -> relu(8 - 9 - 1) = 0.  [1, 3]: relu(4), relu(-1) -> relu(8 - 0 - 1) = 7.
    assert mlp(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).tolist() == [[0.0], [7.0]]


def test_mlp_without_widths_passes_its_input_on():
    x = double(3, 5)
    assert torch.equal(MLP(5, [])(x), x)
    assert MLP(5, []).out_width == 5
    assert MLP(5, [4, 3]).out_width == 3


def test_mlp_order_of_layers_and_no_layer_shared():
    kinds = [type(m) for m in MLP(4, [3, 2], "dice", dropout=0.1, batch_norm=True)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, Dice, nn.Dropout] * 2
    assert [type(m) for m in MLP(4, [3], "prelu")] == [nn.Linear, nn.PReLU]
    assert [type(m) for m in MLP(4, [3], "sigmoid")] == [nn.Linear, nn.Sigmoid]


# Dice


def test_dice_in_training_uses_the_batch_and_moves_the_running_statistics():
    dice, s = Dice(3).double(), double(50, 3) * torch.tensor([1, 2, 5]) + torch.tensor([0, -3, 4])
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.125, 0.5, -0.25]))
    x = s.numpy()
    p = 1 / (1 + np.exp(-(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8)))
    np.testing.assert_allclose(dice(s).detach().numpy(), p * x + (1 - p) * np.array([0.125, 0.5, -0.25]) * x)
    np.testing.assert_allclose(dice.mean.numpy(), 0.1 * x.mean(0))
    np.testing.assert_allclose(dice.var.numpy(), 0.9 + 0.1 * x.var(0))


def test_dice_in_evaluation_uses_the_running_statistics_and_leaves_them():
    dice = Dice(2).double().eval()
    dice.mean.copy_(torch.tensor([1.0, 2.0]))
    dice.var.copy_(torch.tensor([4.0, 0.25]))
    # (3 - 1) / 2 = 1 and (1 - 2) / 0.5 = -2, so p = sigmoid(1) and sigmoid(-2), with alpha = 0.
    expected = [3 * 0.7310585786300049, 1 * 0.11920292202211755]
    np.testing.assert_allclose(dice(torch.tensor([[3.0, 1.0]]).double()).detach().numpy(), [expected], rtol=1e-6)
    assert dice.mean.tolist() == [1.0, 2.0]
    assert dice.var.tolist() == [4.0, 0.25]


@pytest.mark.parametrize("rows", [0, 1])
def test_dice_takes_batches_too_small_for_statistics(rows):
    dice, s = Dice(2).double(), double(rows, 2).requires_grad_()
    out = dice(s)
    out.sum().backward()
    assert out.shape == (rows, 2)
    assert out.isfinite().all()
    assert s.grad.isfinite().all()
    assert dice.mean.isfinite().all()


def test_dice_does_not_learn_statistics_from_a_batch_with_nan():
    dice = Dice(2)
    dice(torch.tensor([[1.0, torch.nan], [3.0, 0.0]]))
    assert dice.mean.tolist() == pytest.approx([0.2, 0.0])
    assert dice.var.isfinite().all()


def test_dice_takes_statistics_of_bf16_in_single_precision():
    dice = Dice(1)
    out = dice(torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16))  # neighbours: bf16 has nothing between them
    assert out.dtype == torch.bfloat16
    assert dice.mean.dtype == torch.float32
    assert dice.mean.item() == pytest.approx(0.1 * 1.00390625, rel=1e-6)


# Interactions


def test_dot_interaction_is_the_lower_triangle_row_by_row():
    vectors = double(4, 5, 3)
    expected = [[v[i] @ v[j] for i in range(5) for j in range(i)] for v in vectors.numpy()]
    layer = DotInteraction(5)
    np.testing.assert_allclose(layer(vectors).numpy(), expected)
    assert layer.out_width == 10
    assert not layer.state_dict()


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_net_raises_the_degree_by_one_a_layer(rank):
    cross = CrossNet(4, layers=3, rank=rank).double()
    x = double(6, 4)
    # Without bias, layer l maps polynomials of degree l without a constant to degree l + 1: x -> t x shows the degrees.
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    along = torch.stack([cross(t * x) for t in scale]).detach().numpy()
    powers = np.stack([scale.numpy() ** k for k in range(1, 5)], axis=1)
    coefficients, *_ = np.linalg.lstsq(powers, along.reshape(5, -1), rcond=None)
    np.testing.assert_allclose(powers @ coefficients, along.reshape(5, -1), rtol=1e-8, atol=1e-8)
    assert np.abs(coefficients[3]).max() > 1e-6
    np.testing.assert_allclose(coefficients[0], x.numpy().ravel(), rtol=1e-6, atol=1e-6)


def test_cross_net_rank_bounds_the_parameters():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(CrossNet(20, layers=3)) == 3 * (20 * 20 + 20)
    assert count(CrossNet(20, layers=3, rank=2)) == 3 * (2 * 20 * 2 + 20)
    gate, inner, bias = 20 * 4, 4 * 2 * 2, 20
    assert count(CrossNet(20, layers=3, rank=2, experts=4)) == 3 * (4 * (2 * 20 * 2) + gate + inner + bias)


def test_experts_of_a_cross_layer_need_a_rank():
    with pytest.raises(ValueError, match="rank"):
        CrossNet(20, layers=3, experts=4)


def test_factorization_machine_is_the_sum_over_all_pairs():
    vectors = double(4, 6, 3)
    expected = [sum(v[i] * v[j] for i, j in itertools.combinations(range(6), 2)) for v in vectors.numpy()]
    np.testing.assert_allclose(FactorizationMachine()(vectors).numpy(), expected)


def test_factorization_machine_keeps_its_digits_in_bf16():
    vectors = torch.full((1, 64, 1), 1.0).bfloat16()
    vectors[0, 1:] = 0.01
    v = vectors.double()[0, :, 0].numpy()
    exact = sum(a * b for a, b in itertools.combinations(v, 2))
    assert FactorizationMachine()(vectors).item() == pytest.approx(exact, rel=1e-5)


# Jagged rows

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def rows_of(values, lengths):
    return np.split(values.numpy(), np.cumsum(lengths)[:-1])


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS)
def test_segments_equal_numpy_row_by_row(lengths):
    values, offsets = double(sum(lengths), 3), offsets_of(lengths)
    rows = rows_of(values, lengths)
    np.testing.assert_allclose(segment_sum(values, offsets).numpy(), [r.sum(0) for r in rows], atol=1e-12)
    means = [r.mean(0) if len(r) else np.zeros(3) for r in rows]
    np.testing.assert_allclose(segment_mean(Jagged(values, offsets)).numpy(), means, atol=1e-12)
    softmax = [np.exp(r[:, :1]) / np.exp(r[:, :1]).sum() for r in rows]
    np.testing.assert_allclose(segment_softmax(values[:, :1], offsets).numpy(), np.concatenate(softmax), atol=1e-12)
    x = double(len(lengths), 2)
    np.testing.assert_array_equal(repeat_rows(x, offsets, sum(lengths)).numpy(), np.repeat(x.numpy(), lengths, axis=0))


@pytest.mark.parametrize("lengths", [[2, 0, 3], [0, 1], [1]])
def test_segments_have_right_gradients(lengths):
    offsets, values = offsets_of(lengths), double(sum(lengths), 2).requires_grad_()
    x = double(len(lengths), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: segment_sum(v, offsets), values)
    assert torch.autograd.gradcheck(lambda v: segment_mean(Jagged(v, offsets)), values)
    assert torch.autograd.gradcheck(lambda v: segment_softmax(v[:, :1], offsets), values)
    assert torch.autograd.gradcheck(lambda v: segment_softmax(v[:, :1], offsets, padded_to=3), values)
    assert torch.autograd.gradcheck(lambda r: repeat_rows(r, offsets, sum(lengths)), x)


def test_segment_softmax_takes_large_scores():
    scores = torch.tensor([[1000.0], [1000.0], [-1000.0], [5.0]])
    assert segment_softmax(scores, torch.tensor([0, 3, 3, 4])).flatten().tolist() == [0.5, 0.5, 0.0, 1.0]
    padded = segment_softmax(scores, torch.tensor([0, 3, 3, 4]), padded_to=2).flatten()
    torch.testing.assert_close(padded, torch.tensor([0.5, 0.5, 0.0, torch.tensor(5.0).sigmoid()]))


def test_segment_sum_of_bf16_adds_in_single_precision():
    values = torch.ones(1000, 1, dtype=torch.bfloat16)
    assert segment_sum(values, torch.tensor([0, 1000])).item() == 1000  # bf16 stops counting at 256
