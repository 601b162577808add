"""Runs in this process, as a group of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from small_run import values

from distrec import dist
from distrec.config.load import parse
from distrec.trainer import Trainer, build


@contextmanager
def alone() -> Iterator[dist.Ranks]:
    """The only rank there is."""
    try:
        yield dist.start("cpu", 60)
    finally:
        dist.stop()


def make(ranks: dist.Ranks, rows: Path, folder: Path, resume: str | None = None, **sections: Any) -> Trainer:
    """A small run, ready to train; `train` and `data` add to the small ones."""
    given = values(rows, folder)
    merged = {name: given[name] | sections.pop(name, {}) for name in ("train", "data")}
    return build(parse(values(rows, folder, **merged, **sections)), ranks, resume)


def lines(folder: Path) -> list[dict[str, Any]]:
    """What the run wrote to metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())
