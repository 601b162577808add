"""A plan as a picture: bytes and milliseconds, rank by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from distrec.embeddings.estimate import Milliseconds
from distrec.embeddings.plan import human_bytes
from distrec.errors import UserError
from distrec.planner.planning import Planned

GB = 2**30
USES = {
    "weights": "#3b6ea8",
    "optimizer state": "#7fb2de",
    "gradients of replicated tables": "#b58fc6",
    "dense part": "#e0b04c",
    "lookups and activations": "#5a9e6f",
    "batches": "#c8694f",
}
PARTS = {
    "lookup": ("lookup, forward", "#3b6ea8"),
    "exchange": ("exchange of vectors", "#e0b04c"),
    "update": ("gradients and optimizer", "#7fb2de"),
    "gradient_exchange": ("exchange of gradients", "#c8694f"),
    "prefetch": ("host memory to cache", "#5a9e6f"),
    "averaging": ("averaging of replicas", "#b58fc6"),
}
TICKS = 16  # at most
SEEN = 0.005  # of the height: what is smaller has no entry in the legend


def draw(planned: Planned, path: Path) -> None:
    """Write a picture; the ending of `path` says in which format: png, svg or pdf.

    Raises:
        UserError: the file cannot be written, or has another ending.
    """
    if not path.suffix:  # matplotlib would add one, and write another file than the one that was named
        raise UserError(f"the picture cannot be written to {path}: name it .png, .svg or .pdf")
    figure, (memory, time) = pyplot.subplots(2, 1, figsize=(11, 7.5), sharex=True, layout="constrained")
    try:
        figure.suptitle(planned.title, fontsize=13, x=0.01, ha="left")
        _draw_bytes(memory, planned)
        _draw_times(time, planned)
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture cannot be written to {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        pyplot.close(figure)


def _draw_bytes(axes: Axes, planned: Planned) -> None:
    ranks = range(planned.cluster.world)
    by_rank = [planned.uses(rank) for rank in ranks]
    limit = planned.cluster.memory / GB
    _stack(axes, {use: [load[use] / GB for load in by_rank] for use in USES}, USES, SEEN * limit)
    axes.axhline(limit, color="#444444", linewidth=1.2)
    axes.text(0.995, limit, "memory of a rank ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)
    if kept := planned.cluster.margin / GB:
        axes.axhspan(limit - kept, limit, color="#444444", alpha=0.10, label="kept free", linewidth=0)
    axes.set_ylim(0, limit * 1.1)
    axes.set_ylabel("GB (2³⁰ bytes) on the device")
    most, mean = max(planned.device_bytes), sum(planned.device_bytes) / len(ranks)
    _title(axes, f"memory: {human_bytes(most)} on the fullest rank, {human_bytes(mean)} on the mean one")


def _draw_times(axes: Axes, planned: Planned) -> None:
    loads, step = planned.estimate.time, planned.estimate.step
    values = {PARTS[part][0]: [load[place] for load in loads] for place, part in enumerate(Milliseconds._fields)}
    _stack(axes, values, dict(PARTS.values()), SEEN * step)
    axes.set_ylim(0, step * 1.1 or 1)
    axes.set_ylabel("ms a step")
    axes.set_xlabel(f"rank, {planned.cluster.local_world} a machine")
    axes.xaxis.set_major_locator(_whole_machines(planned.cluster.world, planned.cluster.local_world))
    mean = sum(load.total for load in loads) / len(loads)
    _title(axes, f"work on tables: {step:.3g} ms on the slowest rank, {mean:.3g} on the mean one, nothing overlapping")


def _whole_machines(world: int, local_world: int) -> MultipleLocator:
    """Ticks at single ranks, or at the first ranks of machines."""
    return MultipleLocator(1 if world <= TICKS else local_world * -(-world // (local_world * TICKS)))


def _stack(axes: Axes, values: Mapping[str, Sequence[float]], colours: Mapping[str, str], seen: float) -> None:
    """One bar a rank, parts on top of each other; the legend names those that can be seen somewhere."""
    count = len(next(iter(values.values())))
    below = [0.0] * count
    for name, sizes in values.items():
        label = name if max(sizes) >= seen else None
        axes.bar(range(count), sizes, bottom=below, width=0.8 if count <= 64 else 1.0, color=colours[name], label=label, lw=0)
        below = [b + s for b, s in zip(below, sizes, strict=True)]
    axes.set_xlim(-0.6, count - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: Axes, words: str) -> None:
    axes.set_title(words, loc="left", fontsize=10)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
