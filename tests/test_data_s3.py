"""Data on S3, here moto's server on loopback: read, trained on and looked at as from a disk; and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from parquet_files import numbered, numbered_reader, real_rows
from s3_server import Server, serving
from single_rank import lines
from small_run import values, write_rows
from toml_text import to_toml

from distrec.data import remote
from distrec.data.files import find_files
from distrec.errors import UserError

pytest.importorskip("moto", reason="moto is not installed: see requirements/dev.txt")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: see requirements/s3.txt")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "log") as running:
        s3fs.S3FileSystem().mkdir("bucket")
        yield running
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def rows(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same rows on a disk and in the bucket."""
    local = write_rows(tmp_path_factory.mktemp("rows") / "train", rows=600)
    s3fs.S3FileSystem().put(str(local), "bucket/train", recursive=True)
    return local, "s3://bucket/train"


def test_every_row_is_read_as_from_a_disk(server: Server, tmp_path: Path) -> None:
    local = numbered(tmp_path / "rows", [[30, 20], [5], [100]])
    s3fs.S3FileSystem().put(local, "bucket/numbered", recursive=True)
    for rank in (0, 1):
        there, here = (numbered_reader(place, rank, 2) for place in ("s3://bucket/numbered", local))
        assert real_rows(there.batches(epochs=1)) == real_rows(here.batches(epochs=1))
        assert there.fingerprint == here.fingerprint


def test_a_run_trains_on_it_as_on_a_disk(distrec: Command, rows: tuple[Path, str], tmp_path: Path) -> None:
    losses = []
    for name, place in zip(("local", "remote"), rows, strict=True):
        config = tmp_path / f"{name}.toml"
        config.write_text(to_toml(values(rows[0], tmp_path / name)))
        ended = distrec("train", config, f"data.train={place}", f"data.valid={place}")
        assert ended.code == 0, ended.err
        losses.append([(line["step"], line[key]) for line in lines(tmp_path / name) for key in line if key.endswith("/loss")])
    assert len(losses[0]) >= 3
    assert losses[0] == losses[1]


def test_it_is_looked_at_and_drafted_from_as_on_a_disk(distrec: Command, rows: tuple[Path, str], tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text(to_toml(values(rows[0], tmp_path / "run")))
    there, here = (distrec("inspect", config, f"data.train={place}", "--json") for place in (rows[1], rows[0]))
    assert (there.code, there.out) == (0, here.out)
    drafts = [distrec("init", place, "--label", "label") for place in (rows[1], rows[0])]
    assert [draft.code for draft in drafts] == [0, 0], drafts[0].err
    assert drafts[0].out.replace(rows[1], "PLACE") == drafts[1].out.replace(str(rows[0]), "PLACE")
    draft = tmp_path / "draft.toml"
    draft.write_text(drafts[0].out)
    assert distrec("check", draft).code == 0


@pytest.mark.parametrize("place", ["s3://bucket/nothing", "s3://no-such-bucket/rows", "s3://no-such-bucket/*.parquet"])
def test_nothing_there_names_the_url(server: Server, place: str) -> None:
    with pytest.raises(UserError, match=rf"{place.replace('*', '[*]')}: no Parquet file there"):
        find_files([place])


def test_credentials_that_are_refused_are_said_so(server: Server, rows: tuple[Path, str]) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    server.require_credentials(True)
    try:
        with pytest.raises(UserError, match=r"s3://bucket/train: may not be listed: .+ Check the connection, the credentials"):
            find_files([rows[1]])
    finally:
        server.require_credentials(False)


def test_no_credentials_at_all(server: Server, rows: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"s3://bucket/train: cannot be listed: NoCredentialsError: .+ Check the connection"):
        find_files([rows[1]])


def test_a_store_that_goes_away_is_named_with_its_cause(
    distrec: Command, server: Server, rows: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last test of the module: the server is gone after it."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.0)
    s3fs.S3FileSystem.clear_instance_cache()
    reader = numbered_reader("s3://bucket/numbered")
    server.stop()
    with pytest.raises(
        UserError,
        match=r"s3://bucket/numbered/part-00.\.parquet: could not be read, tried 4 times .+ EndpointConnectionError: ",
    ):
        real_rows(reader.batches(epochs=1))
    config = tmp_path / "small.toml"
    config.write_text(to_toml(values(rows[0], tmp_path / "run")))
    ended = distrec("train", config, "data.train=s3://bucket/elsewhere")
    assert ended.code == 2
    assert "s3://bucket/elsewhere: cannot be listed: EndpointConnectionError: Could not connect" in ended.err
