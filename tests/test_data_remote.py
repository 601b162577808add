"""A store whose reads fail: tried again after pauses, then named; and a run on it loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from command import Command, command_line
from fsspec.implementations.memory import MemoryFileSystem
from parquet_files import numbered, numbered_reader, real_rows, write
from small_run import values, write_rows
from toml_text import to_toml

from distrec.data import remote
from distrec.data.columns import Use, is_number
from distrec.data.parquet import open_dataset
from distrec.data.remote import RangeFile, patiently
from distrec.errors import UserError

NUMBER = Use("x", "feature 'x'", is_number, "a number")


class Weather(Exception):
    """No OSError: libraries of stores have families of their own."""


class Flaky(MemoryFileSystem):
    """Files in memory. While `failing` is positive, a read fails and counts it down; `after` reads go well before."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failing = after = 0
    reads: ClassVar[list[tuple[str, int, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        cls = type(self)
        if cls.failing and not cls.after:
            cls.failing -= 1
            raise Weather("it rains")
        cls.after = max(cls.after - 1, 0)
        cls.reads.append((path, start or 0, end or 0))
        return super().cat_file(path, start=start, end=end, **options)


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield Flaky
    Flaky.store.clear()
    Flaky.reads.clear()
    Flaky.failing = Flaky.after = 0


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that reading would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    return slept


def upload(local: Path, name: str) -> str:
    for path in local.glob("*.parquet"):
        Flaky().pipe(f"/{name}/{path.name}", path.read_bytes())
    return f"flaky://{name}"


def test_what_ids_stand_for_is_read_as_patiently_as_rows(flaky: type[Flaky], pauses: list[float], tmp_path: Path) -> None:
    place = upload(Path(numbered(tmp_path / "rows", [[5]])), "numbered/rows")
    said = {"numbering": {"row": "one"}, "columns": [{"name": "row"}]}
    Flaky().pipe("/numbered/dataset.json", json.dumps(said).encode())
    dataset = open_dataset([place], [Use("row", "feature 'row'", is_number, "a number")])
    flaky.failing = 1
    assert dataset.numbering == {"row": "one"}
    assert pauses == [1]


def test_a_failed_read_is_tried_again_after_growing_pauses(
    flaky: type[Flaky], pauses: list[float], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    place = upload(Path(numbered(tmp_path / "rows", [[30, 20], [5]])), "rows")
    reader = numbered_reader(place, shuffle=False)
    flaky.failing = 3
    assert real_rows(reader.batches(epochs=1)) == list(range(55))
    assert pauses == [1.0, 2.0, 4.0]
    assert "part-000.parquet: a read failed (Weather: it rains); trying again in 4 s" in caplog.text


def test_a_read_that_goes_on_failing_is_named_with_its_tries_and_cause(
    flaky: type[Flaky], pauses: list[float], tmp_path: Path
) -> None:
    write(tmp_path / "a.parquet", {"x": np.arange(9.0)})
    place = upload(tmp_path, "rows")
    flaky.failing = 100
    with pytest.raises(UserError) as error:
        open_dataset([place], [NUMBER], retries=7)
    said = f"{place.replace('://', ':///')}/a.parquet: could not be read, tried 8 times (data.retries): Weather: it rains"
    assert str(error.value) == said
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    flaky.failing = 1
    with pytest.raises(UserError, match="tried once"):
        open_dataset([place], [NUMBER], retries=0)


@pytest.mark.parametrize(("error", "said"), [(FileNotFoundError(), "is gone"), (PermissionError("no"), "may not be read: no")])
def test_what_no_trying_mends_is_said_at_once(pauses: list[float], error: OSError, said: str) -> None:
    def read() -> bytes:
        raise error

    with pytest.raises(UserError, match=rf"s3://b/x: (the file )?{said}"):
        patiently(read, "s3://b/x", 5)
    assert pauses == []


def test_a_file_that_goes_between_footer_and_rows_is_gone(flaky: type[Flaky], tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": np.arange(9.0)})
    dataset = open_dataset([upload(tmp_path, "rows")], [NUMBER])
    Flaky().rm("/rows", recursive=True)
    with pytest.raises(UserError, match=r"flaky:///rows/a\.parquet: the file is gone"):
        list(dataset.read(dataset.row_groups, True))


def test_a_damaged_file_is_not_tried_again(flaky: type[Flaky], pauses: list[float], tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing of the kind PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file, or truncated"):
        open_dataset([upload(tmp_path, "rows")], [NUMBER])
    assert pauses == []


def test_only_the_columns_in_use_are_fetched_in_few_reads(flaky: type[Flaky], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((20, 50_000))
    write(tmp_path / "a.parquet", {f"c{i}": row for i, row in enumerate(rows)}, row_group_size=25_000)
    wanted = [Use(f"c{i}", "a feature", is_number, "a number") for i in range(4, 9)]
    dataset = open_dataset([upload(tmp_path, "rows")], wanted)
    flaky.reads.clear()
    assert sum(part.num_rows for part in dataset.read(dataset.row_groups, True)) == 50_000
    fetched = sum(end - start for _, start, end in flaky.reads)
    assert fetched < 1.5 * len(wanted) * rows[0].nbytes  # of 20 columns, 5; and the footer
    footer, row_groups = 2, 2
    assert len(flaky.reads) <= footer + row_groups, "columns that lie side by side are one read"


def test_a_range_is_read_as_of_a_file(flaky: type[Flaky], tmp_path: Path) -> None:
    content = bytes(range(100))
    Flaky().pipe("/rows/f", content)
    (tmp_path / "f").write_bytes(content)
    file = RangeFile(Flaky(), "flaky://rows/f", 0)
    with (tmp_path / "f").open("rb") as local:
        for offset, whence, size in [(5, 0, 10), (3, 1, 4), (-7, 2, 100), (0, 2, 5), (90, 0, -1), (0, 0, 0)]:
            assert file.seek(offset, whence) == local.seek(offset, whence)
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()


def test_a_run_whose_store_fails_is_saved_and_goes_on_when_it_is_back(
    flaky: type[Flaky], pauses: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = upload(write_rows(tmp_path / "rows"), "rows")
    sections = {"data": {"train": place, "batch_size": 64, "shuffle_window": 64, "retries": 2}}
    config = tmp_path / "small.toml"
    config.write_text(to_toml(values(tmp_path, tmp_path / "run", **sections)))
    with command_line(capsys) as distrec:
        _train_through_an_outage(distrec, flaky, config)


def _train_through_an_outage(distrec: Command, flaky: type[Flaky], config: Path) -> None:
    flaky.failing, flaky.after = 1000, 8
    ended = distrec("train", config)
    assert ended.code == 2, ended.out
    assert "could not be read, tried 3 times (data.retries): Weather: it rains" in ended.err
    saved = sorted((config.parent / "run" / "checkpoints").glob("step-*/manifest.json"))
    assert saved, "steps were trained before the store failed"
    flaky.failing = 0
    assert distrec("train", config, "--resume").code == 0
