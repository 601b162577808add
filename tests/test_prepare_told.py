"""What `distrec prepare interactions` tells a person of their log, and what of it is warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from command import Command, Ended

from distrec.prepare.output import Prepared
from distrec.prepare.retrieval.interactions import interactions
from distrec.prepare.retrieval.items import ItemFile
from distrec.prepare.retrieval.log import LogColumns
from distrec.prepare.retrieval.splits import Splitting

COLUMNS = LogColumns("user", "item", "time")
MAY = 1_714_521_600  # 2024-05-01, in seconds
SAID = "2024-05-01 00:00:00 UTC to 2024-05-01 00:00:09 UTC"


def write(path: Path, times: list[Any] | pa.Array, **more: Any) -> Path:
    """A log of two users who take turns, and another item each time."""
    rows = len(times)
    log = pa.table({"user": ["a", "b"] * (rows // 2), "item": [f"i{n}" for n in range(rows)], "time": times} | more)
    (csv.write_csv if path.suffix == ".csv" else pq.write_table)(log, path)
    return path


def prepare(path: Path, **options: Any) -> Prepared:
    return interactions([[path]], path.parent / "out", **{"columns": COLUMNS} | options)


def description(prepared: Prepared) -> dict[str, Any]:
    return json.loads(prepared.description.read_text())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("unit", "word", "factor"),
    [("s", "seconds", 1), ("ms", "milliseconds", 10**3), ("us", "microseconds", 10**6), ("ns", "nanoseconds", 10**9)],
)
def test_integers_are_told_as_the_dates_that_they_are_by_their_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, unit: str, word: str, factor: int
) -> None:
    log = write(tmp_path / f"log{suffix}", [(MAY + n) * factor for n in range(10)])
    prepared = prepare(log, splitting=Splitting("temporal", 0.2, 0.2))
    begins = "valid from 2024-05-01 00:00:06 UTC, test from 2024-05-01 00:00:08 UTC"
    assert prepared.notes[0] == f"times: {SAID} (integers, read as {word} since 1970), {begins}"
    told = description(prepared)
    assert (told["time_column"], told["time_unit"]) == ("time", unit)
    assert (told["time_from"], told["time_to"]) == (MAY * factor, (MAY + 9) * factor)
    assert (told["valid_from"], told["test_from"]) == ((MAY + 6) * factor, (MAY + 8) * factor)
    assert (told["time_from_utc"], told["test_from_utc"]) == ("2024-05-01T00:00:00Z", "2024-05-01T00:00:08Z")
    assert not caplog.records


@pytest.mark.parametrize(
    "times",
    [
        pa.array([(MAY + n) * 1000 for n in range(10)], pa.timestamp("ms")),
        pa.array([f"2024-05-01T00:00:0{n}Z" for n in range(10)]),
        pa.array([MAY + float(n) for n in range(10)]),
    ],
    ids=["timestamps", "ISO 8601", "seconds"],
)
def test_moments_are_told_without_a_guess(tmp_path: Path, times: pa.Array) -> None:
    prepared = prepare(write(tmp_path / "log.parquet", times))
    assert prepared.notes[0] == f"times: {SAID}"
    told = description(prepared)
    assert (told["time_unit"], told["time_from"], told["time_to_utc"]) == ("us", MAY * 10**6, "2024-05-01T00:00:09Z")


@pytest.mark.parametrize("step", [1, 10**8])
def test_integers_that_are_no_dates_stay_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int) -> None:
    """Of the large ones, three might be seconds of 1992 to 1998; but what would the others be?"""
    prepared = prepare(write(tmp_path / "log.parquet", list(range(0, 10 * step, step))))
    assert prepared.notes[0] == f"times: 0 to {9 * step} (integers, read as no dates)"
    told = description(prepared)
    assert told["time_unit"] is None
    assert not {name for name in told if name.endswith("_utc")}
    assert not caplog.records


@pytest.mark.parametrize(
    ("times", "warning"),
    [
        (
            [MAY + n if n % 5 else (MAY + n) * 1000 for n in range(10)],
            f"column 'time' mixes units: 8 in seconds and 2 in milliseconds, by their size, from {MAY + 1} to {MAY + 5}000. "
            "Histories and splits go by them: write them all in one unit",
        ),
        (
            [0, *range(MAY, MAY + 9)],
            f"column 'time': times go from 0 (1970-01-01 00:00:00 UTC) to {MAY + 8} (2024-05-01 00:00:08 UTC), 54 years; some "
            "may be placeholders or in another unit. Histories and splits go by them: mend those rows, or leave them out",
        ),
        ([*range(MAY, MAY + 9), 253_402_300_799], "253402300799 (9999-12-31 23:59:59 UTC), 7,976 years"),
        ([f"2150-05-{n}" for n in range(10, 20)], "from 2150-05-10 00:00:00 UTC to 2150-05-19 00:00:00 UTC; some may be"),
        (
            [float(MAY * 1000 + n) for n in range(10)],
            "from 1714521600000 seconds since 1970 to 1714521600009 seconds since 1970",
        ),
        (["0001-01-01", *(f"2024-05-0{n}" for n in range(1, 10))], "from 0001-01-01 00:00:00 UTC to 2024-05-09 00:00:00 UTC"),
    ],
    ids=["two units", "zero", "no end", "too late", "floats in milliseconds", "the first day"],
)
def test_times_that_cannot_be_meant_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: list[Any], warning: str
) -> None:
    prepare(write(tmp_path / "log.parquet", times))
    [said] = caplog.messages
    assert said.startswith("warning: ")
    assert warning in said


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_that_are_older_than_what_their_history_shows_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    """By hand: in valid the first row of a alone; in test b's, older than valid's, and a's second, older than train's."""
    parts = {
        "train": [("a", "x", 10), ("a", "y", 20), ("b", "x", 30)],
        "valid": [("a", "z", 15), ("b", "z", 50), ("c", "z", 1)],
        "test": [("a", "v", 20), ("a", "x", 19), ("b", "v", 40), ("d", "v", 1)],
    }
    for name, rows in parts.items():
        user, item, time = zip(*rows, strict=True)
        log = pa.table({"user": user, "item": item, "time": [MAY + second for second in time]})
        (csv.write_csv if suffix == ".csv" else pq.write_table)(log, tmp_path / f"{name}{suffix}")
    files = [[tmp_path / f"{name}{suffix}"] for name in parts]
    prepared = interactions(files, tmp_path, columns=COLUMNS, splitting=Splitting("files"))
    assert description(prepared)["older_than_history"] == {"valid": 1, "test": 2}
    valid, test = caplog.messages
    assert valid.startswith("warning: --valid: 1 of 3 rows are older than rows of the same user in earlier splits. Their hist")
    assert test.startswith("warning: --test: 2 of 4 rows are older than")


def test_files_in_the_order_of_time_are_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [[write(tmp_path / f"{n}.parquet", [MAY + 10 * n + m for m in range(4)])] for n in range(3)]
    prepared = interactions(files, tmp_path, columns=COLUMNS, splitting=Splitting("files"), repeats="all")
    assert description(prepared)["older_than_history"] == {"valid": 0, "test": 0}
    assert not caplog.records
    assert "older_than_history" not in description(prepare(tmp_path / "0.parquet"))


def test_a_file_of_which_nothing_is_left_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [[write(tmp_path / name, [MAY + n for n in range(4)])] for name in ("log.parquet", "test.parquet")]
    prepared = interactions([files[0], [], files[1]], tmp_path, columns=COLUMNS, splitting=Splitting("files"))
    assert "test" not in prepared.rows
    assert "--test: no row is left, for each repeats what its user had before, or holds an unknown item" in caplog.messages[-1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("buckets", [1, 3])
def test_what_was_dropped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, buckets: int) -> None:
    """By hand: users a to d; a takes each of five items twice; c and d nothing that the catalogue has."""
    monkeypatch.setattr("distrec.prepare.retrieval.interactions.ROWS_A_BUCKET", 25 // buckets)
    rows = [("a", f"i{n % 5}", 1) for n in range(10)] + [("b", f"i{n}", 1) for n in range(4)]
    rows += [("b", "i4", 0)] * 3 + [("c", "x", 1), ("c", "y", 1), ("d", "x", 1), ("a", "x", 1)]
    user, item, taken = zip(*rows, strict=True)
    log = pa.table({"user": user, "item": item, "time": range(len(rows)), "taken": taken})
    (csv.write_csv if suffix == ".csv" else pq.write_table)(log, tmp_path / f"log{suffix}")
    pq.write_table(pa.table({"item": [f"i{n}" for n in range(5)]}), tmp_path / "items.parquet")
    prepared = prepare(
        tmp_path / f"log{suffix}",
        columns=LogColumns("user", "item", "time", label="taken"),
        items=ItemFile(tmp_path / "items.parquet", "item"),
        unknown_items="drop",
        min_history=1,
    )
    assert prepared.notes[1:-1] == (
        "dropped: 3 rows where 'taken' is not over 0",
        "dropped: 4 interactions with 2 items that --items lacks, and so 2 users with no others",
        "dropped: 5 repeats of a user and an item; --repeats all keeps them",
        "dropped: 2 training rows with fewer items before them than --min-history",
    )
    told = description(prepared)
    assert (told["interactions"], told["repeats_dropped"], told["unknown_items"]) == (9, 5, 2)
    assert (told["interactions_of_unknown_items"], told["users_of_unknown_items_alone"]) == (4, 2)


def test_repeats_that_are_dropped_though_all_are_kept_are_those_of_one_query(tmp_path: Path) -> None:
    log = pa.table({"user": ["a"] * 9, "item": [*"xyz", *"xyz", *"xxy"], "time": range(9)})
    pq.write_table(log, tmp_path / "log.parquet")
    prepared = prepare(tmp_path / "log.parquet", repeats="all", splitting=Splitting("temporal", 0, 0.33))
    assert prepared.rows["train"] == 6
    assert prepared.notes[1:-1] == ("dropped: 1 repeats in valid or test: a query names an item once",)


def test_nothing_is_said_of_what_was_not_dropped(tmp_path: Path) -> None:
    assert len(prepare(write(tmp_path / "log.csv", list(range(4)))).notes) == 2


def test_a_text_among_numbers_of_a_csv_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The third item's price, and the second row's dwell time; columns of text, of numbers and titles are none of this."""
    log = write(
        tmp_path / "log.csv", list(range(6)), dwell=["1", "-", "3", "4.5", "", "6"], device=["a", "b", "1", "d", "e", "f"]
    )
    items = ["item,price,kind,size,name", *(f"i{n},{n if n != 2 else 'n/a'},k{n},{n},{n or 'zero'}" for n in range(6))]
    (tmp_path / "items.csv").write_text("\n".join(items))
    file = ItemFile(tmp_path / "items.csv", "item", title="name", features=["price", "kind", "size"])
    prepared = prepare(log, columns=LogColumns("user", "item", "time", ["dwell", "device"]), items=file)
    dwell, price = caplog.messages
    assert dwell == (
        f"warning: {log}, line 3: column 'dwell' holds '-' and so becomes text, to be hashed like ids, though 4 of its first 5 "
        "values are numbers; for a dense feature, leave it empty"
    )
    assert f"{tmp_path / 'items.csv'}, line 4: column 'price' holds 'n/a'" in price
    assert "though 5 of its first 6 values are numbers" in price
    types = {column["name"]: column["type"] for column in description(prepared)["item_columns"]}
    assert (types["price"], types["size"]) == ("string", "int64")


def test_text_of_numbers_in_parquet_was_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = write(tmp_path / "log.parquet", list(range(6)), zip=["1", "-", "3", "4.5", None, "6"])
    prepare(log, columns=LogColumns("user", "item", "time", ["zip"]))
    assert not caplog.records


def test_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrec.prepare.retrieval.tabular.TEXT", 128)
    files = [write(tmp_path / f"{n}.csv", list(range(40)), dwell=["n/a", "1", "2", "3"] * 10) for n in range(2)]
    catalogue = "item,price\n" + "".join(f"i{n},{'n/a' if n % 4 == 0 else n}\n" for n in range(40))
    (tmp_path / "items.csv").write_text(catalogue)
    columns, items = LogColumns("user", "item", "time", ["dwell"]), ItemFile(tmp_path / "items.csv", "item", features=["price"])
    interactions([files], tmp_path, columns=columns, items=items)
    assert [message.count("becomes text") for message in caplog.messages] == [1, 1]


@pytest.fixture
def told(distrec: Command, tmp_path: Path) -> Any:
    """What `distrec prepare interactions LOG WORDS` ends with."""

    def run(log: Path, *words: object) -> Ended:
        names = ["--user", "user", "--item", "item", "--time", "time", "--out", tmp_path / "out", "--overwrite"]
        return distrec("prepare", "interactions", log, *names, *words)

    return run


def test_the_command_prints_both(told: Any, tmp_path: Path) -> None:
    ended = told(write(tmp_path / "log.csv", [0, *range(MAY, MAY + 9)]))
    assert ended.code == 0
    assert ended.err.startswith("warning: column 'time': times go from 0 (1970-01-01")
    wrote, times, following = ended.out.splitlines()
    assert wrote.startswith(f"wrote {tmp_path / 'out' / 'retrieval'}: train 6, valid 2, test 2, items 10, users 2, now 2 rows;")
    read = "(integers, read as seconds since 1970)"
    assert following == f"  next: distrec init {tmp_path / 'out' / 'retrieval'} > my.toml drafts a config that trains on it"
    assert times == f"  times: 1970-01-01 00:00:00 UTC to 2024-05-01 00:00:08 UTC {read}"
