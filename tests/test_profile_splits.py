"""Which files are held out, and that nothing of the future is trained on without a word."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from parquet_files import write

from distrec.profile.footers import survey
from distrec.profile.splits import Splits, split_files

START = 1_700_000_000


def files(folder: Path, times: dict[str, range], **options) -> None:
    """A file for each name, with a row for each second."""
    for name, seconds in times.items():
        columns = {"timestamp": pa.array([START + s for s in seconds], pa.int64()), "x": list(seconds)}
        write(folder / f"{name}.parquet", columns, **options)


def split(*given: object, time: str | None = "timestamp") -> tuple[Splits, dict[str, list[str]]]:
    """The splits, and the names of their files."""
    paths = [str(g) for g in given]
    found = survey(paths)
    made = split_files(found, paths, time)
    return made, {name: [Path(found.files[i].path).stem for i in chosen] for name, chosen in made.files.items()}


def test_files_in_order_of_time_are_cut_by_time_whatever_their_names(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(80, 100), "b": range(40), "c": range(40, 80)})
    made, names = split(tmp_path)
    assert names == {"train": ["b", "c"], "valid": ["a"]}
    assert made.paths == {"train": (f"{tmp_path}/b.parquet", f"{tmp_path}/c.parquet"), "valid": (f"{tmp_path}/a.parquet",)}
    assert "by timestamp" in made.reason


def test_enough_rows_are_held_out_and_never_all(tmp_path: Path) -> None:
    files(tmp_path, {f"p{i:02d}": range(i * 10, i * 10 + 1) for i in range(30)})
    assert split(tmp_path)[1]["valid"] == ["p27", "p28", "p29"]
    files(tmp_path / "two", {"a": range(1), "b": range(1, 1000)})
    assert split(tmp_path / "two")[1] == {"train": ["a"], "valid": ["b"]}


def test_files_that_overlap_in_time_are_not_cut_and_the_config_says_so(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(60), "b": range(50, 100)})
    made, names = split(tmp_path)
    assert names == {"train": ["a", "b"]}
    assert made.paths == {"train": (str(tmp_path),)}
    assert "overlap in 'timestamp'" in made.warning


def test_files_that_touch_in_time_are_cut(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(61), "b": range(60, 100)})
    assert split(tmp_path)[1] == {"train": ["a"], "valid": ["b"]}


def test_files_that_do_not_say_their_times_are_not_cut(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(50), "b": range(50, 100)}, write_statistics=False)
    made, names = split(tmp_path)
    assert names == {"train": ["a", "b"]}
    assert "footers do not say" in made.warning


def test_one_file_holds_nothing_out(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(100), "none": range(0)})
    made, names = split(tmp_path / "a.parquet")
    assert names == {"train": ["a"]}
    assert "one file" in made.reason
    assert "one file with rows" in split(tmp_path)[0].reason


def test_without_a_time_the_last_file_is_held_out_with_a_caution(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(50), "b": range(50)})
    made, names = split(tmp_path, time=None)
    assert names == {"train": ["a"], "valid": ["b"]}
    assert "fair only if" in made.reason


@pytest.mark.parametrize("names", [("train/x", "valid/x", "test/x"), ("train", "val", "test"), ("Train-0", "dev-0", "testing")])
def test_names_of_folders_and_files_come_first(tmp_path: Path, names: tuple[str, str, str]) -> None:
    files(tmp_path, dict(zip(names, (range(50), range(50, 70), range(70, 90)), strict=True)))
    made, _ = split(tmp_path)
    folders = [Path(name).parent if "/" in name else Path(f"{name}.parquet") for name in names]
    assert made.paths == {s: (str(tmp_path / f),) for s, f in zip(("train", "valid", "test"), folders, strict=True)}
    assert made.warning == ""


def test_named_splits_that_go_back_in_time_are_said(tmp_path: Path) -> None:
    files(tmp_path, {"train": range(100), "valid": range(40, 50)})
    assert split(tmp_path)[0].warning.startswith("valid begins before train ends")


def test_names_count_only_when_every_file_has_one(tmp_path: Path) -> None:
    files(tmp_path, {"train": range(50), "more": range(50, 60), "valid": range(60, 70)})
    assert split(tmp_path)[1] == {"train": ["train", "more"], "valid": ["valid"]}  # by time
    files(tmp_path / "test", {"a": range(50), "b": range(50, 60)})
    assert split(tmp_path / "test")[1] == {"train": ["a"], "valid": ["b"]}  # not by the folder that was given


def test_a_relative_path_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "data", {"a": range(50), "b": range(50, 60)})
    monkeypatch.chdir(tmp_path)
    assert split("data")[0].paths == {"train": ("data/a.parquet",), "valid": ("data/b.parquet",)}


def test_a_url_keeps_its_protocol(tmp_path: Path) -> None:
    files(tmp_path, {"a": range(50), "b": range(50, 60)})
    assert split(f"file://{tmp_path}")[0].paths["valid"] == (f"file://{tmp_path}/b.parquet",)
