"""Tables before they are sharded: their first weights, what types a plan may use, what memory there is."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import MagicMock

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    CacheAlgorithm,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from torchrec.distributed.planner.types import PlannerError
from torchrec.modules.embedding_configs import data_type_to_sparse_type
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from distrec import dist
from distrec.config.layout import layout
from distrec.config.schema import Features, SequenceFeature, SparseOptimizer, Table
from distrec.embeddings import plan as plans
from distrec.embeddings import shard, tables
from distrec.embeddings.cluster import Cluster
from distrec.errors import UserError

BIG = Table(rows=tables.BLOCK_ROWS + 200, dim=8)


def filled(table: Table, rows: range, columns: range, seed: int = 3, name: str = "t", dtype: torch.dtype = torch.float32):
    """The initial weights of a shard."""
    weights = torch.full((len(rows), len(columns)), math.nan, dtype=dtype)
    tables.initialize({name: [(weights, rows.start, columns.start)]}, {name: table}, seed)
    return weights


def whole(table: Table, **options: Any) -> torch.Tensor:
    return filled(table, range(table.rows), range(table.dim), **options)


# -- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (range(100), range(8)),
        (range(7, 8), range(4, 8)),
        (range(tables.BLOCK_ROWS - 5, tables.BLOCK_ROWS + 5), range(8)),
        (range(tables.BLOCK_ROWS, tables.BLOCK_ROWS + 200), range(4)),
        (range(1, tables.BLOCK_ROWS + 199), range(4, 8)),
        (range(5, 5), range(8)),
    ],
)
@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_a_shard_holds_its_part_of_the_whole(rows: range, columns: range, init: str) -> None:
    table = BIG.model_copy(update={"init": init})
    expected = whole(table)[rows.start : rows.stop, columns.start : columns.stop]
    assert torch.equal(filled(table, rows, columns), expected)


def test_seed_and_name_give_other_weights_and_the_same_ones_again() -> None:
    small = Table(rows=100, dim=8)
    first = whole(small)
    assert torch.equal(whole(small), first)
    for other in (whole(small, seed=4), whole(small, name="u")):
        assert float((other == first).float().mean()) < 0.01
    assert not torch.equal(whole(BIG)[:200], whole(BIG)[tables.BLOCK_ROWS :]), "blocks of rows must not repeat"


@pytest.mark.parametrize(("scale", "bound"), [(None, 0.02), (0.5, 0.5)])
def test_uniform_fills_its_interval_evenly(scale: float | None, bound: float) -> None:
    values = whole(Table(rows=2500, dim=8, init_scale=scale)).flatten()  # 1/sqrt(2500) = 0.02
    counts = torch.histc(values, bins=10, min=-bound, max=bound)
    assert int(counts.sum()) == 20_000
    assert bool((counts - 2000).abs().max() < 200)  # 4.7 standard deviations


def test_normal_has_its_standard_deviation() -> None:
    values = whole(Table(rows=10_000, dim=8, init="normal", init_scale=0.02)).flatten()
    assert float(values.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(values.mean())) < 0.0003
    assert float((values.abs() < 0.02).float().mean()) == pytest.approx(0.6827, abs=0.008)


def test_half_precision_gets_the_same_numbers_rounded() -> None:
    table = Table(rows=50, dim=8)
    assert torch.equal(whole(table, dtype=torch.float16), whole(table).half())


def test_the_largest_seed_is_taken() -> None:
    assert bool(whole(Table(rows=10, dim=4), seed=2**32 - 1).isfinite().all())


# -- collections -----------------------------------------------------------------------------------------------------

TABLES = {
    "user": Table(rows=50, dim=8),
    "item": Table(rows=40, dim=4),
    "tag": Table(rows=30, dim=16, precision="fp16"),
}
FEATURES = Features.model_validate(
    {
        "sparse": [
            {"name": "user", "table": "user"},
            {"name": "item", "table": "item"},
            {"name": "tags", "table": "tag", "pooling": "mean"},
        ],
        "sequence": [{"name": "history", "table": "item", "max_length": 4}],
    }
)


def test_each_table_lives_in_one_collection_on_meta() -> None:
    built = tables.build(layout(FEATURES, TABLES), TABLES)
    assert built.bags is not None
    assert built.sequences is not None
    assert tables.table_names(built) == {
        "bags.embedding_bags.user.weight": "user",
        "bags.embedding_bags.tag.weight": "tag",
        "sequences.embeddings.item.weight": "item",
    }
    weights = built.state_dict()
    assert all(weight.is_meta for weight in weights.values())
    assert weights["bags.embedding_bags.tag.weight"].shape == (30, 16)
    assert weights["bags.embedding_bags.tag.weight"].dtype == torch.float16
    only_bags = tables.build(layout(Features(sparse=FEATURES.sparse[:1]), TABLES), TABLES)
    assert only_bags.sequences is None


# -- which sharding types --------------------------------------------------------------------------------------------


def allowed(
    default: tuple[str, ...] = (),
    optimizer: str = "adagrad",
    decay: float = 0.0,
    device: str = "cpu",
    pooled: str = "sum",
    every_row: bool = False,
    **of_user: Any,
) -> dict[str, list[str]]:
    features = FEATURES.model_copy(update={"sparse": tuple(f.model_copy(update={"pooling": pooled}) for f in FEATURES.sparse)})
    declared = TABLES | {"user": TABLES["user"].model_copy(update=of_user)}
    sparse = SparseOptimizer(name=optimizer, weight_decay=decay, every_row=every_row)  # type: ignore[arg-type]
    return plans.allowed_types(layout(features, declared), declared, default, sparse, device)


ALL = {"data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"}
UNPOOLED = {"data_parallel", "table_wise", "row_wise", "column_wise"}
SPLIT = {"column_wise", "table_column_wise", "grid_shard"}


@pytest.mark.parametrize(
    ("options", "user", "item"),
    [
        ({"device": "cuda"}, ALL, UNPOOLED),
        ({"device": "cpu"}, ALL, UNPOOLED),
        ({"device": "cpu", "optimizer": "adam"}, {"data_parallel"}, {"data_parallel"}),
        ({"device": "cuda", "optimizer": "rowwise_adagrad"}, ALL - SPLIT, UNPOOLED - SPLIT),
        ({"device": "cuda", "optimizer": "rowwise_adagrad", "decay": 0.1}, ALL - SPLIT, UNPOOLED - SPLIT),
        ({"device": "cuda", "optimizer": "adam", "every_row": True}, {"data_parallel"}, {"data_parallel"}),
        ({"device": "cuda", "pooled": "mean"}, ALL, UNPOOLED),
        ({"device": "cuda", "default": ("row_wise", "table_wise")}, {"row_wise", "table_wise"}, {"row_wise", "table_wise"}),
        ({"device": "cuda", "default": ("row_wise",), "sharding": ("table_wise",)}, {"table_wise"}, {"row_wise"}),
        ({"device": "cuda", "optimizer": "rowwise_adagrad", "sharding": ("grid_shard", "row_wise")}, {"row_wise"}, None),
    ],
)
def test_what_the_planner_may_choose_from(options: dict[str, Any], user: set[str], item: set[str] | None) -> None:
    found = allowed(**options)
    assert set(found["user"]) == user
    assert item is None or set(found["item"]) == item


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"optimizer": "rowwise_adagrad", "sharding": ("column_wise",)},
            ["table 'user': column_wise would change the result", "averages over", "use data_parallel or table_wise"],
        ),
        (
            {"default": ("table_row_wise",)},
            ["table 'item': it serves unpooled lookups, which cannot be sharded table_row_wise"],
        ),
        (
            {"optimizer": "rowwise_adagrad", "decay": 0.1, "sharding": ("row_wise",)},
            ["table 'user': FBGEMM has no cpu kernel", "with weight_decay on it sharded row_wise; use data_parallel, or"],
        ),
        (
            {"optimizer": "adam", "every_row": True, "device": "cuda", "sharding": ("row_wise",)},
            ["table 'user': FBGEMM has no cuda kernel for adam with every_row on it sharded row_wise; use data_parallel, or"],
        ),
        (
            {"optimizer": "adam", "sharding": ("row_wise",)},
            ["table 'user': FBGEMM has no cpu kernel for adam on it sharded row_wise; use data_parallel, or another optimizer"],
        ),
    ],
)
def test_a_type_that_cannot_be_is_refused_with_those_that_can(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        allowed(**options)
    for part in words:
        assert part in str(caught.value)


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    dist.start("cpu")
    yield
    dist.stop()


def plan(memory: int, declared: dict[str, Table], **types: list[str]):
    features = layout(FEATURES, declared)
    model = tables.build(features, declared)
    optimizer = SparseOptimizer()
    shard.fuse(model, declared, optimizer)
    kinds = plans.allowed_types(features, declared, (), optimizer, "cpu") | types
    return plans.make_plan(model, kinds, declared, Cluster(1, 1, "cpu", memory), batch_size=8)


@pytest.mark.usefixtures("alone")
def test_a_plan_follows_its_types_and_is_described() -> None:
    made = plan(2**33, TABLES, user=["data_parallel"], tag=["row_wise"], item=["table_wise"])
    assert plans.describe(made, TABLES) == [
        ("item", "40 x 4", "table_wise", "fused", "0", "640 B"),
        ("tag", "30 x 16", "row_wise", "fused", "0", "960 B"),
        ("user", "50 x 8", "data_parallel", "dense", "all", "1.6 KB"),
    ]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("decay", [0.25, 0.0])
def test_a_fused_kernel_is_given_the_weight_decay(decay: float) -> None:
    """What it does with it is looked at on a GPU, in tests/programs/sharding.py: the CPU's does nothing."""
    declared = {"user": TABLES["user"]}
    features = layout(Features(sparse=FEATURES.sparse[:1]), declared)
    model, update = tables.build(features, declared), SparseOptimizer(weight_decay=decay)
    shard.fuse(model, declared, update)
    made = plans.make_plan(model, {"user": ["table_wise"]}, declared, Cluster(1, 1, "cpu", 2**33), batch_size=8)
    [kernel] = shard.fused_kernels(shard.shard(model, made, torch.device("cpu")))
    given = kernel.optimizer_args
    assert kernel.bounds_check_mode_int == BoundsCheckMode.NONE.value  # the reader has checked the ids
    found = given.weight_decay, given.weight_decay_mode
    assert found == ((decay, WeightDecayMode.L2.value) if decay else (0.0, WeightDecayMode.NONE.value))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("lengths", [[2, 0, 3, 1, 1, 1, 0, 0, 4], [0] * 9])
def test_replicated_tables_are_looked_up_one_row_an_id(precision: str, lengths: list[int]) -> None:
    """What FBGEMM has no CPU kernel for. `a` and `c` share the first table."""
    declared = {name: Table(rows=rows, dim=4, precision=precision) for name, rows in [("first", 30), ("second", 20)]}  # type: ignore[arg-type]
    named = {"a": "first", "c": "first", "b": "second"}
    sequence = [SequenceFeature(name=name, table=table, max_length=5) for name, table in named.items()]
    model = tables.build(layout(Features(sequence=sequence), declared), declared)
    shard.fuse(model, declared, SparseOptimizer(name="sgd"))
    everywhere = {name: ["data_parallel"] for name in declared}
    made = plans.make_plan(model, everywhere, declared, Cluster(1, 1, "cpu", 2**33), batch_size=3)
    sharded = shard.shard(model, made, torch.device("cpu"))
    weights = {name: parts[0][0] for name, parts in shard.local_shards(sharded).items()}
    tables.initialize(shard.local_shards(sharded), declared, seed=0)
    ids = [torch.randint(0, declared[table].rows, (sum(lengths[3 * i : 3 * i + 3]),)) for i, table in enumerate(named.values())]
    batch = KeyedJaggedTensor(list(named), torch.cat(ids), lengths=torch.tensor(lengths, dtype=torch.int32))
    found = sharded.module.sequences(batch).wait()  # type: ignore[union-attr,operator]
    for (name, table), own in zip(named.items(), ids, strict=True):
        assert found[name].values().dtype == torch.float32
        assert torch.equal(found[name].values(), weights[table][own].float())
        assert found[name].lengths().tolist() == lengths[3 * list(named).index(name) :][:3]


@pytest.mark.usefixtures("alone")
def test_tables_that_do_not_fit_are_named_with_what_they_need() -> None:
    declared = TABLES | {"user": Table(rows=30_000_000, dim=128)}
    with pytest.raises(UserError) as caught:
        plan(2**33, declared)
    told = str(caught.value)
    assert "weights of 14.3 GB" in told  # 30e6 x 128 x 4 / 2^30
    assert "on 1 rank with 8.0 GB" in told
    assert "The largest: user: 30,000,000 x 128 fp32 = 14.3 GB; tag: 30 x 16 fp16 = 960 B; item" in told
    assert "embedding.memory" in told
    assert not isinstance(caught.value.__cause__, PlannerError)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("12GB", 12 * 2**30), ("1.5 gb", 3 * 2**29), (" 10MB ", 10 * 2**20), ("1KB", 1024), ("2TB", 2**41)],
)
def test_a_setting_is_a_size_for_each_rank(setting: str, expected: int) -> None:
    assert plans.rank_memory(setting, torch.device("cpu"), local_world=4) == expected


def test_without_a_setting_ranks_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_free_host_memory", lambda: 1000)
    assert plans.rank_memory(None, torch.device("cpu"), local_world=4) == 250
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    assert plans.rank_memory(None, torch.device("cuda", 0), local_world=4) == 700


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        (None, None, 8 * 2**20),
        ("max", "5", 8 * 2**20),
        (str(2**20), "24", 2**20 - 24),
        (str(2**40), "0", 8 * 2**20),
        ("10", "20", 0),
    ],
)
def test_a_container_may_have_less_than_its_machine(tmp_path: Path, limit: str | None, used: str | None, expected: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemFree:        100 kB\nMemAvailable:    8192 kB\n")
    if limit is not None and used is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
    assert plans._free_host_memory(proc=tmp_path, cgroup=tmp_path) == expected


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (3.2 * 2**30, "3.2 GB"), (5 * 2**50, "5120.0 TB")]
)
def test_bytes_for_people(count: float, said: str) -> None:
    assert plans.human_bytes(count) == said


def test_the_bytes_of_a_table() -> None:
    assert [plans.table_bytes(Table(rows=10, dim=8, precision=p)) for p in ("fp32", "fp16")] == [320, 160]  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", get_args(Table.model_fields["precision"].annotation))
def test_weights_have_a_type_that_kernels_on_a_gpu_are_made_for(precision: str) -> None:
    """FBGEMM's refuse others when they are built, whether they have a cache or not."""
    kernel = MagicMock(use_cpu=False, current_device=torch.device("cpu"))
    kind = data_type_to_sparse_type(tables.DATA_TYPES[precision])
    none = SimpleNamespace(total_cache_hash_size=0)
    SplitTableBatchedEmbeddingBagsCodegen._apply_cache_state(kernel, none, CacheAlgorithm.LRU, 0.1, 0, 0.0, kind)
