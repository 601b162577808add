"""Finding files, reading footers, and refusing what does not fit before a row is read."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import lists, numbered, numbered_reader, read_columns, real_rows, write

from distrec.config.schema import Data, DenseFeature, SparseFeature, Table, Task
from distrec.data import parquet
from distrec.data.columns import Use, is_number
from distrec.data.files import Source, find_files
from distrec.data.parquet import open_dataset
from distrec.errors import UserError

X = [DenseFeature(name="x")]
TEN = {"t": Table(rows=10, dim=4)}
NUMBER = Use("x", "feature 'x'", is_number, "a number")


def names(*paths: str) -> list[str]:
    return [Path(source.path).name for source in find_files(paths)]


def test_a_folder_is_searched_recursively_in_order_without_hidden_files(tmp_path):
    for name in ("b/2.parquet", "b/10.parquet", "a.parquet", "_metadata.parquet", ".tmp.parquet", "_old/c.parquet", "note.txt"):
        write(tmp_path / name, {"x": [1.0]})
    assert names(str(tmp_path)) == ["a.parquet", "10.parquet", "2.parquet"]


def test_a_hidden_folder_may_be_named(tmp_path):
    write(tmp_path / "_run" / "a.parquet", {"x": [1.0]})
    assert names(str(tmp_path / "_run")) == ["a.parquet"]


def test_globs_files_and_the_order_of_paths(tmp_path):
    for name in ("d=1/a.parquet", "d=2/b.parquet", "c.data"):
        write(tmp_path / name, {"x": [1.0]})
    assert names(str(tmp_path / "c.data"), str(tmp_path / "d=*")) == ["c.data", "a.parquet", "b.parquet"]
    assert names(str(tmp_path / "*" / "b.parquet")) == ["b.parquet"]


def test_a_file_named_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1.0]})
    with pytest.raises(UserError, match=r"a\.parquet is named twice"):
        find_files([path, str(tmp_path)])


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.parquet", "."])
def test_nothing_found_names_the_path(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{path.replace('*', '[*]')}: no Parquet file there"):
        find_files([path])


def test_an_unknown_protocol_is_a_users_error():
    with pytest.raises(UserError, match="cannot be listed"):
        find_files(["gopher-x://bucket/a.parquet"])


def test_a_memory_url_reads_like_a_local_file(tmp_path):
    local = write(tmp_path / "a.parquet", {"x": [1.0, 2.0], "c": [[1, 2], [3]]})
    remote = fsspec.filesystem("memory")
    remote.pipe("/bucket/day/a.parquet", Path(local).read_bytes())
    try:
        batch = read_columns("memory://bucket/day", dense=X, sparse=[SparseFeature(name="c", table="t")], tables=TEN)
    finally:
        remote.rm("/bucket", recursive=True)
    assert batch.dense[:, 0].tolist() == [1.0, 2.0]
    assert lists(batch.sparse, "c") == [[1, 2], [3]]


def test_a_text_file_and_a_truncated_file_are_named(tmp_path):
    text = tmp_path / "t.parquet"
    text.write_text("x\n1\n2\n3\n4\n5\n")
    whole = Path(write(tmp_path / "w.parquet", {"x": [1.0] * 100})).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    for name in ("t", "half", "empty"):
        with pytest.raises(UserError, match=rf"{name}\.parquet: not a Parquet file, or truncated"):
            read_columns(str(tmp_path / f"{name}.parquet"), dense=X)


def test_a_missing_column_names_its_file_its_use_and_the_nearest(tmp_path):
    write(tmp_path / "a.parquet", {"price": [1.0]})
    write(tmp_path / "b.parquet", {"pricy": [1.0]})
    with pytest.raises(UserError, match=r"b\.parquet: no column 'price' \(dense feature 'price'\).*pricy"):
        read_columns(str(tmp_path), dense=[DenseFeature(name="price")])


MISTYPED = [
    ({"dense": X}, ["a"], "dense feature 'x'.*type string"),
    ({"tasks": [Task(label="x")]}, ["a"], "label of task 'label'.*type string"),
    ({"data": {"weight": "x"}}, ["a"], "data.weight.*type string"),
    ({"data": {"group": "x"}}, [1.5], "data.group.*type double"),
    ({"sparse": [SparseFeature(name="x", table="t")], "tables": TEN}, ["a"], "feature 'x'.*use ids = \"hash\" for strings"),
    ({"sparse": [SparseFeature(name="x", table="t", ids="hash")], "tables": TEN}, [1.5], "feature 'x'.*type double"),
    ({"sparse": [SparseFeature(name="x", table="t", ids="hash")], "tables": TEN}, [{"k": 1}], "feature 'x'.*type struct"),
    ({"dense": X}, [[1.0]], "dense feature 'x'.*type list"),
]


@pytest.mark.parametrize(("features", "values", "message"), MISTYPED)
def test_a_mistyped_column_is_refused_from_the_schema(tmp_path, features, values, message):
    path = write(tmp_path / "a.parquet", {"x": values})
    with pytest.raises(UserError, match=rf"a\.parquet: column 'x' \({message}"):
        read_columns(path, **features)


def test_a_type_is_checked_in_every_file(tmp_path):
    write(tmp_path / "a.parquet", {"x": [1.0]})
    write(tmp_path / "b.parquet", {"x": ["1"]})
    with pytest.raises(UserError, match=r"b\.parquet: column 'x'"):
        read_columns(str(tmp_path), dense=X)


def test_files_of_different_widths_are_read_as_one(tmp_path):
    write(tmp_path / "a.parquet", {"c": pa.array([1], pa.int32()), "x": pa.array([None], pa.null())})
    write(tmp_path / "b.parquet", {"c": pa.array([2], pa.int64()), "x": pa.array([2.5], pa.float64())})
    batch = read_columns(
        str(tmp_path), dense=[DenseFeature(name="x", null=0)], sparse=[SparseFeature(name="c", table="t")], tables=TEN
    )
    assert batch.dense[:, 0].tolist() == [0.0, 2.5]
    assert lists(batch.sparse, "c") == [[1], [2]]


def test_integers_in_one_file_and_strings_in_another_are_refused(tmp_path):
    write(tmp_path / "a.parquet", {"c": [1]})
    write(tmp_path / "b.parquet", {"c": ["1"]})
    with pytest.raises(UserError, match=r"b\.parquet: a column's type does not fit that of .*a\.parquet.*int64 vs string"):
        read_columns(str(tmp_path), sparse=[SparseFeature(name="c", table="t", ids="hash")], tables=TEN)


def test_dictionaries_that_differ_from_row_group_to_row_group_are_joined(tmp_path):
    strings = pa.array(["a", "b", "c", "d"]).dictionary_encode()
    path = write(tmp_path / "a.parquet", {"c": strings}, row_group_size=2)
    plain = write(tmp_path / "b.parquet", {"c": ["a", "b", "c", "d"]})
    features = {"sparse": [SparseFeature(name="c", table="t", ids="hash")], "tables": TEN}
    assert lists(read_columns(path, **features).sparse, "c") == lists(read_columns(plain, **features).sparse, "c")


def test_too_many_rows_for_the_hash_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", {"c": [1]})
    with pytest.raises(UserError, match="table 't' has 1099511627777 rows"):
        read_columns(path, sparse=[SparseFeature(name="c", table="t")], tables={"t": Table(rows=(1 << 40) + 1, dim=4)})


def test_files_and_row_groups_without_rows_are_skipped(tmp_path):
    reader = numbered_reader(numbered(tmp_path / "d", [[0], [3, 0, 2], [0, 0], [1]]), shuffle=False)
    assert real_rows(reader.batches(epochs=1)) == list(range(6))
    assert numbered_reader(str(tmp_path / "d")).dataset.rows == 6


def test_no_rows_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no rows in .*d: 2 Parquet files, all empty"):
        numbered_reader(numbered(tmp_path / "d", [[0], []]))


def test_the_fingerprint_follows_names_and_row_counts(tmp_path):
    def fingerprint(folder: str, groups: list[list[int]]) -> str:
        return open_dataset([numbered(tmp_path / folder, groups)], [Use("row", "x", is_number, "")]).fingerprint

    assert fingerprint("a", [[3, 2], [4]]) == fingerprint("b", [[3, 2], [4]])
    assert (
        len({fingerprint(*c) for c in (("a", [[3, 2], [4]]), ("c", [[2, 3], [4]]), ("d", [[3, 2, 4]]), ("e", [[3], [2, 4]]))})
        == 4
    )


def test_only_the_columns_in_use_are_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"x": [1.0], "y": [2.0], "z": ["large"], "x.y": [3.0]})
    asked, original = [], pq.ParquetFile.iter_batches

    def spy(self, *args, **kwargs):
        asked.append(kwargs["columns"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    dataset = open_dataset([path], [NUMBER])
    assert [part.schema.names for part in dataset.read(dataset.row_groups, True)] == [["x"]]
    assert asked == [["x"]]


def opened_in_an_epoch(folder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file names that a shuffled epoch opens, in order."""
    reader = numbered_reader(folder)
    opened, original = [], parquet.open_parquet

    def spy(source: Source, verify_checksums: bool) -> pq.ParquetFile:
        opened.append(Path(source.path).name)
        return original(source, verify_checksums)

    monkeypatch.setattr(parquet, "open_parquet", spy)
    assert sorted(real_rows(reader.batches(epochs=1))) == list(range(reader.dataset.rows))
    return opened


def test_a_file_whose_row_groups_are_shuffled_is_opened_once(tmp_path, monkeypatch):
    opened = opened_in_an_epoch(numbered(tmp_path / "d", [[3] * 5, [4] * 5, [2] * 5]), monkeypatch)
    assert sorted(opened) == ["part-000.parquet", "part-001.parquet", "part-002.parquet"]


@pytest.mark.parametrize("limit", [{"OPEN_FILES": 2}, {"FOOTER_BYTES": 1}])
def test_no_more_files_stay_open_than_may(tmp_path, monkeypatch, limit):
    folder = numbered(tmp_path / "d", [[3] * 5, [4] * 5, [2] * 5])
    for name, value in limit.items():
        monkeypatch.setattr(parquet, name, value)
    assert len(opened_in_an_epoch(folder, monkeypatch)) > 3
    files = parquet.OpenFiles(open_dataset([folder], [Use("row", "x", is_number, "")]).files, verify_checksums=False)
    held = [(files[index], len(files._opened))[1] for index in (0, 1, 2, 1)]
    assert held == ([1, 2, 2, 2] if "OPEN_FILES" in limit else [1, 1, 1, 1])


def test_the_file_used_last_is_the_last_to_be_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "OPEN_FILES", 2)
    dataset = open_dataset([numbered(tmp_path / "d", [[1], [1], [1]])], [Use("row", "x", is_number, "")])
    files = parquet.OpenFiles(dataset.files, verify_checksums=False)
    first, second = files[0], files[1]
    assert files[0] is first
    assert files[2] is not second
    assert files[0] is first
    assert files[1] is not second


def flip(path: str, column: int, group: int) -> None:
    """Flip a bit in the middle of a column chunk's data."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    at = chunk.data_page_offset + chunk.total_compressed_size - 3
    raw = bytearray(Path(path).read_bytes())
    raw[at] ^= 1
    Path(path).write_bytes(raw)


def test_flipped_bytes_are_found_by_page_checksums(tmp_path):
    values = np.random.default_rng(0).random(1000)
    options = {"row_group_size": 500, "write_page_checksum": True, "compression": "none", "use_dictionary": False}
    path = write(tmp_path / "a.parquet", {"x": values}, **options)
    flip(path, 0, 1)
    with pytest.raises(UserError, match=r"a\.parquet: row group 1 cannot be decoded, the file is damaged.*CRC"):
        read_columns(path, dense=X)
    damaged = read_columns(path, dense=X, data={"verify_checksums": False}).dense[:, 0]
    assert (damaged.numpy() != values.astype(np.float32)).sum() <= 1  # read without a word: that is why they are verified


def test_a_file_that_vanishes_after_the_footers_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1.0]})
    dataset = open_dataset(Data(train=path).train, [NUMBER])
    Path(path).unlink()
    with pytest.raises(UserError, match=r"a\.parquet: the file is gone"):
        list(dataset.read(dataset.row_groups, True))
