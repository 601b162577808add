"""Warnings are errors, but for the dependencies' own that a run silences too."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ranks import Outcome, run_ranks

from distrec.log import DEPENDENCY_WARNINGS

if TYPE_CHECKING:
    from command import Command

    from distrec.dist import Ranks


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    for category, message in DEPENDENCY_WARNINGS:
        start = re.escape(message).replace(":", r"\x3a")  # a colon would end the field
        config.addinivalue_line("filterwarnings", f"ignore:{start}:{category.__name__}")


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """distrec's log reaches `caplog`, though a run before in this process has taken it for its own."""
    monkeypatch.setattr(logging.getLogger("distrec"), "propagate", True)


@pytest.fixture(scope="session")
def sharding_on(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Outcome of tests/programs/sharding.py on a number of ranks; each number is run once a session."""
    done: dict[int, Outcome] = {}

    def outcome(ranks: int) -> Outcome:
        if ranks not in done:
            done[ranks] = run_ranks("sharding.py", ranks, tmp_path_factory.mktemp(f"sharding{ranks}"))
        return done[ranks]

    return outcome


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """This process as the only rank there is."""
    from single_rank import alone  # loads torch, too

    with alone() as found:
        yield found


@pytest.fixture
def distrec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The command line in this process, as one rank alone."""
    from command import command_line  # loads torch, which most of `make check` has no use for

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with command_line(capsys) as run:
        yield run


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and results of a retriever that two ranks trained, exported and asked."""
    folder = tmp_path_factory.mktemp("serving")
    outcome: Outcome = run_ranks("serving.py", 2, folder)
    assert outcome.code == 0, outcome.output
    return folder, outcome.results
