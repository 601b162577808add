"""`train.profile`: a trace that Perfetto opens, of the steps that were asked for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from single_rank import lines, make
from small_run import write_rows

from distrec import dist
from distrec.config.schema import Profile
from distrec.tracing import NullTrace, Trace, trace_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), rows=640)


def events(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    with gzip.open(folder / "profile" / f"rank-{rank}.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


def steps(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps' ranges, of the main thread."""
    return sorted((e for e in found if e["name"].startswith("ProfilerStep#") and e["ph"] == "X"), key=lambda e: e["ts"])


@pytest.fixture(scope="module")
def profiled(ranks: dist.Ranks, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a run that was profiled and of the same run without."""
    folder = tmp_path_factory.mktemp("runs")
    train = {"steps": 8, "log_every": 1}
    make(ranks, rows, folder / "on", train=train | {"profile": {"start": 3, "steps": 2}}).run()
    make(ranks, rows, folder / "off", train=train).run()
    return folder / "on", folder / "off"


def test_the_trace_holds_the_steps_that_were_asked_for(profiled: tuple[Path, Path]) -> None:
    found = steps(events(profiled[0]))
    assert [event["name"] for event in found] == ["ProfilerStep#3", "ProfilerStep#4"]
    assert all(event["dur"] > 0 for event in found)
    assert found[0]["ts"] + found[0]["dur"] <= found[1]["ts"] + 1


def test_each_step_holds_the_lookups_of_the_tables_and_the_dense_part(profiled: tuple[Path, Path]) -> None:
    found = events(profiled[0])
    for step in steps(found):
        begin, end = step["ts"], step["ts"] + step["dur"]
        names = {event["name"] for event in found if event.get("ph") == "X" and begin <= event["ts"] < end}
        assert any("embedding" in name for name in names)
        assert any(name.startswith("fbgemm::") for name in names), sorted(names)
        assert "aten::addmm" in names
        assert any("backward" in name.lower() for name in names)


def test_profiling_changes_nothing_that_is_learned_and_off_it_writes_nothing(profiled: tuple[Path, Path]) -> None:
    on, off = ([line["train/loss"] for line in lines(folder)] for folder in profiled)
    assert on == off
    assert not (profiled[1] / "profile").exists()


def test_a_run_that_ends_early_keeps_what_there_is_and_says_when_there_is_nothing(
    ranks: dist.Ranks, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(ranks, rows, tmp_path / "part", train={"steps": 4, "profile": {"start": 2, "steps": 100}}).run()
    assert [event["name"] for event in steps(events(tmp_path / "part"))][:2] == ["ProfilerStep#2", "ProfilerStep#3"]
    make(ranks, rows, tmp_path / "none", train={"steps": 4, "profile": {"start": 9, "steps": 1}}).run()
    assert "nothing is profiled: training ended within train.profile.start = 9 steps" in caplog.text
    assert not (tmp_path / "none" / "profile").exists()


def test_only_the_ranks_that_are_named_record(tmp_path: Path) -> None:
    settings = Profile(ranks=(0, 2))
    assert [isinstance(trace_of(settings, tmp_path, rank), Trace) for rank in range(4)] == [True, False, True, False]
    assert type(trace_of(None, tmp_path, 0)) is NullTrace


def test_a_folder_that_cannot_be_written_stops_no_training(
    ranks: dist.Ranks, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(ranks, rows, tmp_path / "run", train={"steps": 4, "profile": {"start": 1, "steps": 1}})
    (tmp_path / "run" / "profile").write_text("in the way")
    assert trainer.run().steps == 4
    assert "cannot write the profile" in caplog.text
