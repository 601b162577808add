"""What may be wrong with a log or a catalogue: each has a message that names the place and the fix."""

import gzip
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from retrieval_rows import read

from distrec.errors import UserError
from distrec.prepare.retrieval.interactions import interactions
from distrec.prepare.retrieval.items import ItemFile
from distrec.prepare.retrieval.log import LogColumns
from distrec.prepare.retrieval.splits import Splitting

COLUMNS = LogColumns("user", "item", "time")
GOOD = {"user": [1, 1, 1, 2], "item": [7, 8, 9, 7], "time": [10, 20, 30, 40]}


def prepare(tmp_path: Path, *files: Path, **options):
    return interactions([files], tmp_path / "out", **{"columns": COLUMNS} | options)


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(GOOD | columns), path)
    return path


def refused(tmp_path: Path, message: str, *files: Path, **options) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, *files, **options)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name or path.name == "retrieval"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, None, 1, 2]}, r"log\.parquet, row 1: column 'user' is null, where an id is needed"),
        ({"item": ["a", "b", "", "a"]}, r"log\.parquet, row 2: column 'item' holds '', where an id is needed"),
        ({"item": pa.array([1, 2**63, 3, 4], pa.uint64())}, r"row 1: column 'item' holds 9223372036854775808"),
        ({"user": [1.0, None, 1.0, 2.0]}, r"column 'user' holds double; ids are integers or text; beware: nulls make"),
        ({"user": [True, False, True, True]}, r"column 'user' holds bool; ids are integers or text$"),
        ({"user": pa.nulls(4)}, r"column 'user' holds null; ids are integers or text$"),
        ({"time": [1, 2, 3, None]}, r"row 3: column 'time' is null, where a time: an integer, a timestamp or ISO 8601"),
        ({"time": ["2024-01-01", "2024-01-02", "yesterday", "2024-01-03"]}, r"row 2: column 'time' holds 'yesterday'"),
        ({"time": ["noon", "2024-01-02", "2024-01-02", "2024-01-03"]}, r"row 0: column 'time' holds 'noon'"),
        ({"time": [1.0, float("nan"), 2.0, 3.0]}, r"row 1: column 'time' holds nan"),
        (
            {"time": [[1], [2], [3], [4]]},
            r"column 'time' holds list<.*>; times are integers, timestamps, dates or ISO 8601 text",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_row(tmp_path, columns, message):
    refused(tmp_path, message, parquet(tmp_path / "log.parquet", **columns))


MISSING = ["NULL", "null", r"\N", "NA", "<NA>", "#N/A", "N/A", "n/a", "NaN", "nan", "None"]


@pytest.mark.parametrize("text", MISSING)
def test_what_programs_write_for_a_missing_id_is_none_unless_said(tmp_path, text):
    (tmp_path / "log.csv").write_text(f"user,item,time\n1,2,3\n1,5,4\n1,{text},5\n")
    message = (
        r"where an id is needed; programs write that where there is none: leave such rows out\. If it is one: --literal-ids"
    )
    refused(tmp_path, rf"log\.csv, line 4: column 'item' holds '.*', {message}", tmp_path / "log.csv")
    path = parquet(tmp_path / "log.parquet", user=["a", text, "a", "a"], item=["x", "x", "y", text])
    refused(tmp_path, r"log\.parquet, row 1: column 'user' holds", path)
    (tmp_path / "items.csv").write_text(f"item,kind\nx,nan\ny,NA\n{text},\n")
    items = ItemFile(tmp_path / "items.csv", "item", category="kind", literal_ids=True)
    columns = LogColumns("user", "item", "time", literal_ids=True)
    refused(
        tmp_path, r"items\.csv, line 4: column 'item' holds", path, columns=columns, items=replace(items, literal_ids=False)
    )
    assert prepare(tmp_path, path, columns=columns, items=items).rows["users"] == 2
    found = read(tmp_path / "out" / "retrieval", "items")
    assert [(row["raw_id"], row["category"]) for row in found] == [("x", "nan"), ("y", "NA"), (text, None)]


def test_ids_that_hold_such_a_text_or_are_spelt_otherwise_are_ids(tmp_path):
    path = parquet(tmp_path / "log.parquet", user=["nana", "na", "NONE", "Null"], item=["NaNa", "nan ", "none", "NULL-1"])
    assert prepare(tmp_path, path).rows["users"] == 4


def test_rows_are_counted_over_all_blocks_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("distrec.prepare.retrieval.tabular.ROWS", 3)
    rows = {"user": [1] * 10, "item": [5] * 8 + [None, 5], "time": [0] * 10}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    refused(tmp_path, "row 8: column 'item' is null", tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,time\n1,2,3\n1,,4\n", r"log\.csv, line 3: column 'item' is null"),
        ("user,item,time\n1,2,3\n1,2\n", r"log\.csv cannot be read: .*Row #3: Expected 3 columns, got 2"),
        ("user,item,time\n1,2,soon\n1,2,3\n", r"line 2: column 'time' holds 'soon'"),
        ("user,item\n1,2\n", r"log\.csv has no column 'time'; there is: user, item"),
        ("user,item,time,time\n1,2,3,4\n", r"has several columns 'time'"),
        ("user;item;time\n1;2;3\n", r"has no column 'user'; there is: user;item;time"),
        ("user,item,time\n", r"there is no interaction in .*log\.csv"),
        ("", r"log\.csv cannot be read: Empty CSV file"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    refused(tmp_path, message, tmp_path / "log.csv")


def test_a_line_far_into_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("distrec.prepare.retrieval.tabular.TEXT", 64)
    (tmp_path / "log.csv").write_text("user,item,time\n" + "1,2,3\n" * 50 + "1,2,soon\n")
    refused(tmp_path, r"Row #52: CSV conversion error to int64: invalid value 'soon'", tmp_path / "log.csv")
    (tmp_path / "log.csv").write_text("user,item,time\n" + "1,2,3\n" * 50 + ",2,3\n")
    refused(tmp_path, r"log\.csv, line 52: column 'user' is null", tmp_path / "log.csv")


def test_a_packed_file_cut_short_is_named(tmp_path):
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"user,item,time\n" + b"1,2,3\n" * 5000)[:-20])
    refused(tmp_path, r"log\.csv\.gz cannot be read", tmp_path / "log.csv.gz")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "log.parquet").write_text("user,item,time\n1,2,3\n")
    refused(tmp_path, r"log\.parquet cannot be read", tmp_path / "log.parquet")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path: Path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # whoever runs the tests may read all
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Permission denied"):
        prepare(tmp_path, tmp_path)


def test_what_is_on_another_machine_has_to_be_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, "s3://shop/log.parquet is on another machine", Path("s3://shop/log.parquet"))
    log = parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match="s3://shop/out/retrieval is on another machine, and distrec prepare"):
        interactions([[log]], Path("s3://shop/out"), columns=COLUMNS)
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"user": ["a", "b", "c", "d"]}, r"column 'user' holds text in .*b\.parquet, but integers in .*a\.parquet"),
        ({"time": pa.array([1, 2, 3, 4], pa.timestamp("s"))}, r"column 'time' holds moments in .*b\.parquet, but integers in"),
        ({"price": ["1", "2", "3", "4"]}, r"column 'price' holds text in .*b\.parquet, but numbers in"),
    ],
)
def test_a_column_holds_one_type_in_all_files(tmp_path, other, message):
    price = {"price": [0.5, 1.0, 2.0, 4.0]}
    files = [parquet(tmp_path / "a.parquet", **price), parquet(tmp_path / "b.parquet", **price | other)]
    refused(tmp_path, message, *files, columns=LogColumns("user", "item", "time", ["price"]))


def test_sources_must_be_files_of_a_known_format_named_once(tmp_path):
    path = parquet(tmp_path / "log.parquet")
    (tmp_path / "log.xlsx").write_text("")
    refused(tmp_path, r"no file at .*none\.parquet", tmp_path / "none.parquet")
    refused(tmp_path, r"log\.xlsx: a file must end in \.parquet, \.csv or \.tsv", tmp_path / "log.xlsx")
    refused(tmp_path, r"log\.parquet is named twice", path, tmp_path / "*.parquet")
    with pytest.raises(UserError, match=r"log\.parquet is named twice"):
        interactions([[path], [path], []], tmp_path / "out", columns=COLUMNS, splitting=Splitting("files"))


@pytest.mark.parametrize("feature", ["item_id", "seen", "raw_id", "raw_user_id", "twice"])
def test_a_feature_takes_no_name_that_is_taken(tmp_path, feature):
    columns = LogColumns("user", "item", "time", [feature, "twice"])
    refused(tmp_path, f"a feature cannot be named '{feature}'", parquet(tmp_path / "log.parquet"), columns=columns)


def test_a_feature_of_no_use_is_refused(tmp_path):
    path = parquet(tmp_path / "log.parquet", seen_at=pa.array([1, 2, 3, 4], pa.timestamp("s")))
    columns = LogColumns("user", "item", "time", ["seen_at"])
    refused(tmp_path, r"column 'seen_at' holds timestamp\[ms\]; a feature holds integers, text, lists", path, columns=columns)


def test_user_item_and_time_are_three_columns(tmp_path):
    columns = LogColumns("user", "item", "user")
    refused(tmp_path, "must be three columns", parquet(tmp_path / "log.parquet"), columns=columns)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item": [7, 8]}, r"items\.parquet lacks 1 of the 3 items in the log, such as 9; .*--unknown-items drop"),
        ({"item": [7, 8, 9, 8, 7]}, r"items\.parquet: item 8 stands on rows 1 and 3, counted from 0"),
        ({"item": [7, None, 9]}, r"items\.parquet, row 1: column 'item' is null"),
        ({"item": ["7", "8", "9"]}, r"item ids are text in .*items\.parquet, but integers in the log"),
        ({"item": pa.array([], pa.int64())}, r"items\.parquet holds no item"),
        ({"sku": [7, 8, 9]}, r"items\.parquet has no column 'item'; there is: sku"),
    ],
)
def test_a_catalogue_has_each_item_of_the_log_once(tmp_path, items, message):
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    log = parquet(tmp_path / "log.parquet")
    refused(tmp_path, message, log, items=ItemFile(tmp_path / "items.parquet", "item"))


def test_a_log_whose_items_are_all_unknown_leaves_nothing(tmp_path):
    pq.write_table(pa.table({"item": [1]}), tmp_path / "items.parquet")
    items = ItemFile(tmp_path / "items.parquet", "item", title="item", category="item")
    refused(tmp_path, "no row is left to train on", parquet(tmp_path / "log.parquet"), items=items, unknown_items="drop")


def test_a_title_is_one_value(tmp_path):
    pq.write_table(pa.table({"item": [7, 8, 9], "name": [["a"], ["b"], ["c"]]}), tmp_path / "items.parquet")
    items = ItemFile(tmp_path / "items.parquet", "item", title="name")
    refused(tmp_path, "column 'name' holds lists of text; a title", parquet(tmp_path / "log.parquet"), items=items)


@pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.1, 0.0), (0.5, 0.5)])
def test_shares_leave_something_to_train_on(valid, test):
    with pytest.raises(UserError, match=r"--valid-share .* and --test-share"):
        Splitting("temporal", valid, test)


@pytest.mark.parametrize(("option", "value"), [("max_history", 0), ("min_history", -1)])
def test_lengths_of_histories_are_possible(tmp_path, option, value):
    message = f"--{option.replace('_', '-')} {value}: must be at least"
    refused(tmp_path, message, parquet(tmp_path / "log.parquet"), **{option: value})


def test_a_log_of_one_moment_cannot_be_cut_by_time(tmp_path):
    path = parquet(tmp_path / "log.parquet", time=[5, 5, 5, 5])
    refused(tmp_path, "no row is left to train on", path, splitting=Splitting("temporal"))


def test_users_with_one_interaction_are_trained_on_and_not_asked_for(tmp_path):
    rows = {"user": [1, 2, 3], "item": [7, 8, 9], "time": [1, 2, 3]}
    assert prepare(tmp_path, parquet(tmp_path / "log.parquet", **rows)).rows == {"train": 3, "items": 3, "users": 3, "now": 3}
