"""Every shipped model, trained on two ranks, has the weights of one that saw both ranks' rows in one batch.

The reference shares the model's class with distrec, and nothing else: tables are looked up by indexing and pooled in a loop,
losses are written out from the papers' formulas over the joint batch, and torch.optim moves everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Outcome, run_ranks
from torch import Tensor
from torch.nn import functional as F
from trained_cases import (
    BATCH,
    CASES,
    DIM,
    EPOCHS,
    LR,
    OPTIMIZERS,
    POOLING,
    SHARDING,
    SHARES,
    SIDES,
    TABLE_OF,
    TASK_WEIGHTS,
    Case,
    histories_of,
    write_log,
)

from distrec.models import MODELS, RETRIEVERS, build, build_retriever
from distrec.models.inputs import Embedded, InputSpec, Jagged, RetrieverSpec

CLOSE = 2e-5
Trained = tuple[Outcome, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("models")
    columns = write_log(folder)
    outcome = run_ranks("train_models.py", 2, folder)
    assert outcome.code == 0, outcome.output
    return outcome, folder, columns


def test_no_model_is_left_out() -> None:
    assert {case.model for case in CASES.values()} == {*MODELS, *RETRIEVERS}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_model_learns_of_their_joint_batches(name: str, trained: Trained) -> None:
    outcome, folder, columns = trained
    before, after = torch.load(folder / f"{name}.pt", weights_only=True)
    reference = Reference(name, before, columns)
    losses = [reference.step(rows) for rows in joint_batches()]
    assert outcome.results[name]["losses"] == pytest.approx(losses, abs=CLOSE)
    assert outcome.results[name]["sharding"] == {table: SHARDING[table] for table in reference.tables}
    expected = {table: weight.detach() for table, weight in reference.tables.items()}
    assert furthest(after["tables"], expected) < CLOSE
    for of_rank in after["dense"]:
        assert furthest(of_rank, reference.model.state_dict()) < CLOSE
    moved = reference.tables.keys() | reference.model.state_dict().keys()
    still = {key for key in moved if torch.equal(*(start_or_end(key, weights) for weights in (before, after)))}
    assert still == set()  # else equal weights would mean nothing


def start_or_end(key: str, weights: dict[str, Any]) -> Tensor:
    return weights["tables"][key] if key in weights["tables"] else weights["dense"][0][key]


def joint_batches() -> list[list[int]]:
    """The rows of each step, of all ranks: rank r reads its share of the file in order."""
    starts = range(0, SHARES[1][1] - SHARES[1][0], BATCH)
    epoch = [[row for low, high in SHARES for row in range(low + at, min(low + at + BATCH, high))] for at in starts]
    assert any(len(rows) % 2 for rows in epoch), "in some step ranks must have unequal numbers of rows"
    assert sorted(row for rows in epoch for row in rows) == list(range(SHARES[1][1]))
    return epoch * EPOCHS


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((abs(found[key] - expected[key]).max().item() for key in found), default=0.0)


class Reference:
    """All tables whole, all rows of a step in one batch."""

    def __init__(self, name: str, start: dict[str, Any], columns: dict[str, Any]):
        self.case, self.columns, self.sequences = CASES[name], columns, histories_of(name)
        self.tables = {table: weight.clone().requires_grad_() for table, weight in start["tables"].items()}
        self.model = whole_model(self.case, self.sequences)
        self.model.load_state_dict(start["dense"][0])
        by_sgd = [weight for table, weight in self.tables.items() if OPTIMIZERS[table] == "sgd"]
        by_adagrad = [weight for table, weight in self.tables.items() if OPTIMIZERS[table] == "adagrad"]
        self.optimizers = [
            torch.optim.SGD([*by_sgd, *self.model.parameters()], lr=LR),
            torch.optim.Adagrad(by_adagrad, lr=LR, eps=1e-8),
        ]

    def step(self, rows: list[int]) -> float:
        """Learn from these rows of the log; returns their loss."""
        loss = (self.column("weight", rows) * self.losses(rows)).sum() / len(rows)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def losses(self, rows: list[int]) -> Tensor:
        """(len(rows),)."""
        if self.case.retrieval is not None:
            query, item = (self.embed(rows, side) for side in ("query", "item"))
            items = torch.tensor(self.columns["item"][rows])
            return retrieval_losses(self.model.query(query), self.model.item(item), items, **self.case.retrieval)  # type: ignore[operator]
        logits = self.model(self.embed(rows))
        click = F.binary_cross_entropy_with_logits(logits[:, 0], self.column("click", rows), reduction="none")
        stars = (logits[:, 1] - self.column("stars", rows)) ** 2
        return TASK_WEIGHTS[0] * click + TASK_WEIGHTS[1] * stars

    def embed(self, rows: list[int], side: str | None = None) -> Embedded:
        """The model's inputs; of a retriever, of one side."""

        def wanted(feature: str) -> bool:
            return side is None or side == side_of(self.case, feature)

        numbers = [self.column(feature, rows) for feature in self.case.dense if wanted(feature)]
        return Embedded(
            torch.stack(numbers, dim=1) if numbers else torch.zeros(len(rows), 0),
            {feature: self.pool(feature, rows) for feature in self.case.sparse if wanted(feature)},
            {feature: self.jagged(feature, rows) for feature in self.sequences if wanted(feature)},
        )

    def pool(self, feature: str, rows: list[int]) -> Tensor:
        """(len(rows), DIM): the sum or the mean of each row's vectors, 0 where it has none."""
        ids = [np.atleast_1d(np.asarray(self.columns[feature][row], dtype=np.int64)) for row in rows]
        by = [max(1, len(i)) if POOLING[feature] == "mean" else 1 for i in ids]
        return torch.stack([self.tables[TABLE_OF[feature]][i].sum(0) / n for i, n in zip(ids, by, strict=True)])

    def jagged(self, feature: str, rows: list[int]) -> Jagged:
        lists = [self.columns[feature][row] for row in rows]
        ids = torch.tensor([i for one in lists for i in one], dtype=torch.int64)
        return Jagged(self.tables[TABLE_OF[feature]][ids], torch.tensor([0, *map(len, lists)]).cumsum(0))

    def column(self, name: str, rows: list[int]) -> Tensor:
        return torch.tensor(self.columns[name][rows], dtype=torch.float32)


def retrieval_losses(
    query: Tensor,
    item: Tensor,
    items: Tensor,
    loss: str,
    temperature: float = 1.0,
    margin: float = 0.0,
    negative_weight: float = 1.0,
) -> Tensor:
    """Of each row, whose negatives are the items of all other rows but those that are its own item again."""
    scores = query @ item.T / temperature
    positive, others = scores.diagonal(), items.unsqueeze(1) != items

    def mean(values: Tensor) -> Tensor:
        return torch.where(others, values, 0.0).sum(1) / others.sum(1)

    if loss == "softmax":
        own = torch.eye(len(items), dtype=torch.bool)
        return F.cross_entropy(scores.masked_fill(~(others | own), -torch.inf), torch.arange(len(items)), reduction="none")
    if loss == "bpr":
        return mean(-F.logsigmoid(positive.unsqueeze(1) - scores))
    if loss == "bce":
        return -F.logsigmoid(positive) + mean(-F.logsigmoid(-scores))
    return (1 - positive) + negative_weight * mean((scores - margin).clamp(min=0))


def whole_model(case: Case, sequences: tuple[str, ...]) -> torch.nn.Module:
    """The model on one device, its weights as they come."""
    if case.retrieval is None:
        return build(case.model, case.params, spec_of(case, sequences, None))
    sides = RetrieverSpec(spec_of(case, sequences, "query"), spec_of(case, sequences, "item"))
    return build_retriever(case.model, case.params, sides)


def spec_of(case: Case, sequences: tuple[str, ...], side: str | None) -> InputSpec:
    """The shapes of `Reference.embed`."""

    def dims(features: tuple[str, ...]) -> dict[str, int]:
        return {f: DIM for f in features if side is None or side == side_of(case, f)}

    return InputSpec(len(dims(case.dense)), dims(case.sparse), dims(sequences), 0 if side else len(TASK_WEIGHTS))


def side_of(case: Case, feature: str) -> str:
    """Which vector of a retriever a feature goes into."""
    return SIDES.get(feature) or ("item" if feature in case.item_features else "query")
