"""A model that does not fit: which small changes of its config make it fit. Each is planned before it is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from distrec.config.load import parse
from distrec.config.schema import Config, Table
from distrec.embeddings import plan as plans
from distrec.embeddings.plan import DoesNotFit
from distrec.errors import UserError
from distrec.planner.footprint import Footprint
from distrec.planner.planning import Machines, Planned, beside_tables, make

TRIES = 6  # plans made for one kind of way out before it is given up
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # of a table's rows in the GPU's cache
STATE = {"sgd": (0, 0), "rowwise_adagrad": (4, 0), "adagrad": (0, 4), "adam": (0, 8)}  # bytes a row, bytes a weight


@dataclass(frozen=True)
class Way:
    """A change that makes a config fit."""

    words: str
    overrides: tuple[str, ...]  # as they stand on the command line
    planned: Planned


def find_ways_out(config: Config, machines: Machines, reason: DoesNotFit) -> list[Way]:
    """The first that fits of each kind, those that keep every row first, the fastest of them first."""
    beside = beside_tables(config)  # none of the changes touches it
    kinds = (
        _fewer_replicas(config),
        _columns(config, reason),
        _half(config),
        _cached(config, machines),
        _fewer_rows(config, machines),
    )
    ways = [way for kind in kinds if (way := _first_that_fits(kind, config, machines, beside))]
    return sorted(ways, key=lambda way: (_drops_rows(way), way.planned.estimate.step))


def _first_that_fits(
    kind: Iterator[tuple[str, list[str]]], config: Config, machines: Machines, beside: Footprint
) -> Way | None:
    hopeful = ((words, overrides) for words, overrides in kind if _may_fit(_changed(config, overrides), machines))
    for words, overrides in islice(hopeful, TRIES):
        try:
            return Way(words, tuple(overrides), make(_changed(config, overrides), machines, beside))
        except UserError:  # this one does not fit either, or its optimizer has no such sharding
            continue
    return None


def _changed(config: Config, overrides: Sequence[str]) -> Config:
    return parse(config.model_dump(mode="json"), overrides)


def _may_fit(config: Config, machines: Machines) -> bool:
    """Whether weights and state alone are within what all ranks have: cheaper to ask than a plan."""
    sizes = [_sizes(table, config) for table in config.tables.values()]
    ranks = machines.nodes * machines.ranks // config.embedding.replicas
    return sum(d for d, _ in sizes) <= ranks * machines.memory and sum(h for _, h in sizes) <= ranks * machines.host_memory


def _sizes(table: Table, config: Config) -> tuple[int, int]:
    """Bytes of a table on devices and on hosts."""
    a_row, a_weight = STATE[(table.optimizer or config.optimizer.sparse).name]
    total = plans.table_bytes(table) + table.rows * (a_row + table.dim * a_weight)
    return (total, 0) if table.cache is None else (int(total * table.cache), total)


def _largest_first(config: Config) -> list[str]:
    return sorted(config.tables, key=lambda name: -sum(_sizes(config.tables[name], config)))


def _columns(config: Config, reason: DoesNotFit) -> Iterator[tuple[str, list[str]]]:
    """Column-wise, for a table that the config keeps from it and that is too large for a rank."""
    name = reason.shortage.table
    if name is None or not (config.tables[name].sharding or config.embedding.sharding):
        return
    for parts in (2, 4, 8, 16, 32):
        if config.tables[name].dim % (4 * parts) == 0:
            overrides = [f"tables.{name}.sharding=column_wise", f"tables.{name}.column_shards={parts}"]
            yield f"{name} column-wise over {parts}", overrides


def _fewer_replicas(config: Config) -> Iterator[tuple[str, list[str]]]:
    """Each copy of the tables on more ranks."""
    for count in range(config.embedding.replicas - 1, 0, -1):
        if config.embedding.replicas % count == 0:
            alone = ["embedding.sync_every=1"] if count == 1 and config.embedding.sync_every > 1 else []
            yield f"{count} replica{'s' if count > 1 else ''} of the tables", [f"embedding.replicas={count}", *alone]


def _half(config: Config) -> Iterator[tuple[str, list[str]]]:
    """Half-precision rows, for as few tables as it takes."""
    names = [name for name in _largest_first(config) if config.tables[name].precision == "fp32"]
    for count in range(1, len(names) + 1):
        yield f"fp16 rows for {_listed(names[:count])}", [f"tables.{name}.precision=fp16" for name in names[:count]]


def _cached(config: Config, machines: Machines) -> Iterator[tuple[str, list[str]]]:
    """Tables in host memory, as few as it takes, and of them as many rows on the GPU as there is room for."""
    if machines.device != "cuda":
        return
    names = [name for name in _largest_first(config) if config.tables[name].cache is None]
    smallest = f"{SHARES[-1]}"
    for count in range(1, len(names) + 1):
        if not _may_fit(_changed(config, [f"tables.{name}.cache={smallest}" for name in names[:count]]), machines):
            continue
        for share in SHARES:
            overrides = [f"tables.{name}.cache={share}" for name in names[:count]]
            yield f"a UVM cache of {share:.0%} for {_listed(names[:count])}", overrides


def _fewer_rows(config: Config, machines: Machines) -> Iterator[tuple[str, list[str]]]:
    """One cap on the rows of all tables, ids hashed into what is left: the largest cap of two digits that may fit."""
    low, high = 1, max(table.rows for table in config.tables.values())
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if _may_fit(_changed(config, _capped(config, middle)), machines) else (low, middle)
    for tenth in range(10, 10 - TRIES, -1):
        cap = _two_digits(low * tenth // 10)
        names = [name for name in _largest_first(config) if config.tables[name].rows > cap]
        yield f"{_listed(names)} hashed into {cap:,} rows", _capped(config, cap)


def _capped(config: Config, cap: int) -> list[str]:
    large = {name for name, table in config.tables.items() if table.rows > cap}
    return [f"tables.{name}.rows={cap}" for name in config.tables if name in large] + [
        f"features.{kind}.{place}.ids=hash"
        for kind in ("sparse", "sequence")
        for place, feature in enumerate(getattr(config.features, kind))
        if feature.table in large and feature.ids != "hash"
    ]


def _two_digits(count: int) -> int:
    step = 10 ** max(0, len(str(count)) - 2)
    return max(1, count // step * step)


def _drops_rows(way: Way) -> bool:
    return any(".rows=" in override for override in way.overrides)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
