"""Each model against its paper's equations, written with loops over rows, fields and positions in NumPy."""

import numpy as np
import pytest
import torch
from model_cases import CASES, PAIRS, SPEC, fitting, positions, random_inputs, random_model

from distrec.models.inputs import InputSpec

TWO_TASKS = InputSpec(num_dense=SPEC.num_dense, pooled=SPEC.pooled, sequences=SPEC.sequences, num_tasks=2)
NO_DENSE = InputSpec(num_dense=0, pooled=SPEC.pooled, sequences=SPEC.sequences)


def relu(x, _state, _prefix):
    return np.maximum(x, 0)


def sigmoid(x, _state, _prefix):
    return 1 / (1 + np.exp(-x))


def dice(x, state, prefix):
    p = 1 / (1 + np.exp(-(x - state[f"{prefix}.mean"]) / np.sqrt(state[f"{prefix}.var"] + 1e-8)))
    return p * x + (1 - p) * state[f"{prefix}.alpha"] * x


def linear(x, state, prefix):
    return state[f"{prefix}.weight"] @ x + state.get(f"{prefix}.bias", 0)


def mlp(x, state, prefix, activation=relu):
    layer = 0
    while f"{prefix}.{layer}.weight" in state:
        x = activation(linear(x, state, f"{prefix}.{layer}"), state, f"{prefix}.{layer + 1}")
        layer += 2
    return x


def mean_of_history(inputs, name, row):
    history = inputs.sequences[name]
    total, count = np.zeros(history.values.shape[1]), 0
    for i in positions(history, row):
        total, count = total + history.values[i].numpy(), count + 1
    return total / count if count else total


def fields(inputs, row, without=()):
    pooled = [v[row].numpy() for v in inputs.pooled.values()]
    return pooled + [mean_of_history(inputs, n, row) for n in inputs.sequences if n not in without]


def dlrm_dot(inputs, row, state):
    dense = [mlp(inputs.dense[row].numpy(), state, "bottom")] if inputs.dense.shape[1] else []
    vectors = [*dense, *fields(inputs, row)]
    dots = [sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True)) for i in range(len(vectors)) for j in range(i)]
    return linear(mlp(np.concatenate([*dense, dots]), state, "top"), state, "head")


def dlrm_dcn(inputs, row, state):
    dense = [mlp(inputs.dense[row].numpy(), state, "bottom")] if inputs.dense.shape[1] else []
    x0 = np.concatenate([*dense, *fields(inputs, row)])
    x, layer = x0, 0
    while f"interaction.cross.kernels.{layer}.0.weight" in state:
        kernel = f"interaction.cross.kernels.{layer}"
        matrix, bias = state[f"{kernel}.0.weight"], state.get(f"{kernel}.0.bias")
        if bias is None:  # low rank: U (V^T x) + b
            matrix, bias = state[f"{kernel}.1.weight"] @ matrix, state[f"{kernel}.1.bias"]
        x = np.array([x0[i] * (sum(matrix[i, j] * x[j] for j in range(len(x))) + bias[i]) + x[i] for i in range(len(x))])
        layer += 1
    assert layer > 0
    return linear(mlp(x, state, "top"), state, "head")


def cross(x0, state, prefix):
    """The cross layers, matrices of a rank written out."""
    x, layer = x0, 0
    while (kernel := f"{prefix}.{layer}") and any(key.startswith(f"{kernel}.") for key in state):
        if f"{kernel}.gate.weight" in state:
            crossed = experts_of_low_rank(x, state, kernel)
        elif f"{kernel}.1.weight" in state:
            crossed = state[f"{kernel}.1.weight"] @ (state[f"{kernel}.0.weight"] @ x) + state[f"{kernel}.1.bias"]
        else:
            crossed = linear(x, state, f"{kernel}.0")
        x = np.array([x0[i] * crossed[i] + x[i] for i in range(len(x))])
        layer += 1
    assert layer == 2
    return x


def softmax(scores):
    return np.exp(scores) / sum(np.exp(scores))


def experts_of_low_rank(x, state, kernel):
    gate = softmax(state[f"{kernel}.gate.weight"] @ x)
    core = state[f"{kernel}.core"]
    rank, total = core.shape[1], np.zeros(len(x))
    for i, weight in enumerate(gate):
        own = slice(i * rank, (i + 1) * rank)
        v, u = state[f"{kernel}.down.weight"][own], state[f"{kernel}.up.weight"][:, own]
        total += weight * (u @ np.tanh(core[i] @ np.tanh(v @ x)) + state[f"{kernel}.up.bias"])
    assert len(gate) == 2
    return total


def dcn(inputs, row, state, parallel=False):
    x0 = np.concatenate([inputs.dense[row].numpy(), *fields(inputs, row)])
    crossed = cross(x0, state, "cross.kernels")
    deep = np.concatenate([crossed, mlp(x0, state, "mlp")]) if parallel else mlp(crossed, state, "mlp")
    return linear(deep, state, "head")


def dcn_parallel(inputs, row, state):
    return dcn(inputs, row, state, parallel=True)


def mmoe(inputs, row, state, own=0):
    x, logits = np.concatenate([inputs.dense[row].numpy(), *fields(inputs, row)]), []
    while (task := f"tasks.{len(logits)}") and f"{task}.head.weight" in state:
        shared = [f"experts.{i}" for i in range(3 if not own else 2)]
        outputs = [mlp(x, state, expert) for expert in [*shared, *(f"{task}.experts.{i}" for i in range(own))]]
        gate = softmax(state[f"{task}.gate.weight"] @ x)
        mixed = sum(g * output for g, output in zip(gate, outputs, strict=True))
        logits += [*linear(mlp(mixed, state, f"{task}.tower"), state, f"{task}.head")]
    return np.array(logits)


def mmoe_extraction(inputs, row, state):
    return mmoe(inputs, row, state, own=2)


def wide_deep(inputs, row, state, wide_only=(), deep_only=()):
    dense, vectors = inputs.dense[row].numpy(), dict(zip(SPEC.pooled | SPEC.sequences, fields(inputs, row), strict=True))
    wide = np.concatenate([dense, *(v for name, v in vectors.items() if name not in deep_only)])
    deep = np.concatenate([dense, *(v for name, v in vectors.items() if name not in wide_only)])
    return linear(wide, state, "wide") + linear(mlp(deep, state, "mlp"), state, "mlp_head")


def wide_deep_parts(inputs, row, state):
    return wide_deep(inputs, row, state, wide_only=("genre", "searches"), deep_only=("user", "item_history"))


def deepfm(inputs, row, state):
    dense, ids = inputs.dense[row].numpy(), fields(inputs, row)
    vectors = [*ids, *(x * v for x, v in zip(dense, state.get("dense_vectors", []), strict=True))]
    tasks = len(state["mlp_head.weight"])
    factors = state["fm_head.weight"] if tasks > 1 else np.ones((1, len(vectors[0])))
    pairwise = np.zeros(len(factors))
    for i in range(len(vectors)):
        for j in range(i):
            pairwise += [sum(f * a * b for f, a, b in zip(task, vectors[i], vectors[j], strict=True)) for task in factors]
    first_order = linear(np.concatenate([*ids, dense]), state, "first_order")
    return first_order + pairwise + linear(mlp(np.concatenate(vectors), state, "mlp"), state, "mlp_head")


def din(inputs, row, state, activation=dice, top_activation=dice, softmax=False):
    query = np.concatenate([inputs.pooled[t][row].numpy() for t in PAIRS["targets"]])
    keys = [
        np.concatenate([inputs.sequences[h].values[i].numpy() for h in PAIRS["histories"]])
        for i in positions(inputs.sequences["item_history"], row)
    ]
    scores = []
    for key in keys:
        hidden = mlp(np.concatenate([query, key, query - key, query * key]), state, "attention.mlp", activation)
        scores.append(linear(hidden, state, "attention.score")[0])
    if softmax and scores:
        exponentials = [np.exp(s) for s in scores]
        scores = [e / sum(exponentials) for e in exponentials]
    interest = sum((s * k for s, k in zip(scores, keys, strict=True)), start=np.zeros(len(query)))
    x = np.concatenate([inputs.dense[row].numpy(), interest, *fields(inputs, row, without=PAIRS["histories"])])
    return linear(mlp(x, state, "top", top_activation), state, "head")


def din_softmax(inputs, row, state):
    return din(inputs, row, state, activation=sigmoid, top_activation=relu, softmax=True)


REFERENCES = {
    "dcn": dcn,
    "dcn-parallel-low-rank": dcn_parallel,
    "dcn-experts": dcn_parallel,
    "dlrm-dot": dlrm_dot,
    "dlrm-dcn": dlrm_dcn,
    "dlrm-dcn-low-rank": dlrm_dcn,
    "deepfm": deepfm,
    "din": din,
    "din-softmax": din_softmax,
    "mmoe": mmoe,
    "mmoe-extraction": mmoe_extraction,
    "wide-deep": wide_deep,
    "wide-deep-parts": wide_deep_parts,
}


def test_every_case_has_a_reference():
    assert set(REFERENCES) == set(CASES)


@pytest.mark.parametrize("spec", [SPEC, TWO_TASKS, NO_DENSE], ids=["one-task", "two-tasks", "no-dense"])
@pytest.mark.parametrize("case", REFERENCES)
def test_model_computes_what_its_paper_says(case, spec):
    model, inputs = random_model(case, spec).eval(), random_inputs(spec)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    expected = np.stack([REFERENCES[case](inputs, row, state) for row in range(len(inputs.dense))])
    assert expected.shape == (8, fitting(CASES[case][0], spec).num_tasks)
    assert np.abs(expected).min() > 1e-6
    with torch.no_grad():
        np.testing.assert_allclose(model(inputs).numpy(), expected, rtol=1e-9, atol=1e-9)
