"""Warnings are errors, but for the dependencies' own that a run silences too."""

import re

import pytest
from ranks import Outcome, run_ranks

from distrec.log import DEPENDENCY_WARNINGS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    for category, message in DEPENDENCY_WARNINGS:
        start = re.escape(message).replace(":", r"\x3a")  # a colon would end the field
        config.addinivalue_line("filterwarnings", f"ignore:{start}:{category.__name__}")


@pytest.fixture(scope="session")
def sharding_on(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Outcome of tests/programs/sharding.py on a number of ranks; each number is run once a session."""
    done: dict[int, Outcome] = {}

    def outcome(ranks: int) -> Outcome:
        if ranks not in done:
            done[ranks] = run_ranks("sharding.py", ranks, tmp_path_factory.mktemp(f"sharding{ranks}"))
        return done[ranks]

    return outcome
