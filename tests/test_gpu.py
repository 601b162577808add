"""What a GPU changes: the device, the kernels, copies, waits. The plan's bytes on one are in test_plan_bytes.py."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command import Command
from ranks import run_ranks
from single_rank import lines, make, summary
from small_retrieval import ITEMS, retrieval_values, write_retrieval
from small_run import values, write_rows
from test_exact import brute_force, lists, ragged
from toml_text import to_toml
from torch.distributed._shard.sharded_tensor import ShardedTensor

from distrec import dist
from distrec.config.load import parse
from distrec.embeddings import shard
from distrec.engine import Engine, open_reader
from distrec.export.write import round_tables
from distrec.pipeline import outputs
from distrec.recall.vectors import Export
from distrec.retrieval import exact, task
from distrec.trained import restored, score
from distrec.trainer import Trainer, build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KINDS = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "adam_every_row")
COLUMNS_SPLIT = {"column_wise", "table_column_wise", "grid_shard"}
STEPS = 12
PACKAGE = Path(dist.__file__).parent


@contextmanager
def on(device: str) -> Iterator[dist.Ranks]:
    """The only rank there is, on that device."""
    try:
        yield dist.start(device, 60)
    finally:
        dist.stop()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("gpu") / "rows")


def trained(device: str, rows: Path, folder: Path, resume: str | None = None, **sections: Any) -> Trainer:
    """A small run at its end."""
    with on(device) as ranks:
        sections["train"] = {"device": device, "steps": STEPS} | sections.get("train", {})
        trainer = make(ranks, rows, folder, resume, **sections)
        trainer.run()
        return trainer


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in lines(folder) if "train/loss" in line]


def tables(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Whole tables of a run on one rank, on CPU."""
    return {name: parts[0][0].cpu() for name, parts in shard.local_shards(trainer.engine.model).items()}


def test_the_gpu_is_chosen_unless_another_device_is_named() -> None:
    with on("auto") as ranks:
        assert ranks.device == torch.device("cuda", 0)
    with on("cpu") as ranks:
        assert ranks.device == torch.device("cpu")


@pytest.fixture(scope="module")
def sharding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outcome = run_ranks("sharding.py", 1, tmp_path_factory.mktemp("sharding"), "cuda")
    assert outcome.code == 0, outcome.output
    return outcome.results


@pytest.mark.parametrize(("kind", "optimizer"), list(itertools.product(KINDS, OPTIMIZERS)))
def test_a_sharded_model_learns_on_a_gpu_what_a_whole_one_learns_on_cpu(
    sharding: dict[str, Any], kind: str, optimizer: str
) -> None:
    found = sharding[f"{kind}/{optimizer}"]
    if optimizer == "rowwise_adagrad" and kind in COLUMNS_SPLIT:
        assert "would change the result" in found["refused"]
        return
    if optimizer == "adam_every_row" and kind != "data_parallel":
        assert "no cuda kernel for adam" in found["refused"]
        return
    assert kind in found["used"].split(",")  # adam too, which has no sharded kernel on CPU
    assert found["logits"] < 1e-5, found
    assert found["rows"] < 1e-5, found


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(KINDS, 2)))
def test_so_it_does_where_tables_lie_differently(sharding: dict[str, Any], one: str, other: str) -> None:
    found = sharding[f"{one}+{other}/adagrad"]
    assert {one, other} <= {*found["used"].split(",")}
    assert found["logits"] < 1e-5, found
    assert found["rows"] < 1e-5, found


def test_twelve_steps_are_seven_and_five_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's deterministic algorithms, which the program turns on, and cuBLAS's."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    write_rows(tmp_path / "train")
    outcome = run_ranks("resume.py", 1, tmp_path, "straight", "cuda")
    assert outcome.code == 0, outcome.output
    [whole], [parts] = outcome.results["whole"], outcome.results["parts"]
    assert any(key.startswith("/random/") and key.endswith("/cuda") for key in whole)
    assert whole == parts


def test_adam_counts_training_steps_alone(rows: Path, tmp_path: Path) -> None:
    """Its kernels count every forward: with those of evaluations, what is learned would depend on how often one evaluates."""
    small = {"user": {"rows": 50, "dim": 8, "sharding": "table_wise"}, "item": {"rows": 40, "dim": 8, "sharding": "row_wise"}}
    adam = {"sparse": {"name": "adam", "lr": 0.1}}
    often = {"data": {"train": str(rows), "valid": str(rows), "batch_size": 64}, "evaluate": {"every_steps": 2}}
    alone = trained("cuda", rows, tmp_path / "alone", tables=small, optimizer=adam, data=often["data"] | {"valid": []})
    beside = trained("cuda", rows, tmp_path / "beside", tables=small, optimizer=adam, **often)
    for name, weight in tables(beside).items():
        torch.testing.assert_close(weight, tables(alone)[name], atol=1e-5, rtol=1e-4)


def test_batches_are_copied_from_page_locked_memory(rows: Path, tmp_path: Path) -> None:
    with on("cuda") as ranks:
        trainer = make(ranks, rows, tmp_path / "run")
        with trainer.record.writer, closing(trainer.readers["train"].batches()) as batches:
            batch = next(batches)
        jagged = [part for ids in (batch.sparse, batch.sequence) if ids is not None for part in (ids.values(), ids.lengths())]
        for part in (batch.dense, batch.labels, batch.weights, batch.normalizer, *jagged):
            assert part.is_pinned()
        moved = batch.to(ranks.device, non_blocking=True)
        assert moved.dense.device == ranks.device
        assert torch.equal(moved.dense.cpu(), batch.dense)


@pytest.mark.parametrize("sparse", [{}, {"name": "adam", "every_row": True}])
def test_a_step_of_ours_waits_for_the_gpu_once(rows: Path, tmp_path: Path, sparse: dict[str, Any]) -> None:
    """To agree on a finite loss before backward moves a row. What TorchRec waits for is its own."""
    with on("cuda") as ranks, warnings.catch_warnings(record=True) as found:
        own = {"optimizer": {"sparse": sparse}, "train": {"log_every": 1000, "steps": 9}}
        trainer = make(ranks, rows, tmp_path / "run", **own)
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with trainer.record.writer, closing(trainer.readers["train"].batches()) as batches:
                trainer.train(batches, 9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    ours = [w for w in found if "synchroniz" in str(w.message) and Path(w.filename).is_relative_to(PACKAGE)]
    assert {Path(w.filename).name for w in ours} == {"trainer.py"}
    assert len(ours) <= 9


def test_a_cached_table_learns_what_a_table_on_the_gpu_learns(rows: Path, tmp_path: Path) -> None:
    small = {"user": {"rows": 50, "dim": 8, "sharding": "table_wise"}, "item": {"rows": 40, "dim": 8, "sharding": "table_wise"}}
    cached = {name: table | {"cache": 0.5} for name, table in small.items()}
    whole = trained("cuda", rows, tmp_path / "whole", tables=small)
    parted = trained("cuda", rows, tmp_path / "cached", tables=cached)
    kernels = {s.compute_kernel for part in parted.engine.plan.plan.values() for s in part.values()}
    assert kernels == {"fused_uvm_caching"}
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    expected = tables(whole)
    for name, weight in tables(parted).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)
    resumed = trained("cuda", rows, tmp_path / "cached", "newest", tables=cached, train={"steps": STEPS + 4})
    straight = trained("cuda", rows, tmp_path / "straight", tables=small, train={"steps": STEPS + 4})
    expected = tables(straight)
    for name, weight in tables(resumed).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3)


SCARCE = {  # of 50 and 40 rows, 32 fit
    "user": {"rows": 50, "dim": 8, "sharding": "table_wise", "cache": 0.5},
    "item": {"rows": 40, "dim": 8, "sharding": "row_wise", "cache": 0.5},
}
AMPLE = {name: table | {"cache": None} for name, table in SCARCE.items()}


def test_rows_fetched_ahead_are_those_that_a_step_would_look_up(rows: Path, tmp_path: Path) -> None:
    """In segments that end with an evaluation, whose rows would stay locked in the cache: no backward lets go of them."""
    sections = {"data": {"valid": str(rows)}, "evaluate": {"every_steps": 4}}
    plain = trained("cuda", rows, tmp_path / "plain", tables=AMPLE, **sections)
    with on("cuda") as ranks:
        train = {"device": "cuda", "steps": STEPS, "pipeline": "prefetch_sparse_dist"}
        trainer = make(ranks, rows, tmp_path / "ahead", tables=SCARCE, train=train, **sections)
        trainer.run()
        kernels = shard.fused_kernels(trainer.engine.model)
        assert all(kernel.lxu_cache_weights.numel() for kernel in kernels)
        expected = tables(plain)
        for name, weight in tables(trainer).items():
            torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)
        with closing(trainer.readers["train"].batches(trainer.position)) as batches:
            trainer.train(batches, 2)
        assert not any(kernel.lxu_cache_locking_counter.any() for kernel in kernels)
    assert losses(tmp_path / "ahead") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)


def test_a_cached_table_is_looked_up_as_it_was_rounded(rows: Path, tmp_path: Path) -> None:
    trained("cuda", rows, tmp_path / "run", tables=AMPLE)
    logits = {}
    for name, tables_of in (("ample", AMPLE), ("scarce", SCARCE)):
        with on("cuda") as ranks:
            trainer = make(ranks, rows, tmp_path / "run", "newest", tables=tables_of, train={"device": "cuda"})
            ask = partial(outputs, trainer.pipeline, trainer.engine, trainer.readers["train"])
            with trainer.record.writer:
                before = torch.cat([found["logits"] for found in ask()])
                round_tables(trainer.engine, "int8")
                logits[name] = torch.cat([found["logits"] for found in ask()])
        assert not torch.equal(logits[name], before)
    torch.testing.assert_close(logits["scarce"], logits["ample"], atol=1e-6, rtol=1e-6)


def slots(trainer: Trainer, table: str) -> dict[str, torch.Tensor]:
    """A table's optimizer state, which one rank holds whole."""
    state = trainer.optimizers.state_dict()["tables"][table]
    return {
        slot: (value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value).cpu()
        for slot, value in state.items()
    }


@pytest.mark.parametrize(("first", "then"), [("table_wise", "data_parallel"), ("data_parallel", "table_wise")])
def test_adam_s_state_moves_between_sharded_and_replicated_tables(rows: Path, tmp_path: Path, first: str, then: str) -> None:
    """Only on a GPU are there kernels of Adam for sharded ones."""
    user = {"rows": 50, "dim": 8, "optimizer": {"name": "adam", "lr": 0.1}}
    sharded = [{"user": user | {"sharding": kind}, "item": {"rows": 40, "dim": 8}} for kind in (first, then)]
    before = trained("cuda", rows, tmp_path / "run", tables=sharded[0])
    with on("cuda") as ranks:
        after = make(ranks, rows, tmp_path / "run", "newest", tables=sharded[1], train={"device": "cuda", "steps": STEPS + 3})
        assert torch.equal(tables(after)["user"], tables(before)["user"])
        saved, loaded = slots(before, "user"), slots(after, "user")
        assert saved.keys() == loaded.keys()
        assert all(value.any() and torch.equal(loaded[slot], value) for slot, value in saved.items())
        assert after.run().steps == STEPS + 3


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_moves_between_cpu_and_gpu(rows: Path, tmp_path: Path, first: str, then: str) -> None:
    before = tables(trained(first, rows, tmp_path / "run"))
    with on(then) as ranks:
        trainer = make(ranks, rows, tmp_path / "run", "newest", train={"device": then, "steps": STEPS + 3})
        after = tables(trainer)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        report = trainer.run()
    assert report.steps == STEPS + 3
    assert report.skipped == 0


def test_the_command_line_takes_the_gpu_unasked(rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text(to_toml(values(rows, tmp_path / "run", train={"steps": STEPS, "log_every": 5})))
    command = [sys.executable, "-m", "distrec.agent", "--nproc-per-node=1", "-m", "distrec", "train", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("system/gpu_peak_gib" in line for line in lines(tmp_path / "run"))


@pytest.mark.parametrize(("items", "k", "block"), [(300, 10, 64), (40, 40, 16), (1000, 3, 10**6)])
def test_exact_search_finds_what_sorting_finds(monkeypatch: pytest.MonkeyPatch, items: int, k: int, block: int) -> None:
    """Of numbers that a GPU adds up exactly: most scores are tied, and all of them where a query knows nothing."""
    monkeypatch.setattr(exact, "BLOCK_ROWS", block)
    monkeypatch.setattr(exact.Share.blocks, "__defaults__", (block,))
    draw = np.random.default_rng(items)
    q, v = (draw.integers(-2, 3, (n, 4)).astype(np.float32) for n in (40, items))
    q[:3] = 0  # what a model of histories alone makes of an empty one
    hidden = lists(draw, len(q), items, items)
    hidden[1], hidden[5] = [], list(range(items))
    queries, share = torch.from_numpy(q).to("cuda"), exact.Share.alone(torch.from_numpy(v).to("cuda"))
    found = exact.top_k(queries, share, k, ragged(hidden), budget=4 * block * 3)
    rows, scores = found.items.cpu().numpy(), found.scores.cpu().numpy()
    np.testing.assert_array_equal(rows, brute_force(q, v, k, hidden))
    pairs = exact.pair_scores(queries, share, found.items.clamp(min=0), budget=4 * block).cpu().numpy()
    np.testing.assert_array_equal(pairs, np.take_along_axis(q @ v.T, np.maximum(rows, 0), 1))
    np.testing.assert_array_equal(scores, np.where(rows < 0, -np.inf, pairs))


SHARED = {"in_batch": False, "sampled": 20, "shared_by": 24, "not_in": "others"}  # of three groups the last is not full
COSINE = {"loss": "ccl", "margin": 0.3, "negative_weight": 20}
QUERY = [{"name": "user_id", "table": "user"}, {"name": "history", "table": "past", "pooling": "mean", "max_length": 3}]
RETRIEVERS: dict[str, dict[str, Any]] = {
    "softmax": {  # with logQ, over the batch and over draws by popularity
        "retrieval": {"negatives": {"sampled": 12, "per_row": 3, "distribution": "popularity"}},
        "embedding": {"sharding": "row_wise"},
    },
    "bpr": {"retrieval": {"loss": "bpr", "negatives": {"column": "negatives", "column_length": 3, "not_in": "others"}}},
    "simplex": {
        "retrieval": COSINE | {"item_features": ["item_index"], "negatives": SHARED},
        "tables": {name: {"rows": 60, "dim": 8, "init_scale": 0.1} for name in ("user", "item", "past")},
        "features": {"sparse": [*QUERY, {"name": "item_index", "table": "item"}]},
        "model": {"name": "simplex", "params": {"user": "user_id", "gate": 0.8}},
        "optimizer": {"dense": {"lr": 0.01}, "sparse": {"name": "adam", "lr": 0.01, "every_row": True}},
    },
}


@pytest.fixture(scope="module")
def log_of_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retrieval(tmp_path_factory.mktemp("retrieval"))


def retriever(
    device: str, steps: int, data: Path, folder: Path, resume: str | None = None, **own: Any
) -> tuple[Engine, torch.Tensor]:
    """A small one at the end of its run, and its item vectors, on CPU."""
    given = retrieval_values(data, folder)
    given["retrieval"] |= own.pop("retrieval")
    with on(device) as ranks:
        trainer = build(parse(given | own | {"train": {"device": device, "steps": steps, "log_every": 1}}), ranks, resume)
        trainer.run()
        trainer.pipeline.detach()
        return trainer.engine, item_vectors(trainer.engine)


def item_vectors(engine: Engine) -> torch.Tensor:
    return engine.item_vectors(engine.items.catalogue.batch(np.arange(ITEMS))).cpu()  # type: ignore[union-attr]


@pytest.mark.parametrize("own", RETRIEVERS.values(), ids=RETRIEVERS)
def test_a_retriever_learns_on_a_gpu_what_it_learns_on_cpu(
    own: dict[str, Any], log_of_items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same batches, from one checkpoint, for a GPU draws other first weights; with scores in many blocks there."""
    monkeypatch.setitem(task.BLOCK_BYTES, "cuda", 2**11)
    _, first = retriever("cpu", 1, log_of_items, tmp_path / "cpu", **own)
    shutil.copytree(tmp_path / "cpu", tmp_path / "cuda")
    last = {d: retriever(d, STEPS, log_of_items, tmp_path / d, "newest", **own)[1] for d in ("cpu", "cuda")}
    assert (last["cpu"] - first).abs().amax() > 0.01
    torch.testing.assert_close(last["cuda"], last["cpu"], atol=2e-4, rtol=0)
    assert len(losses(tmp_path / "cpu")) == STEPS
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)


def test_hard_negatives_are_searched_for_on_a_gpu(log_of_items: Path, tmp_path: Path) -> None:
    hard = {"log_q": False, "negatives": {"distribution": "hard", "per_row": 2, "pool": 3, "refresh_steps": 4}}
    engine, vectors = retriever("cuda", STEPS, log_of_items, tmp_path, retrieval=hard)
    alike = (vectors @ vectors.T).fill_diagonal_(-torch.inf).numpy()
    expected = np.argsort(-alike, axis=1)[:, :3]
    assert (engine.neighbours.table.numpy() == expected).mean() > 0.95  # type: ignore[union-attr]  # but for near ties


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.11's own loader
def test_what_a_gpu_trained_is_exported_indexed_and_recalled_as_the_cpu_has_it(distrec: Command, tmp_path: Path) -> None:
    """And evaluated, by NumPy on the vectors of the model that the CPU restores. Some users have no history."""
    data, run = write_retrieval(tmp_path / "data", rows=120), tmp_path / "run"
    valid = pq.read_table(data / "valid").to_pylist()
    lonely = next(row["user_id"] for row in valid if not row["history"])
    given = retrieval_values(data, run, train={"device": "cuda", "steps": STEPS}, evaluate={"every_steps": STEPS})
    given["data"] |= {"valid": str(data / "valid"), "eval_batch_size": len(valid)}
    given["retrieval"] |= {"rank_among": 20, "query_id": "user_id"}
    (tmp_path / "my.toml").write_text(to_toml(given))
    for words in (("train", tmp_path / "my.toml"), ("export", run, "--program", "torch"), ("index", run)):
        ended = distrec(*words)
        assert ended.code == 0, ended.err

    on_cpu = parse(given | {"train": {"device": "cpu"}})
    with on("cpu") as ranks:
        engine, _ = restored(on_cpu, ranks, run, None)
        [batch] = open_reader(engine, "valid").batches(epochs=1)
        items, queries = item_vectors(engine), engine.query_vectors(batch)
        _, evaluated = score(on_cpu, ranks, run, "valid", None)
    export = Export.open(run / "export")
    for kept, vectors in ((export.items, items), (export.queries, queries)):
        torch.testing.assert_close(torch.cat([block for _, block in kept.blocks()]), vectors, atol=1e-5, rtol=0)
    program = torch.export.load(run / "export/query.pt2").module()
    assert {parameter.device.type for parameter in program.parameters()} == {"cpu"}

    best = brute_force(queries.numpy(), items.numpy(), 10, [row["seen"] for row in valid])
    told = {name.removeprefix("valid/"): value for name, value in summary(run)["metrics"].items()}
    for k in (5, 10):
        hits = [row["targets"][0] in found for row, found in zip(valid, best[:, :k], strict=True)]
        assert told[f"recall@{k}"] == pytest.approx(np.mean(hits))
    assert {name: told[name] for name in evaluated.metrics} == pytest.approx(evaluated.metrics)
    for user in (lonely, 7):
        found = json.loads(distrec("recall", run, "--query", user, "--json").out)["items"]
        assert [item["item"] for item in found] == best[user].tolist()
        assert [item["score"] for item in found] == pytest.approx((items @ queries[user])[best[user]].tolist(), abs=1e-4)
