"""The command line in this process: `main` with words, and what it printed and exited with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from distrec import dist
from distrec.__main__ import main
from distrec.log import logger


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@contextmanager
def command_line(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """A function that runs `distrec WORDS`; no way to end may show a traceback."""

    def run(*words: object) -> Ended:
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                main([str(word) for word in words])
        finally:
            dist.stop()  # a process that fails leaves the group by its death
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err, said.err
        return Ended(int(end.value.code or 0), said.out, said.err)

    handlers, propagate = logger.handlers, logger.propagate
    yield run
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(logging.NOTSET)
