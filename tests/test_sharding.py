"""Sharded equals whole: forward, and after updates, for every sharding type and optimizer, and any two types side by side."""

import itertools

import pytest

KINDS = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "adam_every_row")
COLUMNS_SPLIT = {"column_wise", "table_column_wise", "grid_shard"}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "optimizer"), list(itertools.product(KINDS, OPTIMIZERS)))
def test_a_sharded_model_learns_what_a_whole_one_learns(sharding_on, world: int, kind: str, optimizer: str) -> None:
    outcome = sharding_on(world)
    assert outcome.code == 0, outcome.output
    found = outcome.results[f"{kind}/{optimizer}"]
    if optimizer == "rowwise_adagrad" and kind in COLUMNS_SPLIT:
        assert "would change the result" in found["refused"]
        return
    if optimizer.startswith("adam") and kind != "data_parallel":  # FBGEMM has no Adam on CPU, and none for every row
        assert "no cpu kernel for adam" in found["refused"]
        assert "use data_parallel" in found["refused"]
        return
    assert kind in found["used"].split(",")
    assert found["logits"] < 2e-6, found
    assert found["rows"] < 2e-6, found


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(KINDS, 2)))
def test_tables_that_lie_differently_do_not_disturb_each_other(sharding_on, world: int, one: str, other: str) -> None:
    """One is pooled by its sum, the other by its mean."""
    outcome = sharding_on(world)
    assert outcome.code == 0, outcome.output
    found = outcome.results[f"{one}+{other}/adagrad"]
    assert {one, other} <= {*found["used"].split(",")}
    assert found["logits"] < 2e-6, found
    assert found["rows"] < 2e-6, found
