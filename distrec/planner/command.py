"""What `distrec plan` does with its words: plan, show, save, draw, compare, and find ways out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distrec.config.load import load
from distrec.config.schema import Config
from distrec.config.words import SIZE
from distrec.embeddings.cluster import Bandwidths
from distrec.embeddings.plan import DoesNotFit, parse_bytes
from distrec.errors import UserError
from distrec.json_out import to_json
from distrec.planner import screen
from distrec.planner.planning import Machines, Planned, make, summary
from distrec.planner.ways_out import find_ways_out

SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Question:
    """The options that describe a cluster, as they were given."""

    nodes: int
    gpus: int
    device: Literal["cuda", "cpu"]
    hbm: str
    host: str
    intra: str
    inter: str
    hbm_bandwidth: str

    def machines(self) -> Machines:
        """The cluster.

        Raises:
            UserError: a size is none.
        """
        speeds = Bandwidths(
            device=_size("--hbm-bandwidth", self.hbm_bandwidth),
            intra=_size("--intra", self.intra),
            inter=_size("--inter", self.inter),
        )
        host = _size("--host", self.host)
        memory = _size("--hbm", self.hbm) if self.device == "cuda" else host
        return Machines(self.nodes, self.gpus, self.device, memory, host, speeds)


def answer(
    config: Config,
    overrides: Sequence[str],
    question: Question,
    *,
    save: Path | None,
    png: Path | None,
    as_json: bool,
    compare: str | None,
    command: str,
) -> None:
    """Plan, and show or write what was asked for. `command` is what the user typed.

    Raises:
        UserError: it does not fit (with ways out), or something cannot be read or written.
    """
    planned = _fitting(config, question, command)
    if save is not None:
        planned.save(save)
    if png is not None:
        from distrec.planner.picture import draw  # matplotlib takes a while to import

        draw(planned, png)
    if as_json:
        other = {} if compare is None else {"compared_with": summary(_other(config, question, overrides, compare))}
        print(to_json(summary(planned) | other, indent=2))
        return
    screen.show(planned)
    if compare is not None:
        screen.compare(planned, _other(config, question, overrides, compare))


def _fitting(config: Config, question: Question, command: str) -> Planned:
    machines = question.machines()
    try:
        return make(config, machines)
    except DoesNotFit as error:
        if error.cluster.for_tables <= 0:  # no change of the tables leads out
            raise
        raise UserError(f"{error}\n{screen.ways(find_ways_out(config, machines, error), command)}") from None


def _other(config: Config, question: Question, overrides: Sequence[str], compare: str) -> Planned:
    """The second plan: the same config on another cluster, or another config on the same."""
    if shape := SHAPE.fullmatch(compare):
        question = replace(question, nodes=int(shape[1]), gpus=int(shape[2]))
    else:
        config = load(compare, overrides)
    try:
        return make(config, question.machines())
    except UserError as error:
        raise UserError(f"--compare {compare}: {error}") from None


def _size(option: str, text: str) -> int:
    plain = text.strip().removesuffix("/s")
    if not SIZE.fullmatch(plain):
        raise UserError(f"{option} {text} is no size; write it as 80GB, with one of KB, MB, GB, TB")
    if not parse_bytes(plain):
        raise UserError(f"{option} {text} is nothing")
    return parse_bytes(plain)
