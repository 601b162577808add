"""A run that begins with what another one has learned goes on as that one would have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from single_rank import make
from small_run import ROWS, write_rows
from torchrec.distributed.types import ShardedTensor

from distrec import dist
from distrec.errors import UserError
from distrec.trainer import Trainer

EPOCH = math.ceil(ROWS / 64)
ADAM = {"name": "adam", "lr": 0.01}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def trained(ranks: dist.Ranks, rows: Path, folder: Path, resume: str | None = None, **sections: Any) -> Trainer:
    """A run over rows in the order of their files, one table with Adam and one with a fused optimizer."""
    tables = {"user": {"rows": 50, "dim": 8, "optimizer": ADAM}, "item": {"rows": 40, "dim": 8, "sharding": "row_wise"}}
    sections = {"tables": tables, "data": {"shuffle": False}} | sections
    trainer = make(ranks, rows, folder, resume, **sections)
    trainer.run()
    trainer.pipeline.detach()
    return trainer


def bits(trainer: Trainer) -> dict[str, bytes]:
    """Of the model and of its optimizers."""
    state = trainer.engine.state()

    def flat(value: Any, name: str) -> Iterator[tuple[str, bytes]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{name}/{key}")
        elif isinstance(value, ShardedTensor):
            yield from flat(value.local_shards()[0].tensor, name)
        elif isinstance(value, torch.Tensor):
            yield name, value.contiguous().numpy().tobytes()

    return dict(flat({"model": state["model"], "optimizers": state["optimizers"]}, ""))


def test_it_goes_on_as_the_other_would_have(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    trained(ranks, rows, tmp_path / "first", train={"epochs": 1})
    started = trained(ranks, rows, tmp_path / "second", train={"epochs": 1, "start_from": str(tmp_path / "first")})
    assert (started.optimizers.steps, started.optimizers.earlier) == (EPOCH, EPOCH)
    third = trained(ranks, rows, tmp_path / "third", train={"steps": 3, "start_from": str(tmp_path / "second")})
    assert (third.optimizers.steps, third.optimizers.earlier) == (3, 2 * EPOCH)
    whole = trained(ranks, rows, tmp_path / "first", "newest", train={"epochs": 2})
    assert whole.optimizers.steps == 2 * EPOCH
    assert bits(started) == bits(whole)
    assert any(name.startswith("/optimizers/tables/user") for name in bits(started))
    assert bits(third) == bits(trained(ranks, rows, tmp_path / "first", "newest", train={"steps": 2 * EPOCH + 3, "epochs": 3}))


def test_it_is_resumed_as_any_run(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    trained(ranks, rows, tmp_path / "first", train={"steps": 5})
    begun = {"start_from": str(tmp_path / "first")}
    straight = trained(ranks, rows, tmp_path / "straight", train=begun | {"steps": 8})
    trained(ranks, rows, tmp_path / "parts", "auto", train=begun | {"steps": 4})
    parts = trained(ranks, rows, tmp_path / "parts", "auto", train=begun | {"steps": 8})
    assert (parts.optimizers.steps, parts.optimizers.earlier) == (8, 5)
    assert bits(parts) == bits(straight)


def test_its_schedule_begins_anew(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    dense = {"name": "adam", "lr": 0.01}
    optimizer = {"dense": dense, "sparse": {"lr": 0.1}, "schedule": {"warmup_steps": 4}}
    trained(ranks, rows, tmp_path / "first", train={"steps": 6}, optimizer=optimizer)
    begun = {"start_from": str(tmp_path / "first"), "steps": 1}
    started = trained(ranks, rows, tmp_path / "second", train=begun, optimizer=optimizer)
    assert started.optimizers.learning_rates()["dense"] == pytest.approx(0.005)


def test_it_begins_with_the_best(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    sections = {"data": {"shuffle": False, "valid": str(rows)}, "evaluate": {"every_steps": 2}}
    first = trained(ranks, rows, tmp_path / "first", train={"steps": 6}, checkpoint={"keep": 3}, **sections)
    first.checkpoints.mark_best(4, {})
    started = trained(ranks, rows, tmp_path / "second", train={"steps": 1, "start_from": str(tmp_path / "first")})
    assert started.optimizers.earlier == 4


def test_what_cannot_be_started_from_is_refused(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    first = trained(ranks, rows, tmp_path / "first", train={"steps": 2})
    with pytest.raises(UserError, match=r"train\.start_from: there is no folder .*nowhere; name a run's"):
        trained(ranks, rows, tmp_path / "a", train={"steps": 1, "start_from": str(tmp_path / "nowhere")})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"nothing \(train\.start_from\) has no checkpoint yet"):
        trained(ranks, rows, tmp_path / "d", train={"steps": 1, "start_from": str(tmp_path / "nothing")})
    other = {"user": {"rows": 60, "dim": 8, "optimizer": ADAM}, "item": {"rows": 40, "dim": 8}}
    with pytest.raises(
        UserError,
        match=r"in .*first \(train\.start_from\) was trained with another config; what differs: tables\.user\.rows \(50",
    ):
        trained(ranks, rows, tmp_path / "b", train={"steps": 1, "start_from": str(tmp_path / "first")}, tables=other)
    first.engine.numbering.require({"user": "one"}, "data.train")
    first.optimizers.steps += 1
    first.save()
    (rows.parent / "dataset.json").write_text('{"numbering": {"user": "other"}, "columns": [{"name": "user"}]}')
    try:
        with pytest.raises(UserError, match=r"checkpoint of step 3 in .*first .* does not go with data\.train .*in 'user'"):
            trained(ranks, rows, tmp_path / "c", train={"steps": 1, "start_from": str(tmp_path / "first")})
    finally:
        (rows.parent / "dataset.json").unlink()
