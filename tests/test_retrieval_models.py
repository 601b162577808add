"""Retrievers: their vectors against NumPy, histories of any length, and features that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_cases import jagged

from distrec.errors import UserError
from distrec.models import RETRIEVERS, build, build_retriever
from distrec.models.inputs import Embedded, InputSpec, Jagged, RetrieverSpec

LENGTHS = [3, 0, 1, 2]
PLAIN = RetrieverSpec(InputSpec(0, {"user": 4}, {"history": 4}, 0), InputSpec(0, {"item": 4}, {}, 0))
RICH = RetrieverSpec(InputSpec(2, {"user": 4, "age": 3}, {"history": 4}, 0), InputSpec(1, {"item": 4}, {"words": 5}, 0))
CASES: dict[str, tuple[RetrieverSpec, str, dict[str, Any]]] = {
    "two_tower": (RICH, "two_tower", {"query_mlp": [6], "item_mlp": [5], "dim": 4}),
    "two_tower attention": (RICH, "two_tower", {"query_mlp": [6], "dim": 4, "history": "attention"}),
    "two_tower sum dot": (RICH, "two_tower", {"dim": 4, "history": "sum", "normalize": False}),
    "dssm": (RICH, "dssm", {"query_mlp": [6, 4], "item_mlp": [5, 4]}),
    "youtube_dnn": (RetrieverSpec(RICH.query, PLAIN.item), "youtube_dnn", {"mlp": [6]}),
    "youtube_dnn dot": (PLAIN, "youtube_dnn", {"mlp": [6, 5], "normalize": False}),
    "simplex": (PLAIN, "simplex", {"gate": 0.3}),
    "simplex dot": (PLAIN, "simplex", {"gate": 0.3, "normalize": False}),
    "simplex pooled": (
        RetrieverSpec(InputSpec(0, {"history": 4, "user": 4}, {}, 0), PLAIN.item),
        "simplex",
        {"gate": 0.3, "user": "user"},
    ),
    "simplex attention": (PLAIN, "simplex", {"history": "attention"}),
    "simplex user attention": (PLAIN, "simplex", {"history": "user_attention"}),
    "simplex padded": (PLAIN, "simplex", {"history": "user_attention", "padded_to": 2}),
}


def inputs(spec: InputSpec, lengths: list[int] = LENGTHS, seed: int = 0) -> Embedded:
    g = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    return Embedded(
        torch.randn(rows, spec.num_dense, generator=g, dtype=torch.float64),
        {n: torch.randn(rows, d, generator=g, dtype=torch.float64) for n, d in spec.pooled.items()},
        {n: jagged(lengths, d, g) for n, d in spec.sequences.items()},
    )


def model(case: str) -> Any:
    """With no parameter left at its initial value."""
    spec, name, params = CASES[case]
    built = build_retriever(name, params, spec).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return built


def arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def histories(given: Embedded, name: str = "history") -> list[np.ndarray]:
    part = given.sequences[name]
    return [rows.numpy() for rows in part.values.split(part.offsets.diff().tolist())]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def softmax_mean(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max()) if len(scores) else scores
    return (weights[:, None] * rows).sum(0) / max(weights.sum(), 1e-30)


@pytest.mark.parametrize("case", CASES)
def test_both_sides_have_a_vector_for_every_row_and_every_parameter_learns(case: str) -> None:
    spec, _, _ = CASES[case]
    built = model(case)
    query, item = built.query(inputs(spec.query)), built.item(inputs(spec.item, [1, 1, 0, 2, 3], seed=2))
    assert query.shape == (4, 4)
    assert item.shape == (5, 4)
    (query[:, None] * item).sum(2).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())
    if not CASES[case][2].get("normalize", True):
        return
    for vectors in (query, item):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors), dtype=torch.float64))


def test_a_two_tower_is_what_it_says() -> None:
    built, given = model("two_tower attention"), inputs(RICH.query)
    w = arrays(built)
    pooled = []
    for rows in histories(given):
        scores = (
            np.tanh(rows @ w["query_tower.histories.history.inner.weight"].T)
            @ w["query_tower.histories.history.score.weight"][0]
        )
        pooled.append(softmax_mean(rows, scores))
    x = np.concatenate([given.dense, given.pooled["user"], given.pooled["age"], np.array(pooled)], axis=1)
    hidden = np.maximum(x @ w["query_tower.mlp.0.weight"].T + w["query_tower.mlp.0.bias"], 0)
    expected = unit(hidden @ w["query_tower.out.weight"].T + w["query_tower.out.bias"])
    np.testing.assert_allclose(built.query(given).detach().numpy(), expected, rtol=1e-9)


def test_dssm_ends_in_tanh() -> None:
    built, given = model("dssm"), inputs(RICH.item, [1, 0, 2])
    w = arrays(built)
    words = np.array([rows.mean(0) if len(rows) else np.zeros(5) for rows in histories(given, "words")])
    x = np.concatenate([given.dense, given.pooled["item"], words], axis=1)
    for layer in (0, 2):
        x = np.tanh(x @ w[f"item_tower.mlp.{layer}.weight"].T + w[f"item_tower.mlp.{layer}.bias"])
    np.testing.assert_allclose(built.item(given).detach().numpy(), unit(x), rtol=1e-9)


def test_matrix_factorization_is_the_tables() -> None:
    spec = RetrieverSpec(InputSpec(0, {"user": 4}, {}, 0), InputSpec(0, {"item": 4}, {}, 0))
    built: Any = build_retriever("two_tower", {"normalize": False}, spec)
    assert list(built.parameters()) == []
    given = inputs(spec.query)
    assert torch.equal(built.query(given), given.pooled["user"])


def test_an_item_of_youtube_dnn_is_its_row() -> None:
    given = inputs(PLAIN.item, [1, 1])
    assert torch.equal(model("youtube_dnn dot").item(given), given.pooled["item"])
    np.testing.assert_allclose(model("youtube_dnn").item(given).numpy(), unit(given.pooled["item"].numpy()), rtol=1e-9)


@pytest.mark.parametrize("case", ["two_tower", "youtube_dnn", "simplex"])
def test_queries_alone_can_be_normalized(case: str) -> None:
    spec, name, params = CASES[case]
    built: dict[Any, Any] = {}
    for normalize in (True, False, "query"):
        torch.manual_seed(0)
        built[normalize] = build_retriever(name, params | {"normalize": normalize}, spec).double()
    query, item = inputs(spec.query), inputs(spec.item, [1, 1, 2])
    torch.testing.assert_close(built["query"].query(query), built[True].query(query))
    torch.testing.assert_close(built["query"].item(item), built[False].item(item))
    assert not torch.allclose(built["query"].item(item), built[True].item(item))


def test_a_youtube_dnn_without_hidden_layers_is_its_history_where_that_alone_describes_the_query() -> None:
    alone = RetrieverSpec(InputSpec(0, {}, {"history": 4}, 0), PLAIN.item)
    built: Any = build_retriever("youtube_dnn", {"mlp": [], "normalize": False}, alone)
    given = inputs(alone.query)
    means = [rows.mean(0) if len(rows) else np.zeros(4) for rows in histories(given)]
    np.testing.assert_allclose(built.query(given).numpy(), np.array(means), rtol=1e-12)
    for query in (InputSpec(1, {}, {"history": 4}, 0), InputSpec(0, {}, {"history": 8}, 0), PLAIN.query):
        mapped: Any = build_retriever("youtube_dnn", {"mlp": []}, RetrieverSpec(query, PLAIN.item)).double()
        assert mapped.query(inputs(query)).shape == (4, 4)
        assert [*dict(mapped.named_parameters())] == ["user.out.weight", "user.out.bias"]


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("simplex")])
def test_a_user_of_simplex_is_partly_what_they_went_for(case: str) -> None:
    built, given = model(case), inputs(CASES[case][0].query)
    w, users = arrays(built), given.pooled["user"].numpy()
    pooled = []
    lists = histories(given) if given.sequences else list(given.pooled["history"].unsqueeze(1).numpy())
    for user, rows in zip(users, lists, strict=True):
        if case in ("simplex", "simplex dot", "simplex pooled"):
            scores = np.zeros(len(rows))
        elif case == "simplex attention":
            scores = np.tanh(rows @ w["pool.pooling.inner.weight"].T) @ w["pool.pooling.score.weight"][0]
        else:
            scores = np.tanh(rows @ w["pool.inner.weight"].T + w["pool.inner.bias"]) @ user
        if case == "simplex padded":
            padding = max(0, 2 - len(rows))
            rows, scores = np.pad(rows, ((0, padding), (0, 0))), np.pad(scores, (0, padding))
        pooled.append(softmax_mean(rows, scores))
    gate = CASES[case][2].get("gate", 0.5)
    expected = gate * users + (1 - gate) * np.array(pooled) @ w["map.weight"].T
    expected = expected if case == "simplex dot" else unit(expected)
    np.testing.assert_allclose(built.query(given).detach().numpy(), expected, rtol=1e-9)


def test_padding_is_for_the_users_attention() -> None:
    with pytest.raises(UserError, match='padded_to is for history = "user_attention", and it is "mean"; remove padded_to'):
        build_retriever("simplex", {"padded_to": 2}, PLAIN)


def test_attention_needs_a_history_that_is_not_pooled_yet() -> None:
    spec, name, params = CASES["simplex pooled"]
    with pytest.raises(UserError, match=r"the lookup pools 'history'; declare it in features\.sequence"):
        build_retriever(name, params | {"history": "user_attention"}, spec)


def test_dropout_of_simplex_takes_numbers_out_of_a_unit_vector() -> None:
    spec, given = PLAIN, inputs(PLAIN.query)
    built: Any = build_retriever("simplex", {"dropout": 0.5}, spec).double()
    whole = built.eval().query(given).detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1)
    noisy = np.concatenate([built.train().query(given).detach().numpy() / whole for _ in range(20)])
    assert 0.2 < (noisy == 0).mean() < 0.8
    np.testing.assert_allclose(noisy[noisy != 0], 2)  # and what is left makes up for it


@pytest.mark.parametrize("case", CASES)
def test_rows_know_nothing_of_each_other(case: str) -> None:
    spec, _, _ = CASES[case]
    whole = inputs(spec.query)
    alone = Embedded(
        whole.dense[2:3],
        {n: v[2:3] for n, v in whole.pooled.items()},
        {n: Jagged(h.values[3:4], torch.tensor([0, 1])) for n, h in whole.sequences.items()},
    )
    built = model(case).eval()
    torch.testing.assert_close(built.query(alone)[0], built.query(whole)[2])


@pytest.mark.parametrize("case", ["two_tower", "simplex"])
def test_a_vector_of_zeros_stays_one_and_its_gradient_is_finite(case: str) -> None:
    spec, _, _ = CASES[case]
    built = model(case)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    leaves = {n: torch.zeros(2, d, dtype=torch.float64, requires_grad=True) for n, d in spec.query.pooled.items()}
    empty = {
        n: Jagged(torch.zeros(0, d, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
        for n, d in spec.query.sequences.items()
    }
    vectors = built.query(Embedded(torch.zeros(2, spec.query.num_dense, dtype=torch.float64), leaves, empty))
    assert vectors.eq(0).all()
    vectors.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves.values())


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("two_tower", RICH, "the query's vector has 13 dims and the item's 10: set model.params.dim"),
        ("youtube_dnn", RICH, "retrieval.item_features is one sparse feature, and here it is item, words and 1 number;"),
        ("simplex", RetrieverSpec(RICH.query, PLAIN.item), "There are: user, age, history and 2 numbers"),
        ("simplex", RetrieverSpec(InputSpec(0, {"a": 4, "b": 4}, {}, 0), PLAIN.item), "There are: a, b"),
        (
            "simplex",
            RetrieverSpec(InputSpec(0, {"user": 8}, {"history": 4}, 0), PLAIN.item),
            "'user' has 8, 'history' 4 and the item 4",
        ),
        ("dlrm", PLAIN, "model.name = 'dlrm' ranks; a config with [retrieval] needs a retriever: dssm, simplex"),
        ("two_towers", PLAIN, "no model; did you mean 'two_tower'?"),
        ("torch.nn:Linear", PLAIN, "needs a nested class Params"),
        ("distrec.models.din:DIN", PLAIN, "has no method 'query'"),
    ],
)
def test_what_does_not_fit_is_named(name: str, spec: RetrieverSpec, said: str) -> None:
    with pytest.raises(UserError) as error:
        build_retriever(name, {}, spec)
    assert said in str(error.value)


@pytest.mark.parametrize("name", RETRIEVERS)
def test_a_retriever_is_no_ranker(name: str) -> None:
    with pytest.raises(UserError, match="retrieves; describe the items in a section"):
        build(name, {}, PLAIN.query)
