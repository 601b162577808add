"""What each query is scored against, and what is taken from the scores, against loops in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from single_rank import alone
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from distrec.batch import Batch, Position
from distrec.config.retrieval import Retrieval
from distrec.retrieval.candidates import NOT_IN, Candidates, Pool, Scores
from distrec.retrieval.frequency import Frequency

ITEMS, ROWS, DIM = 9, 5, 4
OWN = [3, 1, 3, 7, -1]  # the last row is padding
SHARED, PRIVATE, COLUMN = (
    [0, 3, 8, 8, 1, 5],
    [[1, 4], [1, 1], [2, 3], [7, 0], [5, 5]],
    [[6, -1], [1, 2], [0, 0], [5, 5], [-1, -1]],
)
OTHERS = [[0, 1], [], [8, 2], [5], []]


@pytest.fixture(scope="module", autouse=True)
def ranks():
    with alone() as found:
        yield found


def retrieval(negatives: dict[str, Any], **keys: Any) -> Retrieval:
    return Retrieval.model_validate({"items": "x", "item_features": ["item"], "negatives": negatives} | keys)


def draws(wanted: dict[str, Any]) -> int:
    """Items drawn for several rows, of which groups of `shared_by` have `sampled` each."""
    return wanted.get("sampled", 0) * math.ceil(ROWS / wanted.get("shared_by", ROWS))


def all_scores(pool: Pool) -> Scores:
    return pool.scores(slice(0, len(pool.query)), pool.parts, pool.shared)


def batch(wanted: dict[str, Any]) -> Batch:
    """Queries, and the extra rows that a config's negatives ask for."""
    keys = [*OWN, *SHARED[: draws(wanted)]]
    keys += [key for row in PRIVATE for key in row[: wanted.get("per_row", 0)]]
    keys += [key for row in COLUMN for key in row[: wanted.get("column_length", 0)]]
    lists = KeyedJaggedTensor(
        [NOT_IN],
        torch.tensor([item for row in OTHERS for item in row]),
        lengths=torch.tensor([len(row) for row in OTHERS], dtype=torch.int32),
    )
    empty = torch.zeros(len(keys), 0)
    return Batch(
        dense=empty,
        sparse=None,
        sequence=None,
        labels=empty,
        weights=torch.ones(len(keys)),
        normalizer=torch.tensor(1.0),
        groups=None,
        position=Position(),
        queries=ROWS,
        items=torch.tensor(keys),
        lists=lists if "not_in" in wanted else None,
    )


def negatives_of(row: int, wanted: dict[str, Any]) -> list[int]:
    """Rows of the batch whose items are negatives of a query."""
    sampled, per_row, length = (wanted.get(name, 0) for name in ("sampled", "per_row", "column_length"))
    group = row // wanted.get("shared_by", ROWS)
    places = [*range(ROWS)] * wanted.get("in_batch", True) + [ROWS + group * sampled + i for i in range(sampled)]
    places += [ROWS + draws(wanted) + row * per_row + i for i in range(per_row)]
    places += [ROWS + draws(wanted) + ROWS * per_row + row * length + i for i in range(length)]
    keys = batch(wanted).items.tolist()  # type: ignore[union-attr]
    left_out = {-1, OWN[row], *(OTHERS[row] if "not_in" in wanted else [])}
    return [place for place in places if keys[place] not in left_out]


def vectors(rows: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, DIM, generator=g), torch.randn(rows, DIM, generator=g)


WANTED: dict[str, dict[str, Any]] = {
    "in batch": {},
    "sampled": {"in_batch": False, "sampled": 4},
    "of two rows each": {"in_batch": False, "sampled": 2, "shared_by": 2},
    "of five rows each": {"in_batch": False, "sampled": 4, "shared_by": 5},
    "of more rows than there are": {"in_batch": False, "sampled": 4, "shared_by": 7},
    "of each row": {"in_batch": False, "per_row": 2},
    "of each row, not others": {"in_batch": False, "per_row": 2, "not_in": "others"},
    "a column": {"in_batch": False, "column": "c", "column_length": 2},
    "all": {"sampled": 4, "per_row": 2, "column": "c", "column_length": 2},
    "all but others": {"sampled": 4, "per_row": 2, "column": "c", "column_length": 2, "not_in": "others"},
}
WANTED["all, of three rows each, but others"] = WANTED["all but others"] | {"sampled": 3, "shared_by": 3}


@pytest.mark.parametrize("name", WANTED)
def test_a_query_is_scored_against_every_item_that_it_should_be(name: str) -> None:
    wanted = WANTED[name]
    given = batch(wanted)
    query, item = vectors(len(given.weights))
    pool = Candidates(retrieval(wanted, log_q=False, temperature=0.5), None, torch.ones(ITEMS))(given, query, item)
    scored = all_scores(pool)
    for row in range(ROWS):
        found = scored.negative[row][~scored.excluded[row]]
        expected = [float(query[row] @ item[place]) / 0.5 for place in negatives_of(row, wanted)]
        assert sorted(found.tolist()) == pytest.approx(sorted(expected), rel=1e-5), row
        assert float(scored.positive[row]) == pytest.approx(float(query[row] @ item[row]) / 0.5, rel=1e-5)


@pytest.mark.parametrize(("name", "size"), [("all but others", 1), ("all, of three rows each, but others", 3)])
def test_parts_of_the_queries_have_the_same_scores(name: str, size: int) -> None:
    wanted = WANTED[name]
    given = batch(wanted)
    pool = Candidates(retrieval(wanted, log_q=False), Frequency(ITEMS, 99), torch.ones(ITEMS))(
        given, *vectors(len(given.weights))
    )
    whole = all_scores(pool)
    for here in [slice(0, 1), slice(1, 2)] if size > 1 else [slice(0, 1), slice(1, 4), slice(4, 9)]:
        parts = pool.scores(here, [part[here] for part in pool.parts], pool.shared)
        for part, all_of_it in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, all_of_it[here.start * size : here.stop * size])


@pytest.mark.parametrize("shared_by", [None, 3])
@pytest.mark.parametrize("in_batch", [True, False])
def test_the_log_of_the_expected_count_is_taken_from_each_score(in_batch: bool, shared_by: int | None) -> None:
    sampled = 4 if shared_by is None else 3
    wanted = {"in_batch": in_batch, "sampled": sampled, "per_row": 2} | ({"shared_by": shared_by} if shared_by else {})
    drawn = torch.arange(1.0, ITEMS + 1)
    drawn /= drawn.sum()
    counts = torch.tensor([5.0, 1, 0, 20, 3, 0, 0, 9, 2])
    frequency = Frequency(ITEMS, 99)
    frequency.expect(counts, ROWS)
    given = batch(wanted)
    query, item = vectors(len(given.weights))
    config = retrieval(wanted, temperature=1.0)
    plain = Candidates(config, None, drawn)(given, query, item)
    corrected = Candidates(config, frequency, drawn)(given, query, item)
    share = ((counts + 1) / (counts + 1).sum()).tolist()
    plain_scores, scores = (all_scores(pool) for pool in (plain, corrected))

    def expected(key: int) -> float:
        """4 rows are real; some draws are shared and 2 are a query's own."""
        return 4 * share[key] * in_batch + (sampled + 2) * float(drawn[key])

    # candidates as `Pool` has them: shared ones (the rows' own, then the draws), then each query's own
    first = [sampled * (row // (shared_by or ROWS)) for row in range(ROWS)]
    keys = [([*OWN] if in_batch else []) + SHARED[first[row] :][:sampled] + PRIVATE[row] for row in range(ROWS)]
    for row in range(ROWS - 1):
        taken = plain_scores.negative[row] - scores.negative[row]
        for key, found in zip(keys[row], taken.tolist(), strict=True):
            if key >= 0:
                assert found == pytest.approx(math.log(expected(key)), abs=1e-4)
        assert float(plain_scores.positive[row] - scores.positive[row]) == pytest.approx(math.log(expected(OWN[row])), abs=1e-4)


def test_a_batch_is_counted_after_it_was_corrected_and_padding_is_not() -> None:
    frequency = Frequency(ITEMS, 99)
    frequency.expect(torch.ones(ITEMS), ROWS)
    candidates = Candidates(retrieval({}), frequency, torch.ones(ITEMS) / ITEMS)
    before = frequency.share(torch.arange(ITEMS))
    candidates(batch({}), *vectors(ROWS))
    assert int(frequency.clock) == 4
    after = frequency.share(torch.arange(ITEMS))
    assert after[3] > before[3]  # twice in the batch
    assert torch.equal(after[[0, 2, 8]], before[[0, 2, 8]])


def test_the_margin_of_ccl_is_a_cosine_so_temperature_leaves_it_alone() -> None:
    query, item = vectors(ROWS)
    pool = Candidates(retrieval({}, loss="ccl", temperature=0.01), None, torch.ones(ITEMS))(batch({}), query, item)
    assert torch.equal(pool.query.flatten(0, 1), query)
