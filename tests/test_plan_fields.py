"""The config's fields for clusters: half precision between ranks, prefetching, copies of the tables, half-precision tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Outcome, run_ranks
from single_rank import alone, make
from small_run import write_rows
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from distrec.config.load import parse
from distrec.config.schema import Comms, Config
from distrec.embeddings import shard
from distrec.embeddings.cluster import Bandwidths, Replicas, share_out
from distrec.embeddings.plan import DoesNotFit
from distrec.embeddings.sharders import sharders
from distrec.engine import Engine
from distrec.errors import UserError
from distrec.pipeline import make_pipeline
from distrec.planner import planning
from distrec.planner.planning import Machines, Planned
from distrec.planner.ways_out import find_ways_out

GB = 2**30
BATCH = 4096


def config(*overrides: str, device: str = "auto") -> Config:
    """A pooled table and one for a history."""
    return parse(
        {
            "name": "fields",
            "data": {"train": "none", "batch_size": BATCH},
            "tables": {name: {"rows": 100_000, "dim": 64, "sharding": "row_wise"} for name in ("user", "item")},
            "features": {
                "sparse": [{"name": "u", "table": "user"}],
                "sequence": [{"name": "h", "table": "item", "max_length": 5}],
            },
            "model": {"name": "dlrm", "params": {"top_mlp": [4]}},
            "train": {"device": device},
        },
        overrides,
    )


def plan(*overrides: str, nodes: int = 1, ranks: int = 4, device: str = "cuda", **speed: float) -> Planned:
    machines = Machines(nodes, ranks, device, 8 * GB, 8 * GB, Bandwidths(**speed))
    return planning.make(config(*overrides), machines)


# -- types between ranks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, dict]]]:
    outcome = run_ranks("comms.py", 2, tmp_path_factory.mktemp("comms"))
    assert outcome.code == 0, outcome.output
    return outcome.results


def arrays(sent: dict, case: str, what: str) -> list[tuple[str, np.ndarray]]:
    found = [(name, np.array(value)) for rank in sent[case] for name, value in rank[what].items()]
    return [(name, value) for name, value in found if value.size]


def test_vectors_arrive_rounded_to_fp16_and_no_more(sent: dict) -> None:
    pairs = list(zip(arrays(sent, "table_wise/exact", "vectors"), arrays(sent, "table_wise/forward", "vectors"), strict=True))
    assert {name for (name, _), _ in pairs} == {"a1", "a2", "b1", "history", "target"}
    for (name, exact), (_, half) in pairs:
        assert (half == exact.astype(np.float16)).all(), name
        assert (half != exact).any(), name


def test_vectors_that_ranks_sum_are_rounded_on_the_way(sent: dict) -> None:
    """Row-wise, each of two ranks rounds its part and their sum is rounded: three times half a unit in the last place."""
    for (name, exact), (_, half) in zip(
        arrays(sent, "row_wise/exact", "vectors"), arrays(sent, "row_wise/forward", "vectors"), strict=True
    ):
        assert np.abs(half - exact).max() <= 3 * 2**-11 * np.abs(exact).max(), name
        assert (half != exact).any(), name


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_gradients_are_rounded_when_the_config_says_so(sent: dict, kind: str) -> None:
    assert arrays(sent, f"{kind}/exact", "vectors")[0][1].tolist() == arrays(sent, f"{kind}/backward", "vectors")[0][1].tolist()
    differ = 0.0
    for (name, exact), (_, half) in zip(
        arrays(sent, f"{kind}/exact", "gradients"), arrays(sent, f"{kind}/backward", "gradients"), strict=True
    ):
        assert np.abs(half - exact).max() < 2**-10 * np.abs(exact).max(), name
        differ = max(differ, np.abs(half - exact).max() / np.abs(exact).max())
    assert differ > 2**-13  # fp32 would differ by 2**-24


def test_codecs_are_of_the_types_that_the_config_names() -> None:
    for sharder in sharders(Comms(forward="fp16", backward="bf16"), "cuda"):
        codecs: Any = sharder.qcomm_codecs_registry
        assert set(codecs) == {
            "POOLED_EMBEDDINGS_ALL_TO_ALL",
            "POOLED_EMBEDDINGS_REDUCE_SCATTER",
            "SEQUENCE_EMBEDDINGS_ALL_TO_ALL",
        }
        for codec in codecs.values():
            assert (codec.forward.quantized_dtype, codec.backward.quantized_dtype) == (torch.float16, torch.bfloat16)
    assert [sharder.qcomm_codecs_registry for sharder in sharders(Comms(), "cuda")] == [None, None]


@pytest.mark.parametrize(("way", "part"), [("forward", "exchange"), ("backward", "gradient_exchange")])
def test_half_the_bytes_take_half_the_time(way: str, part: str) -> None:
    whole, half = plan().estimate, plan(f"embedding.comms.{way}=fp16").estimate
    for table in ("user", "item"):
        before, after = (next(getattr(t.time, part) for t in e.tables if t.name == table) for e in (whole, half))
        assert after == pytest.approx(before / 2), table
    others = {"exchange", "gradient_exchange"} - {part}
    assert [getattr(whole.time[0], other) for other in others] == [getattr(half.time[0], other) for other in others]


# -- the pipeline ----------------------------------------------------------------------------------------------------


def test_the_pipeline_is_the_one_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only made, not run: on CPU, TorchRec prefetches nothing and its pipeline refuses. test_caches.py persuades it."""
    monkeypatch.setattr("distrec.engine.needs_a_gpu", lambda _: [])
    monkeypatch.setattr("distrec.config.check._pipeline_faults", lambda _: [])
    for name, kind, told in (
        ("sparse_dist", TrainPipelineSparseDist, False),
        ("prefetch_sparse_dist", PrefetchTrainPipelineSparseDist, True),
    ):
        with alone() as ranks:
            engine = Engine.build(config(f"train.pipeline={name}"), ranks)
            assert type(make_pipeline(engine)) is kind
            assert [kernel.prefetch_pipeline for kernel in shard.fused_kernels(engine.model)] == [told] * 2


def test_prefetching_takes_memory_for_the_ids_of_three_batches() -> None:
    """TorchRec's formula: three batches of ids and seven of those that are fetched, where one is held without prefetching."""
    cached = ["tables.user.cache=0.1", "tables.user.sharding=row_wise"]
    plain, ahead = (plan(*cached, *more).estimate for more in ([], ["train.pipeline=prefetch_sparse_dist"]))
    ids = 8 * BATCH  # an id a row and rank; 4 ranks with a quarter of the rows each
    found = {
        name: [next(t.bytes.lookups for t in e.tables if t.name == name) for e in (plain, ahead)] for name in ("user", "item")
    }
    assert found["user"][1] - found["user"][0] == 4 * ids * (3 + 7 - 1)
    assert found["item"][1] - found["item"][0] == 4 * 5 * ids * (3 - 1)


# -- copies of the tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "local", "replicas", "shared"),
    [
        (8, 8, 1, (8, 8, Replicas(1, 5, True))),
        (8, 8, 4, (2, 2, Replicas(4, 5, True))),
        (16, 8, 2, (8, 8, Replicas(2, 5, False))),
        (16, 8, 4, (4, 4, Replicas(4, 5, False))),
        (32, 8, 2, (16, 8, Replicas(2, 5, False))),
    ],
)
def test_ranks_are_shared_out(world: int, local: int, replicas: int, shared: tuple) -> None:
    assert share_out(world, local, replicas, 5) == shared


@pytest.mark.parametrize(("world", "local", "replicas"), [(8, 8, 3), (24, 8, 2), (12, 6, 3), (4, 4, 8), (6, 6, 4)])
def test_ranks_that_cannot_be_shared_out_are_refused(world: int, local: int, replicas: int) -> None:
    with pytest.raises(
        UserError, match=rf"embedding\.replicas = {replicas} does not share out {world} ranks, {local} a machine"
    ):
        share_out(world, local, replicas, 1)


def test_a_copy_is_planned_as_on_its_own_ranks_alone() -> None:
    copy, alone_there = plan("embedding.replicas=2", nodes=4), plan(nodes=2)
    assert copy.plan.plan.keys() == alone_there.plan.plan.keys()
    assert copy.estimate.bytes == alone_there.estimate.bytes
    for ours, theirs in zip(copy.estimate.time, alone_there.estimate.time, strict=True):
        assert ours._replace(averaging=0.0) == theirs


def ways_out(megabytes: int) -> dict[str, tuple[str, ...]]:
    """For four copies, each on one GPU, of tables that take 50 MB."""
    run = config("embedding.replicas=4", "embedding.sync_every=9", "data.batch_size=64")
    machines = Machines(1, 4, "cuda", megabytes * 2**20, GB)
    with pytest.raises(DoesNotFit) as caught:
        planning.make(run, machines)
    return {way.words: way.overrides for way in find_ways_out(run, machines, caught.value)}


def test_fewer_copies_are_a_way_out() -> None:
    assert ways_out(40)["2 replicas of the tables"] == ("embedding.replicas=2",)


def test_fewer_rows_are_sought_for_what_the_ranks_of_one_copy_have() -> None:
    assert [words for words in ways_out(20) if "hashed into" in words]  # not what all ranks have


@pytest.mark.parametrize(("nodes", "every", "link"), [(1, 1, 100 * GB), (4, 1, 10 * GB), (4, 50, 10 * GB)])
def test_averaging_takes_as_long_as_a_ring_does(nodes: int, every: int, link: float) -> None:
    """Each rank sends 2 (n - 1) / n of its weights and state, here two tables' rows over the ranks of a copy."""
    found = plan(
        "embedding.replicas=4", f"embedding.sync_every={every}", nodes=nodes, intra=100 * GB, inter=10 * GB
    ).estimate.time[0]
    held = 2 * 100_000 * (64 * 4 + 4) / nodes  # 4 nodes of 4 ranks, 4 copies: a copy has as many ranks as there are nodes
    assert found.averaging == pytest.approx(1000 * 2 * 3 / 4 * held / link / every)


def test_what_torchrec_is_told_of_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("distrec.engine.needs_a_gpu", lambda _: [])
    monkeypatch.setattr("distrec.engine.share_out", lambda *asked: told.update(asked=asked) or (4, 2, Replicas(2)))

    class Stop(Exception):
        pass

    def record(**arguments: Any) -> None:
        told.update(arguments)
        raise Stop

    monkeypatch.setattr(shard, "DMPCollection", record)
    with alone() as ranks, pytest.raises(Stop):
        Engine.build(config("embedding.replicas=2", "embedding.sync_every=7", "embedding.comms.forward=fp16"), ranks)
    assert told["asked"] == (1, 1, 2, 7)
    assert (told["world_size"], told["sharding_group_size"], told["node_group_size"]) == (1, 4, 2)
    assert told["use_inter_host_allreduce"] is True  # neighbours, for which the plan was made
    assert told["global_pg"] is not None
    assert all(sharder.qcomm_codecs_registry for sharder in told["sharders"])
    assert {sharding.sharding_type for part in told["plan"].plan.values() for sharding in part.values()} == {"row_wise"}


def test_averaging_takes_its_turn_and_comes_before_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    class Copies:
        calls = 0

        def sync(self) -> None:
            self.calls += 1

    monkeypatch.setattr(shard, "DMPCollection", Copies)
    model: Any = Copies()
    averaging, counts = shard.Averaging(model, every=3), []
    for step in range(1, 8):
        averaging.after(step)
        counts.append(model.calls)
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    averaging.now(7)
    averaging.now(7)
    assert model.calls == 3
    averaging.now(6 + 3)
    averaging.after(9)
    assert model.calls == 4


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """On CPU, where TorchRec's assertions are switched off."""
    folder = tmp_path_factory.mktemp("copies")
    write_rows(folder / "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONOPTIMIZE", "1")
        outcome = run_ranks("replicas.py", 4, folder)
    assert outcome.code == 0, outcome.output
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data_parallel", "table_wise", "row_wise", "table_row_wise", "grid_shard"])
def test_two_copies_by_sgd_learn_what_whole_tables_learn(copies: Outcome, kind: str) -> None:
    assert copies.results[kind]["logits"] < 2e-6
    assert copies.results[kind]["rows"] < 2e-6


@pytest.mark.slow
def test_copies_part_until_they_are_averaged(copies: Outcome) -> None:
    for step, ranks in enumerate(copies.results["drift"], 1):
        for one, other in ((0, 2), (1, 3)):  # the ranks with the same rows
            before = [dict(ranks[rank]["before"]) for rank in (one, other)]
            after = [dict(ranks[rank]["after"]) for rank in (one, other)]
            assert len(before[0]) == 6  # rows and state of three tables
            for key in before[0]:
                mine, theirs = np.array(before[0][key]), np.array(before[1][key])
                assert (mine != theirs).any(), (step, key)
                expected = [(mine + theirs) / 2] * 2 if step % 2 == 0 else [mine, theirs]
                for found, value in zip(after, expected, strict=True):
                    np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_a_run_with_copies_is_resumed_and_so_is_its_checkpoint_without(copies: Outcome) -> None:
    """Not to the last bit: gloo sums over four ranks in an order that follows DDP's buckets, which a new run cuts anew."""
    found = copies.results["trained"]
    for whole, parts in zip(found["whole"], found["parts"], strict=True):
        assert len(whole) == 4
        for (key, one), (_, other) in zip(whole, parts, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=key)
    assert found["syncs"] == [5, 2, 0]  # every third step and the save at step 7: 3, 6, 7, 9, 12; from 7 on: 9, 12
    with_copies, without = found["probes"]
    assert with_copies == pytest.approx(without, abs=1e-6)


# -- tables in half precision ----------------------------------------------------------------------------------------


def test_fp16_tables_train_and_go_on_to_the_last_bit(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows")
    tables = {name: {"rows": count, "dim": 8, "precision": "fp16"} for name, count in (("user", 50), ("item", 40))}

    def run(folder: str, steps: int, resume: str | None = None) -> dict[str, torch.Tensor]:
        with alone() as ranks:
            trainer = make(ranks, rows, tmp_path / folder, resume, tables=tables, train={"steps": steps})
            before = {name: held[0][0].clone() for name, held in shard.local_shards(trainer.engine.model).items()}
            trainer.run()
            after = {name: held[0][0].clone() for name, held in shard.local_shards(trainer.engine.model).items()}
        assert all(value.dtype == torch.float16 and not value.equal(before[name]) for name, value in after.items())
        return after

    whole = run("whole", 12)
    run("parts", 7)
    parts = run("parts", 12, "newest")
    assert whole.keys() == parts.keys() == tables.keys()
    assert all(value.equal(parts[name]) for name, value in whole.items())


# -- what is refused -------------------------------------------------------------------------------------------------

ON_GPU = [
    (["embedding.comms.backward=bf16"], r'embedding\.comms\.backward = "bf16" needs a GPU'),
    (["embedding.replicas=2"], r"embedding\.replicas = 2 needs GPUs"),
    (["train.pipeline=prefetch_sparse_dist", "tables.user.cache=0.1"], r'train\.pipeline = "prefetch_sparse_dist" needs a GPU'),
]


@pytest.mark.parametrize(("overrides", "words"), ON_GPU)
def test_what_needs_a_gpu_is_refused_without_one(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):  # by `distrec check`
        planning.check(config(*overrides, device="cpu"))
    with pytest.raises(UserError, match=words):  # by `distrec plan --device cpu`
        plan(*overrides, device="cpu")
    with alone() as ranks, pytest.raises(UserError, match=words):  # by training where `auto` finds none
        Engine.build(config(*overrides), ranks)
    assert plan(*overrides).estimate.step > 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.pipeline=prefetch_sparse_dist"], "has nothing to fetch: no table has a `cache`"),
        (["embedding.sync_every=3"], r"embedding\.sync_every = 3 does nothing without embedding\.replicas"),
        (["embedding.replicas=2", "tables.user.cache=0.1"], r"table 'user' has a cache, which embedding\.replicas does not"),
        (["embedding.replicas=2", "tables.item.optimizer.name=adam"], "table 'item' is trained by adam, whose state"),
        (["embedding.replicas=2", "optimizer.sparse.name=adam"], "table 'user' is trained by adam, whose state"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planning.check(config(*overrides))
