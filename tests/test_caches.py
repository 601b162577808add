"""Rows of host tables that are cached on a GPU, and fetched ahead: what can be seen of that without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from single_rank import alone, lines, make
from small_run import write_rows
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist

from distrec.embeddings import shard
from distrec.export.write import round_tables
from distrec.pipeline import outputs
from distrec.trainer import Trainer

TABLES = {"user": {"rows": 50, "dim": 8, "sharding": "table_wise"}, "item": {"rows": 40, "dim": 8, "sharding": "row_wise"}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("caches") / "rows")


@pytest.fixture
def trainer(rows: Path, tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    with ExitStack() as writers, alone() as ranks:

        def built(name: str = "run", **sections: Any) -> Trainer:
            made = make(ranks, rows, tmp_path / name, tables=TABLES, **sections)
            writers.enter_context(made.record.writer)
            return made

        yield built


def caching(prefetch: bool = True) -> SimpleNamespace:
    """What distrec sees of a kernel with a cache, some of whose rows are locked."""
    return SimpleNamespace(
        prefetch_pipeline=prefetch,
        lxu_cache_locking_counter=torch.ones((1, 32) if prefetch else (0, 0), dtype=torch.int32),
    )


def test_no_row_stays_locked_when_a_pipeline_is_filled(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, plain = caching(), caching(prefetch=False)
    built = trainer()
    monkeypatch.setattr(shard, "fused_kernels", lambda _: [kernel, plain])
    with closing(built.readers["train"].batches()) as batches:
        built.train(batches, 1)
    assert not kernel.lxu_cache_locking_counter.any()
    kernel.lxu_cache_locking_counter.fill_(2)
    next(outputs(built.pipeline, built.engine, built.readers["train"]))
    assert not kernel.lxu_cache_locking_counter.any()


def test_lookups_after_rounding_find_what_was_rounded(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """FBGEMM's flush writes cached rows back and keeps them: lookups would find them as they were before."""
    engine, kernel, seen = trainer().engine, caching(), []
    shards = [part for parts in shard.local_shards(engine.model).values() for part, _, _ in parts]
    kernel.reset_cache_states = lambda: seen.append(all(torch.equal(part, part.half().float()) for part in shards))
    monkeypatch.setattr(shard, "fused_kernels", lambda _: [kernel])
    round_tables(engine, "fp16")
    assert seen == [True]


def test_a_hook_of_the_kernels_does_not_reach_the_terminal(trainer: Callable[..., Trainer]) -> None:
    """FBGEMM hooks the backward of kernels that fetch ahead, of which torch warns, for ids need no gradients."""
    built, fired = trainer(), []
    for kernel in shard.fused_kernels(built.engine.model):
        kernel.register_full_backward_pre_hook(lambda *_: fired.append(True))
    with closing(built.readers["train"].batches()) as batches:
        built.train(batches, 1)
    assert fired


class Stream:
    """Of a device on which everything is done in turn."""

    device = torch.device("cpu")

    def wait_stream(self, other: Any) -> None:
        pass


def test_segments_and_evaluations_go_through_the_prefetching_pipeline_as_through_the_other(
    trainer: Callable[..., Trainer], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchRec's pipeline with stand-ins for its streams; what it fetches on a GPU is not seen here."""
    monkeypatch.setattr("distrec.engine.needs_a_gpu", lambda _: [])
    monkeypatch.setattr("distrec.config.check._pipeline_faults", lambda _: [])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch.cpu, "current_stream", Stream)
    run = partial(trainer, data={"valid": str(rows)}, evaluate={"every_steps": 4})
    learned = []
    for name in ("sparse_dist", "prefetch_sparse_dist"):
        built = run(name, train={"device": "auto", "steps": 10, "pipeline": name})
        if isinstance(built.pipeline, PrefetchTrainPipelineSparseDist):
            streams = dict.fromkeys(("_memcpy_stream", "_data_dist_stream", "_prefetch_stream"), Stream())
            vars(built.pipeline).update(streams, _default_stream=None, _stream_context=lambda stream: nullcontext())
        built.run()
        learned.append({table: parts[0][0].clone() for table, parts in shard.local_shards(built.engine.model).items()})
    plain, ahead = learned
    assert all(torch.equal(weight, ahead[table]) for table, weight in plain.items())
    told = [
        [line for line in lines(tmp_path / name) if "valid/auc" in line] for name in ("sparse_dist", "prefetch_sparse_dist")
    ]
    assert [line["step"] for line in told[0]] == [4, 8, 10]
    assert [line["valid/auc"] for line in told[0]] == [line["valid/auc"] for line in told[1]]
