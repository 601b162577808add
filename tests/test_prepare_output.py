"""What every preparation shares: folders that appear whole, and files that are checksummed and deal well."""

import json
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrec.errors import UserError
from distrec.prepare.description import ID_LIST, Column, arrow_schema, write_description
from distrec.prepare.output import new_folder
from distrec.prepare.parquet_out import row_group_rows, write_split

SCHEMA = pa.schema([pa.field("x", pa.int64())])


def table(start, stop):
    return pa.table({"x": pa.array(range(start, stop), pa.int64())})


def _break_off(partial):
    (partial / "x").write_text("new")
    raise ZeroDivisionError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_when_the_block_ends_well(tmp_path):
    with new_folder(tmp_path / "a" / "ctr", overwrite=False) as partial:
        (partial / "x").write_text("new")
        assert not (tmp_path / "a" / "ctr").exists()
    assert (tmp_path / "a" / "ctr" / "x").read_text() == "new"
    assert names(tmp_path / "a") == ["ctr"]
    assert (tmp_path / "a" / "ctr").stat().st_mode & stat.S_IRWXG == (tmp_path / "a").stat().st_mode & stat.S_IRWXG


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_and_nothing_is_lost_when_the_block_fails(tmp_path, overwrite):
    folder = tmp_path / "ctr"
    folder.mkdir()
    if overwrite:
        (folder / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(folder, overwrite=overwrite) as partial:
        _break_off(partial)
    assert names(tmp_path) == ["ctr"]
    assert names(folder) == (["x"] if overwrite else [])


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    folder = tmp_path / "ctr"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(UserError, match=r"ctr is not empty.*--overwrite"), new_folder(folder, overwrite=False):
        pytest.fail("must refuse before the work")
    with new_folder(folder, overwrite=True) as partial:
        (partial / "new").write_text("")
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["ctr"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "ctr").mkdir()
    with new_folder(tmp_path / "ctr", overwrite=False) as partial:
        (partial / "new").write_text("")
    assert names(tmp_path / "ctr") == ["new"]


def test_a_file_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out is a file"), new_folder(tmp_path / "out", overwrite=True):
        pass
    with pytest.raises(UserError, match=r"cannot write .*--out"), new_folder(tmp_path / "out" / "ctr", overwrite=True):
        pass


def test_each_block_is_a_row_group_and_files_end_at_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("distrec.prepare.parquet_out.ROWS_A_FILE", 10)
    assert write_split(tmp_path / "train", SCHEMA, (table(i, i + 5) for i in range(0, 25, 5))) == 25
    files = [pq.ParquetFile(tmp_path / "train" / f"part-{i}.parquet") for i in range(3)]
    assert [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in files] == [[5, 5], [5, 5], [5]]
    assert pq.read_table(tmp_path / "train")["x"].to_pylist() == list(range(25))
    assert names(tmp_path / "train") == ["part-0.parquet", "part-1.parquet", "part-2.parquet"]


def test_no_rows_still_have_a_schema(tmp_path):
    assert write_split(tmp_path / "valid", SCHEMA, ()) == 0
    assert pq.read_table(tmp_path / "valid").schema.equals(SCHEMA)


def test_a_flipped_byte_is_noticed(tmp_path):
    write_split(tmp_path / "train", SCHEMA, [table(0, 10_000)])
    path = tmp_path / "train" / "part-0.parquet"
    assert pq.read_table(path, page_checksum_verification=True).num_rows == 10_000
    content = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"checksum|CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize(("rows", "expected"), [(0, 1), (1, 1), (16, 1), (17, 2), (400_000, 25_000), (10**9, 100_000)])
def test_small_splits_still_have_row_groups_for_every_rank(rows, expected):
    assert row_group_rows(rows) == expected


def test_the_description_names_columns_roles_and_cardinalities(tmp_path):
    columns = (Column("label", pa.int8(), "label"), Column("h", ID_LIST, "sequence", 7, shares="item"))
    path = write_description(tmp_path, "d", "ctr", columns, {"train": 3}, seed=5)
    assert json.loads(path.read_text()) == {
        "dataset": "d",
        "task": "ctr",
        "rows": {"train": 3},
        "seed": 5,
        "columns": [
            {"name": "label", "type": "int8", "role": "label"},
            {"name": "h", "type": "list<element: int64>", "role": "sequence", "cardinality": 7, "shares": "item"},
        ],
    }
    assert [field.nullable for field in arrow_schema(columns)] == [False, True]
