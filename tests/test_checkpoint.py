"""Checkpoints are whole or are not there, and fit the run that takes them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from single_rank import make
from small_run import write_rows

from distrec import checkpoint, dist, seal
from distrec.checkpoint import Checkpoints, Manifest, differences
from distrec.errors import UserError


def manifest(step: int, **more: Any) -> Manifest:
    return Manifest(step=step, world=1, model={"a": 1}, data="rows", position={"epoch": 0, "deals": []}, progress={}, **more)


def state(value: float) -> dict[str, Any]:
    return {"weights": torch.full((100,), value), "inner": {"count": torch.tensor(value)}}


def loaded(checkpoints: Checkpoints, step: int) -> float:
    """The value with which the step was saved."""
    found = state(-1.0)
    checkpoints.load(step, found)
    assert found["weights"].eq(found["inner"]["count"]).all()
    return found["inner"]["count"].item()


@pytest.fixture
def two(tmp_path: Path, ranks: dist.Ranks) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, ranks)
    for step in (10, 20):
        checkpoints.save(state(float(step)), manifest(step))
    return checkpoints


def test_what_was_saved_is_loaded(two: Checkpoints) -> None:
    assert two.steps() == [10, 20]
    assert [loaded(two, step) for step in (10, 20)] == [10.0, 20.0]
    found = two.newest()
    assert found is not None
    assert (found.step, found.model, found.data) == (20, {"a": 1}, "rows")


def test_the_manifest_has_the_size_and_crc32_of_every_file(two: Checkpoints) -> None:
    files = {path.name: path for path in two.path(20).iterdir() if path.name != "manifest.json"}
    assert len(files) == 2
    expected = {name: [len(path.read_bytes()), zlib.crc32(path.read_bytes())] for name, path in files.items()}
    assert json.loads((two.path(20) / "manifest.json").read_text())["files"] == expected


def test_without_a_manifest_it_is_no_checkpoint(two: Checkpoints) -> None:
    (two.path(20) / "manifest.json").unlink()
    assert two.steps() == [10]
    with pytest.raises(UserError, match=r"step-000000020 is not a checkpoint: it has no manifest.json"):
        two.read_manifest(20)


def test_a_copy_under_another_name_is_none_either(two: Checkpoints) -> None:
    shutil.copytree(two.path(10), two.folder / "step-000000010-kept")
    assert two.steps() == [10, 20]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
def test_a_flipped_byte_is_found_and_named(two: Checkpoints, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = two.path(20) / name
    content = bytearray(path.read_bytes())
    at = content.index(b'"rows"') + 1 if name == "manifest.json" else len(content) // 2
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"step-000000020/{name} is damaged"):
        two.read_manifest(20)
    found = two.newest()
    assert found is not None
    assert found.step == 10
    assert f"passing over a damaged checkpoint: checkpoint file {path}" in caplog.text or name == "manifest.json"


def test_a_file_that_is_gone_is_named(two: Checkpoints) -> None:
    (two.path(20) / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"step-000000020/__0_0.distcp cannot be read: No such file"):
        two.read_manifest(20)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 7}', "has format 7; this distrec reads format 1"),
        ('{"format": 1, "step"', "cannot be read"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "is damaged"),
    ],
)
def test_a_manifest_that_is_none_is_passed_over(two: Checkpoints, content: str, said: str) -> None:
    (two.path(20) / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"manifest.json {said}"):
        two.read_manifest(20)
    found = two.newest()
    assert found is not None
    assert found.step == 10


def test_when_all_are_damaged_nothing_starts_over_by_itself(two: Checkpoints) -> None:
    for step in (10, 20):
        (two.path(step) / ".metadata").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; remove that folder to start over"):
        two.newest()


def test_a_leftover_of_a_killed_run_is_replaced(two: Checkpoints) -> None:
    leftover = two.path(30)
    leftover.mkdir()
    (leftover / "__7_0.distcp").write_bytes(b"half")
    two.save(state(30.0), manifest(30))
    assert not (leftover / "__7_0.distcp").exists()
    assert loaded(two, 30) == 30.0


def test_the_newest_and_the_best_are_kept(two: Checkpoints) -> None:
    two.mark_best(10, {"auc": 0.7})
    for step in (30, 40, 50):
        two.save(state(float(step)), manifest(step), best=10)
    assert two.steps() == [10, 40, 50]
    assert two.best() == 10
    assert json.loads((two.folder / "best.json").read_text()) == {"step": 10, "metrics": {"auc": 0.7}}
    two.mark_best(50, {"auc": 0.8, "gauc": float("nan")})
    two.save(state(60.0), manifest(60), best=50)
    assert two.steps() == [50, 60]
    assert json.loads((two.folder / "best.json").read_text())["metrics"] == {"auc": 0.8, "gauc": None}


def test_a_manifest_is_json_whatever_was_measured(two: Checkpoints) -> None:
    two.save(state(30.0), replace(manifest(30), progress={"best": None, "metrics": {"valid/gauc": float("nan")}}))
    json.loads((two.path(30) / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert two.read_manifest(30).progress == {"best": None, "metrics": {"valid/gauc": None}}


def test_a_best_that_is_gone_is_none(two: Checkpoints) -> None:
    assert two.best() is None
    two.mark_best(5, {})
    assert two.best() is None
    (two.folder / "best.json").write_text("{")
    assert two.best() is None


def test_damaged_later_ones_take_no_whole_ones_place(two: Checkpoints) -> None:
    two.save(state(15.0), manifest(15))
    assert two.steps() == [10, 15, 20]
    narrow = Checkpoints(two.folder, 1, two._ranks)
    narrow.save(state(17.0), manifest(17))
    assert narrow.steps() == [17, 20]


def test_what_is_learned_after_saving_is_added(two: Checkpoints) -> None:
    before = two.read_manifest(20)
    two.amend(20, {"best": 0.5})
    assert two.read_manifest(20) == replace(before, progress={"best": 0.5})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's writer, when it is thrown away
def test_a_full_disk_leaves_the_older_checkpoint(small_disk: Path, ranks: dist.Ranks) -> None:
    checkpoints = Checkpoints(small_disk / "checkpoints", 2, ranks)
    checkpoints.save(state(1.0), manifest(1))
    (small_disk / "other").write_bytes(bytes(700_000))
    large = state(2.0) | {"more": torch.zeros(100_000)}
    with pytest.raises(UserError, match=r"step 2 could not be written .*; the checkpoint of step 1 stands\.") as error:
        checkpoints.save(large, manifest(2))
    assert "where 0 MiB were free: rank 0: " in str(error.value)
    assert "\n" not in str(error.value)
    assert not checkpoints.path(2).exists()
    assert loaded(checkpoints, 1) == 1.0
    (small_disk / "other").unlink()
    checkpoints.save(large, manifest(2))
    assert checkpoints.steps() == [1, 2]


def test_so_does_a_disk_that_fills_with_the_manifest(two: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write = checkpoint._write_manifest
    monkeypatch.setattr(checkpoint, "_write_manifest", lambda *a: (monkeypatch.setattr(os, "fsync", full), write(*a)))
    with pytest.raises(UserError, match=r"step 30 could not be written .*No space left on device; .*step 20 stands"):
        two.save(state(30.0), manifest(30))
    monkeypatch.undo()
    assert two.steps() == [10, 20]
    assert not two.path(30).exists()
    assert loaded(two, 20) == 20.0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, ranks: dist.Ranks) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write checkpoints to .*step-000000001: .*set `folder`"):
        Checkpoints(tmp_path / "checkpoints", 2, ranks).save(state(1.0), manifest(1))


def test_a_checkpoint_that_may_not_be_read_is_named(two: Checkpoints) -> None:
    path = two.path(20) / ".metadata"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=r"\.metadata cannot be read: Permission denied"):
        two.read_manifest(20)


def test_tensors_that_do_not_fit_are_refused(two: Checkpoints) -> None:
    with pytest.raises(UserError, match=r"step-000000020 does not fit this run: .*missing"):
        two.load(20, state(0.0) | {"missing": torch.zeros(3)})


def test_differences_are_named_by_key() -> None:
    saved = {"tables": {"a": {"dim": 8}, "gone": {"dim": 4}}, "sparse": [{"name": "x", "table": "a"}], "p": {"mlp": [8, 4]}}
    now = {"tables": {"a": {"dim": 16}}, "sparse": [{"name": "x", "table": "b"}], "p": {"mlp": [8]}}
    assert differences(saved, now) == [
        "p.mlp ([8, 4], now [8])",
        "sparse.x.table (a, now b)",
        "tables.a.dim (8, now 16)",
        "tables.gone.dim (4, now absent)",
    ]
    assert differences(saved, saved) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ranks: dist.Ranks) -> tuple[Path, Path]:
    """Rows, and the folder of a run of five steps on them."""
    folder = tmp_path_factory.mktemp("trained")
    rows = write_rows(folder / "rows")
    make(ranks, rows, folder / "run", train={"steps": 5}).run()
    return rows, folder / "run"


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(trained[1], tmp_path / "run")
    return trained[0], tmp_path / "run"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"tables": {"user": {"rows": 60, "dim": 8}, "item": {"rows": 40, "dim": 8}}}, "tables.user.rows (50, now 60)"),
        ({"tasks": [{"name": "click"}]}, "tasks.click.kind (absent, now binary)"),
        ({"optimizer": {"sparse": {"name": "sgd"}}}, "tables.item.optimizer (rowwise_adagrad, now sgd)"),
        ({"model": {"name": "dlrm", "params": {"bottom_mlp": [8], "top_mlp": [4]}}}, "model.params.top_mlp ([16], now [4])"),
    ],
)
def test_another_config_is_refused_by_name_and_changes_nothing(
    run: tuple[Path, Path], ranks: dist.Ranks, sections: dict, said: str
) -> None:
    rows, folder = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        make(ranks, rows, folder, "newest", **sections)
    assert said in str(error.value)
    assert "step 5" in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_rows_are_refused(run: tuple[Path, Path], ranks: dist.Ranks, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.train is not what the checkpoint of step 5 was reading"):
        make(ranks, write_rows(tmp_path / "other", rows=1999), run[1], "newest")


def test_another_seed_is_another_order_of_rows(run: tuple[Path, Path], ranks: dist.Ranks) -> None:
    with pytest.raises(UserError, match=r"train.seed"):
        make(ranks, run[0], run[1], "newest", train={"seed": 1})


def test_what_may_change_may_change(run: tuple[Path, Path], ranks: dist.Ranks) -> None:
    optimizer = {"dense": {"name": "adam", "lr": 0.001}, "sparse": {"lr": 0.01}}
    trainer = make(ranks, run[0], run[1], "newest", optimizer=optimizer, train={"steps": 8}, checkpoint={"keep": 1})
    assert trainer.run().steps == 8
    assert json.loads((run[1] / "config.json").read_text())["optimizer"]["dense"]["lr"] == 0.001


@pytest.mark.parametrize("world", [1, 3, 12, 20])
def test_each_file_is_checked_by_one_rank_its_writer_where_there_is_one(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict.fromkeys([".metadata", *(f"__{rank}_0.distcp" for rank in range(12))], (1, 1))
    checked: list[tuple[int, str]] = []
    for rank in range(world):
        monkeypatch.setattr(checkpoint, "checksum", lambda path, rank=rank: checked.append((rank, path.name)) or (1, 1))
        ranks: Any = SimpleNamespace(rank=rank, world=world)
        Checkpoints(tmp_path, 1, ranks)._verify(tmp_path, manifest(1, files=files))
    assert sorted(name for _, name in checked) == sorted(files)
    if world >= 12:
        assert {(rank, f"__{rank}_0.distcp") for rank in range(12)} <= set(checked)


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 14, 100])
def test_a_checksum_is_of_all_bytes(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "CHUNK", 7)
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert seal.checksum(tmp_path / "file") == (size, zlib.crc32(content))
