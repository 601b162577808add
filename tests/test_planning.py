"""What a plan takes: bytes counted by hand, times that follow bandwidths, and ways out that lead out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from distrec.config.layout import layout
from distrec.config.load import parse
from distrec.config.schema import Config, DenseOptimizer, Features, Table
from distrec.config.words import Section
from distrec.embeddings.cluster import Bandwidths, Cluster
from distrec.embeddings.estimate import imbalance
from distrec.embeddings.plan import DoesNotFit, rank_ranges
from distrec.errors import UserError
from distrec.planner.footprint import PROBE_ROWS, footprint
from distrec.planner.planning import Machines, differences, make, summary
from distrec.planner.ways_out import find_ways_out

MB, GB = 2**20, 2**30
BATCH = 128


def config(tables: dict[str, dict], *overrides: str, **sections: Any) -> Config:
    """One pooled feature a table, and a model that is nearly nothing."""
    return parse(
        {
            "name": "planned",
            "data": {"train": "none", "batch_size": BATCH},
            "tables": tables,
            "features": {"dense": ["x"], "sparse": [{"name": f"{name}_id", "table": name} for name in tables]},
            "model": {"name": "deepfm", "params": {"mlp": [4]}},
            "optimizer": {"sparse": {"name": "rowwise_adagrad"}},
        }
        | sections,
        overrides,
    )


def machines(nodes: int = 1, ranks: int = 2, memory: int = GB, device: str = "cuda", **rest: Any) -> Machines:
    return Machines(nodes, ranks, device, memory, rest.pop("host_memory", 100 * GB), **rest)


# -- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "weights", "state"),
    [
        ({"optimizer": {"name": "rowwise_adagrad"}}, 1000 * 16 * 4, 1000 * 4),
        ({"optimizer": {"name": "adagrad"}}, 1000 * 16 * 4, 1000 * 16 * 4),
        ({"optimizer": {"name": "adam"}}, 1000 * 16 * 4, 2 * 1000 * 16 * 4),
        ({"optimizer": {"name": "sgd"}}, 1000 * 16 * 4, 0),
        ({"optimizer": {"name": "adagrad"}, "precision": "fp16"}, 1000 * 16 * 2, 1000 * 16 * 4),
        ({"optimizer": {"name": "rowwise_adagrad"}, "precision": "fp16"}, 1000 * 16 * 2, 1000 * 4),
    ],
)
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
def test_weights_and_state_are_counted_by_rank(table: dict, weights: int, state: int, sharding: str) -> None:
    found = make(config({"t": {"rows": 1000, "dim": 16, "sharding": sharding} | table}), machines()).estimate
    share = {"table_wise": (1, 0), "row_wise": (0.5, 0.5), "data_parallel": (1, 1)}[sharding]
    assert sorted((load.weights for load in found.bytes), reverse=True) == [weights * part for part in share]
    assert sorted((load.optimizer for load in found.bytes), reverse=True) == [state * part for part in share]
    gradient = weights if sharding == "data_parallel" else 0
    assert [load.gradients for load in found.bytes] == [gradient] * 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lookups_are_ids_and_vectors_of_all_ranks_rows(precision: str) -> None:
    """A table-wise table on one of two ranks: both ranks' rows, 3 ids of 8 bytes and one fp32 vector a row."""
    run = config(
        {"t": {"rows": 1000, "dim": 16, "sharding": "table_wise", "precision": precision}}, "features.sparse.0.pooling_factor=3"
    )
    loads = make(run, machines()).estimate.bytes
    assert sorted(load.lookups for load in loads) == [0, 2 * BATCH * (3 * 8 + 16 * 4)]


def test_a_cached_table_lies_on_the_host_with_a_share_of_its_rows_on_the_gpu() -> None:
    planned = make(config({"t": {"rows": 10_000, "dim": 64, "cache": 0.25, "sharding": "table_wise"}}), machines())
    [table] = planned.estimate.tables
    assert table.kernel == "fused_uvm_caching"
    assert table.bytes.weights == 10_000 * 64 * 4 / 4
    assert table.bytes.host == pytest.approx(10_000 * (64 * 4 + 4), rel=1e-3)
    [sharding] = [s for part in planned.plan.plan.values() for s in part.values()]  # type: ignore[attr-defined]
    assert sharding.cache_params.load_factor == 0.25
    plain = make(config({"t": {"rows": 10_000, "dim": 64, "sharding": "table_wise"}}), machines())
    assert table.time.total > plain.estimate.tables[0].time.total


def test_a_cache_is_refused_without_a_gpu_and_counts_host_memory() -> None:
    run = config({"t": {"rows": 10_000_000, "dim": 64, "cache": 0.1}})
    with pytest.raises(UserError, match=r"table 't': a cache on the GPU needs one; remove tables\.t\.cache"):
        make(run, machines(device="cpu"))
    with pytest.raises(DoesNotFit, match=r"short of 1.* GB of host memory"):
        make(run, machines(host_memory=GB // 2))


def test_column_shards_cut_the_dim() -> None:
    table = {"rows": 1000, "dim": 64, "sharding": "column_wise", "column_shards": 2, "optimizer": {"name": "adagrad"}}
    planned = make(config({"t": table}), machines(ranks=2))
    assert [load.weights for load in planned.estimate.bytes] == [1000 * 32 * 4] * 2
    with pytest.raises(UserError, match="column_shards = 32 does not cut dim = 64 into multiples of 4 columns"):
        config({"t": table | {"column_shards": 32}})


@pytest.mark.parametrize(("dim", "widest"), [(128, 32), (64, 32), (16, 8), (8, 4), (4, 4)])
def test_otherwise_shards_are_as_wide_as_a_lookup_is_worth(dim: int, widest: int) -> None:
    table = {"rows": 1000, "dim": dim, "sharding": "column_wise", "optimizer": {"name": "adagrad"}}
    planned = make(config({"t": table}), machines(ranks=4))
    assert max(load.weights for load in planned.estimate.bytes) == 1000 * widest * 4
    assert sum(load.weights > 0 for load in planned.estimate.bytes) == dim // widest


def test_a_part_of_a_gpu_is_kept_free_and_none_of_a_host() -> None:
    assert Cluster(2, 2, "cuda", 1000, dense=100).for_tables == 750
    assert Cluster(2, 2, "cpu", 1000, dense=100).for_tables == 900


# -- the dense part --------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """x (B, 32) -> relu (B, 16) -> (B, 1): small enough to say by hand what is alive when."""

    class Params(Section):
        """None."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 16), nn.Linear(16, 1)

    def forward(self, inputs: Any) -> torch.Tensor:
        return self.last(torch.relu(self.first(inputs.pooled["f"])))


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (DenseOptimizer(name="adam"), 2),
        (DenseOptimizer(name="adagrad"), 1),
        (DenseOptimizer(name="sgd"), 0),
        (DenseOptimizer(name="sgd", momentum=0.9), 1),
    ],
)
def test_parameters_gradients_and_state_of_the_dense_part(optimizer: DenseOptimizer, slots: int) -> None:
    features = layout(Features(sparse=({"name": "f", "table": "t"},)), {"t": Table(rows=9, dim=32)})  # type: ignore[arg-type]
    found = footprint(Chain(), features, optimizer, batch_size=10 * PROBE_ROWS, tasks=1)
    weights = 4 * (32 * 16 + 16 + 16 + 1)
    assert (found.parameters, found.gradients, found.optimizer) == (weights, weights, slots * weights)
    assert found.received == 10 * PROBE_ROWS * 4 * 32
    # in backward, when the gradient of `first`'s output has been made: x, that of relu's output, and relu's own
    at_least, at_most = 32 + 16 + 16, 32 + 3 * 16 + 2 + 32
    assert at_least <= found.activations / (4 * 10 * PROBE_ROWS) <= at_most


def test_a_model_is_not_changed_by_being_looked_at() -> None:
    model = Chain()
    model.last = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))  # type: ignore[assignment]
    features = layout(Features(sparse=({"name": "f", "table": "t"},)), {"t": Table(rows=9, dim=32)})  # type: ignore[arg-type]
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    footprint(model, features, DenseOptimizer(), 8, 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


# -- time ------------------------------------------------------------------------------------------------------------


def exchange(nodes: int, ranks: int, **speed: float) -> float:
    run = config({"t": {"rows": 100_000, "dim": 128, "sharding": "table_wise"}}, "data.batch_size=4096")
    return max(t.exchange for t in make(run, machines(nodes, ranks, bandwidths=Bandwidths(**speed))).estimate.time)


def test_an_exchange_takes_as_long_as_its_links_are_slow() -> None:
    within = exchange(1, 4, intra=100 * GB, inter=10 * GB)
    assert within == pytest.approx(4 * 4096 * 128 * 4 / (100 * GB) * 1000)  # all ranks' vectors, ms
    assert exchange(1, 4, intra=50 * GB, inter=10 * GB) == pytest.approx(2 * within)
    assert exchange(1, 4, intra=100 * GB, inter=5 * GB) == pytest.approx(within)
    assert exchange(4, 1, intra=100 * GB, inter=10 * GB) == pytest.approx(10 * within)


def test_a_lookup_takes_as_long_as_the_memory_is_slow() -> None:
    run = config({"t": {"rows": 100_000, "dim": 128, "sharding": "table_wise"}})
    fast, slow = (
        max(t.lookup for t in make(run, machines(bandwidths=Bandwidths(device=s * GB))).estimate.time) for s in (800, 400)
    )
    assert slow == pytest.approx(2 * fast)


def test_imbalance_is_the_largest_over_the_mean() -> None:
    assert imbalance([4, 1, 1, 2]) == 2.0
    assert imbalance([0, 0]) == 1.0
    planned = make(config({"t": {"rows": 1000, "dim": 16, "sharding": "table_wise"}}), machines(ranks=4))
    assert summary(planned)["imbalance"] == {"bytes": 4.0, "time": 4.0}


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_a_table_too_large_for_a_rank_is_named_with_what_it_lacks() -> None:
    run = config({"user": {"rows": 4 * MB, "dim": 64, "sharding": "table_wise"}, "tiny": {"rows": 10, "dim": 64}})
    with pytest.raises(DoesNotFit) as caught:
        make(run, machines(memory=GB))
    shortage = caught.value.shortage
    needed = 4 * MB * 64 * 4 + 4 * MB * 4 + 2 * BATCH * (8 + 64 * 4)
    assert (shortage.table, shortage.sharding, shortage.needed) == ("user", "table_wise", needed)
    assert needed - GB < shortage.missing < needed - 0.85 * GB + MB
    assert "Table 'user' needs at least 1.0 GB on one rank (table_wise)" in str(caught.value)


def test_all_ranks_together_too_small_is_said_with_what_they_lack() -> None:
    run = config({"user": {"rows": 8 * MB, "dim": 64}, "item": {"rows": 8 * MB, "dim": 64}})
    with pytest.raises(DoesNotFit, match=r"All ranks together are short of 1\.5 GB of memory for tables") as caught:
        make(run, machines(ranks=2, memory=3 * GB // 2))  # 4.06 GB of weights and state, and 2 x 85 % of 1.5 GB
    assert caught.value.shortage.table is None  # row-wise, a table's part fits on a rank


def test_nothing_left_beside_the_dense_part_is_said() -> None:
    run = config({"t": {"rows": 10, "dim": 64}}, "model.params.mlp=[4096,4096]")
    with pytest.raises(DoesNotFit, match=r"Nothing is left for tables: .* MB more go elsewhere than there is"):
        make(run, machines(memory=64 * MB))


def test_each_way_out_fits_when_planned_anew() -> None:
    run = config({"user": {"rows": 4 * MB, "dim": 64}, "item": {"rows": 2 * MB, "dim": 64}, "tiny": {"rows": 10, "dim": 64}})
    where = machines(ranks=2, memory=3 * GB // 4)
    with pytest.raises(DoesNotFit) as caught:
        make(run, where)
    ways = find_ways_out(run, where, caught.value)
    assert [way.words.split(" ")[0] for way in ways[-1:]] == ["user"]  # rows are given up last
    kinds = {override.partition("=")[0].rsplit(".", 1)[1] for way in ways for override in way.overrides}
    assert kinds == {"precision", "cache", "rows", "ids"}
    for way in ways:
        again = make(parse(run.model_dump(mode="json"), way.overrides), where)
        assert max(again.device_bytes) < where.memory, way.words
    [fewer] = [way for way in ways if "hashed" in way.words]
    cap = next(int(o.partition("=")[2]) for o in fewer.overrides if ".rows=" in o)
    assert f"hashed into {cap:,} rows" in fewer.words
    with pytest.raises(DoesNotFit):  # a cap much larger would not have done
        make(parse(run.model_dump(mode="json"), [o.replace(f"={cap}", f"={cap * 2}") for o in fewer.overrides]), where)


def test_a_table_kept_from_it_may_be_cut_by_columns() -> None:
    run = config({"user": {"rows": 4 * MB, "dim": 64, "sharding": "table_wise", "optimizer": {"name": "sgd"}}})
    where = machines(ranks=4, memory=GB)
    with pytest.raises(DoesNotFit) as caught:
        make(run, where)
    ways = {way.words: way.overrides for way in find_ways_out(run, where, caught.value)}
    assert ways["user column-wise over 2"] == ("tables.user.sharding=column_wise", "tables.user.column_shards=2")


def test_no_way_out_is_invented() -> None:
    run = config({"t": {"rows": 10, "dim": 64}}, "model.params.mlp=[4096,4096]")
    where = machines(memory=64 * MB)
    with pytest.raises(DoesNotFit) as caught:
        make(run, where)
    assert find_ways_out(run, where, caught.value) == []


# -- more than one plan ----------------------------------------------------------------------------------------------


def test_differences_name_the_tables_that_moved() -> None:
    one = make(config({"a": {"rows": 10, "dim": 8, "sharding": "table_wise"}, "b": {"rows": 10, "dim": 8}}), machines())
    two = make(config({"a": {"rows": 10, "dim": 8, "sharding": "row_wise"}, "b": {"rows": 10, "dim": 8}}), machines())
    assert differences(one, one) == []
    assert ("a", "table_wise on 1", "row_wise on 2") in differences(one, two)


def test_more_rows_a_batch_make_a_step_longer() -> None:
    run = config({"t": {"rows": 100_000, "dim": 128, "sharding": "row_wise"}}, "features.sparse.0.pooling_factor=20")
    steps = [make(parse(run.model_dump(mode="json"), [f"data.batch_size={n}"]), machines()).estimate.step for n in (1000, 4000)]
    assert steps[1] == pytest.approx(4 * steps[0], rel=0.05)


def test_ranges_of_ranks() -> None:
    assert rank_ranges([7, 0, 1, 2, 9, 10, 2]) == "0-2,7,9-10"
    assert rank_ranges([]) == ""
    assert math.isclose(imbalance([3]), 1.0)
