"""A plan on a terminal: tables, bytes a rank as bars, milliseconds by part, and two plans side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from distrec.embeddings.estimate import Milliseconds, PlacedTable
from distrec.embeddings.plan import human_bytes, rank_ranges
from distrec.planner.planning import Planned, differences, imbalances, spread
from distrec.planner.ways_out import Way

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
console.width = max(console.width, 140)  # a table that wraps in a log cannot be read
TABLES = 30  # shown, the largest; of the rest the sum
BARS = 16  # at most; more ranks are shown in groups, alike ones together where that is enough
WIDTH = 56
SHADES = {  # use -> (character, colour)
    "weights": ("█", "blue"),
    "optimizer state": ("▓", "cyan"),
    "gradients of replicated tables": ("▒", "magenta"),
    "dense part": ("+", "yellow"),
    "lookups and activations": ("=", "green"),
    "batches": (":", "red"),
}
PARTS = {
    "lookup": "lookup, forward",
    "exchange": "exchange of vectors",
    "update": "gradients and optimizer",
    "gradient_exchange": "exchange of gradients",
    "prefetch": "host memory to cache",
    "averaging": "averaging of replicas",
}


def show(planned: Planned) -> None:
    """All of a plan."""
    tables(planned)
    bars(planned)
    times(planned)
    uneven = imbalances(planned)
    console.print(f"largest over mean: bytes of tables {uneven['bytes']:.2f}, time {uneven['time']:.2f}")
    console.print(f"planned in {planned.seconds:.1f} s")


def tables(planned: Planned) -> None:
    """One row a table, the largest first."""
    found = planned.estimate.tables
    shown = _table(
        planned.title,
        {"table": "l", "shape": "r", "type": "l", "sharding": "l", "kernel": "l", "ranks": "l", "all ranks": "r", "ms": "r"},
    )
    for table in found[:TABLES]:
        shown.add_row(*_row(table, planned.cluster.world))
    console.print(shown)
    if rest := found[TABLES:]:
        console.print(f"and {len(rest)} smaller tables: {human_bytes(sum(sum(table.bytes) for table in rest))}")


def _table(title: str, columns: Mapping[str, str]) -> RichTable:
    """`columns`: heading -> l or r."""
    shown = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name, side in columns.items():
        shown.add_column(name, justify="right" if side == "r" else "left", no_wrap=True)
    return shown


def _row(table: PlacedTable, world: int) -> tuple[str, ...]:
    ranks = "all" if len(table.ranks) == world else rank_ranges(table.ranks)
    size = human_bytes(table.bytes.device) + (f" + {human_bytes(table.bytes.host)} host" if table.bytes.host else "")
    shape = f"{table.rows:,} x {table.dim}"
    return table.name, shape, table.precision, table.sharding, table.kernel, ranks, size, f"{table.time.total:.3f}"


def bars(planned: Planned) -> None:
    """Bytes on each rank, by use, against its memory."""
    memory, kept = planned.cluster.memory, planned.cluster.margin
    groups = _groups(planned.device_bytes)
    of_many = "" if len(groups) == planned.cluster.world else ", the fullest of each group of ranks"
    free = f"; the last {human_bytes(kept)}, behind the |, are kept free" if kept else ""
    console.print(f"bytes a rank, of {human_bytes(memory)}{of_many}{free}")
    label = max(len(name) for name, _ in groups)
    for name, ranks in groups:
        fullest = max(ranks, key=lambda rank: planned.device_bytes[rank])
        total = planned.device_bytes[fullest]
        bar = _bar(planned.uses(fullest), memory, memory - kept)
        console.print(Text(f"{name:>{label}} "), bar, f" {human_bytes(total)}", sep="")
    console.print("legend: " + "  ".join(f"{shade} {use}" for use, (shade, _) in SHADES.items()))
    if host := max(load.host for load in planned.estimate.bytes):
        console.print(f"host memory: up to {human_bytes(host)} a rank, of {human_bytes(planned.machines.host_memory)}")


def _groups(loads: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Neighbouring ranks, by name: each alone, or as many as are alike, or equally many."""
    ranks = range(len(loads))
    size = -(-len(ranks) // BARS)
    groups = [list(ranks[first : first + size]) for first in ranks[::size]]
    alike = [list(group) for _, group in groupby(ranks, key=lambda rank: human_bytes(loads[rank]))]
    return [(f"rank {rank_ranges(group)}", group) for group in (alike if size > 1 and len(alike) <= BARS else groups)]


def _bar(parts: dict[str, int], memory: int, limit: int) -> Text:
    """One bar; the end of each part is rounded, so that the bar is as long as the sum."""
    bar, done = Text(), 0
    for use, size in parts.items():
        cells = _cells(done + size, memory) - _cells(done, memory)
        bar.append(SHADES[use][0] * cells, SHADES[use][1])
        done += size
    filled = _cells(done, memory)
    mark = _cells(limit, memory)
    free = ["·"] * (WIDTH - filled)
    if filled <= mark < WIDTH:
        free[mark - filled] = "|"
    return bar.append("".join(free), "dim")


def _cells(size: int, memory: int) -> int:
    return min(WIDTH, round(WIDTH * size / memory))


def times(planned: Planned) -> None:
    """Milliseconds of a step by part: on the mean rank, and on that with most of it."""
    shown = _table("work on tables, ms a step", {"part": "l", "mean": "r", "most": "r", "": "l"})
    loads = planned.estimate.time
    for place, part in enumerate(Milliseconds._fields):
        if any(load[place] for load in loads):
            _time_row(shown, PARTS[part], [load[place] for load in loads], planned.estimate.step)
    _time_row(shown, "together, without overlap", [load.total for load in loads], planned.estimate.step)
    console.print(shown)


def _time_row(shown: RichTable, name: str, values: Sequence[float], step: float) -> None:
    found = spread(values)
    shown.add_row(name, f"{found['mean']:.3f}", f"{found['max']:.3f}", Text("█" * round(30 * found["max"] / step), "blue"))


def ways(found: Sequence[Way], command: str) -> str:
    """The three best ways out, each with what to add to the command."""
    if not found:
        return "No smaller change that was tried makes it fit: use more ranks."
    lines = [f"Ways out, each planned and found to fit; add its words to `{command}`:"]
    for number, way in enumerate(found[:3], 1):
        fullest, step = human_bytes(max(way.planned.device_bytes)), way.planned.estimate.step
        lines += [
            f"  {number}. {way.words}: {fullest} on the fullest rank, {step:.1f} ms a step on tables",
            f"     {' '.join(way.overrides)}",
        ]
    return "\n".join(lines)


def compare(one: Planned, other: Planned) -> None:
    """Two plans side by side, and the tables that they shard differently."""
    first, second = (planned.title.replace(" on ", "\non ") for planned in (one, other))
    shown = _table("compared", {"": "l", first: "r", second + " ": "r"})
    for row in zip(_names(), _numbers(one), _numbers(other), strict=True):
        shown.add_row(*row)
    console.print(shown)
    if moved := differences(one, other):
        changed = _table("sharded differently, and on how many ranks", {"table": "l", "first": "l", "second": "l"})
        for row in moved:
            changed.add_row(*row)
        console.print(changed)


def _names() -> list[str]:
    parts = [f"{PARTS[part]}, ms" for part in Milliseconds._fields]
    return ["fullest rank", "its share of memory", "host memory", *parts, "step on tables, ms", "rows a second at that rate"]


def _numbers(planned: Planned) -> list[str]:
    fullest, found = max(planned.device_bytes), planned.estimate
    rows = planned.config.data.batch_size * planned.cluster.world * planned.cluster.replicas.count
    return [
        human_bytes(fullest),
        f"{fullest / planned.cluster.memory:.0%}",
        human_bytes(max(load.host for load in found.bytes)),
        *(f"{max(load[place] for load in found.time):.3f}" for place in range(len(Milliseconds._fields))),
        f"{found.step:.3f}",
        f"{1000 * rows / found.step:,.0f}",
    ]
