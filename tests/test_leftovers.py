"""Folders made under another name: what a process that was killed left of one goes, what may be a living one's stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distrec.seal import replacing, swap_in

WRITES = """
import sys, time
from pathlib import Path
from distrec.seal import replacing
with replacing(Path(sys.argv[1])) as partial:
    (partial / "rows").write_bytes(bytes(2**20))
    print(partial, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def writer(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that is in the middle of replacing a folder, and what it writes into."""
    with subprocess.Popen([sys.executable, "-c", WRITES, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a killed process left beside tmp_path/out."""
    with writer(tmp_path / "out") as (_, partial):
        pass
    assert (partial / "rows").exists()
    return partial


def replace(folder: Path) -> None:
    with replacing(folder) as partial:
        (partial / "new").write_text("")


def owner_of(partial: Path) -> Path:
    return partial.with_name(partial.name.replace("partial", "owner"))


def test_what_a_killed_process_left_is_removed(left: Path, caplog: pytest.LogCaptureFixture) -> None:
    replace(left.parent / "other")
    assert left.exists(), "another folder's are not ours"
    replace(left.parent / "out")
    assert names(left.parent) == ["other", "out"]
    assert names(left.parent / "out") == ["new"]
    assert not caplog.records


def test_what_a_living_process_writes_stays_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with writer(tmp_path / "out") as (_, partial):
        replace(tmp_path / "out")
        assert (partial / "rows").exists()
        assert owner_of(partial).exists()
    assert not caplog.records


@pytest.mark.parametrize("how", ["another machine", "no owner", "an owner that may not be read"])
def test_what_may_be_another_machines_stays_and_is_named(left: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    owner = owner_of(left)
    owner.unlink()
    if how == "another machine":
        owner.write_text("another")
    elif how != "no owner":
        owner.mkdir()
    replace(left.parent / "out")
    assert (left / "rows").exists()
    [said] = caplog.messages
    assert said == (
        f"warning: {left} (1.0 MiB) is of a process that was killed, or of one that still writes, on another machine say; "
        f"if none does, remove it: rm -r {left}"
    )


def test_a_process_that_was_killed_between_two_names_loses_nothing(left: Path) -> None:
    folder = left.parent / "out"
    folder.mkdir()
    (folder / "old").write_text("")
    folder.rename(left.with_name(left.name.replace("partial", "old")))

    def fail() -> None:
        with replacing(folder):
            assert names(folder) == ["old"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(left.parent) == ["out"]
    assert names(folder) == ["old"]


def test_a_process_that_was_killed_after_the_second_name_leaves_the_new_one(left: Path) -> None:
    folder = left.parent / "out"
    old = left.with_name(left.name.replace("partial", "old"))
    old.mkdir()
    left.rename(folder)
    with replacing(folder):
        assert names(folder) == ["rows"]
        assert not old.exists()


def test_what_ends_it_between_the_two_names_brings_the_old_one_back(tmp_path: Path) -> None:
    replace(tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        swap_in(tmp_path / ".out.partial-01234567", tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_what_could_not_be_removed_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("distrec.seal.shutil.rmtree", lambda *path, ignore_errors: None)
        replace(tmp_path / "out")
    assert len(names(tmp_path)) == 3
    replace(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert not caplog.records


def test_of_two_that_swap_at_once_the_last_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename, between = tmp_path / "out", Path.replace, iter([True])
    replace(folder)

    def race(path: Path, target: Path) -> Path:
        if target == folder and next(between, False):
            (folder / "others").mkdir(parents=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", race)
    with replacing(folder) as partial:
        (partial / "newest").write_text("")
    assert names(tmp_path) == ["out"]
    assert names(folder) == ["newest"]


def test_a_folder_whose_name_holds_such_a_word_is_one_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "a.partial-b"
    for _ in range(2):
        replace(folder)
    assert names(tmp_path) == [folder.name]
    (tmp_path / ".a.partial-b.partial-01234567").mkdir()
    swap_in(tmp_path / ".a.partial-b.partial-01234567", folder)
    assert names(tmp_path) == [folder.name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_preparation_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = ["prepare", "synthetic", "--rows", "60000000", "--out", str(tmp_path)]
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started to ignore it
    process = subprocess.Popen([sys.executable, "-m", "distrec", *words], stderr=subprocess.PIPE, text=True)
    try:
        while not list(tmp_path.glob(".*.partial-*/*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        signal.signal(signal.SIGINT, usual)
    assert process.returncode == code
    assert "Traceback" not in said
    assert names(tmp_path) == []
