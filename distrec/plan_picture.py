"""A plan as a picture: bytes and milliseconds, rank by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distrec.embeddings.estimate import Milliseconds
from distrec.errors import UserError
from distrec.planning import Planned, imbalances

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
}


def draw(planned: Planned, path: Path) -> None:
    """Write a picture; the ending of `path` says in which format: png, svg or pdf.

    Raises:
        UserError: the file cannot be written, or has another ending.
    """
    figure, (memory, time) = pyplot.subplots(2, 1, figsize=(11, 7.5), sharex=True, layout="constrained")
    try:
        uneven = imbalances(planned)
        figure.suptitle(f"{planned.config.name} on {planned.machines.name}", fontsize=13)
        _draw_bytes(memory, planned, uneven["bytes"])
        _draw_times(time, planned, uneven["time"])
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture cannot be written to {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        pyplot.close(figure)


def _draw_bytes(axes: Axes, planned: Planned, uneven: float) -> None:
    ranks = range(planned.cluster.world)
    by_rank = [planned.uses(rank) for rank in ranks]
    _stack(axes, {use: [load[use] / GB for load in by_rank] for use in USES}, USES)
    limit = planned.cluster.memory / GB
    axes.axhline(limit, color="#444444", linewidth=1.2)
    axes.text(0.995, limit, "memory of a rank ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)
    if kept := planned.cluster.margin / GB:
        axes.axhspan(limit - kept, limit, color="#444444", alpha=0.10, label="kept free")
    axes.set_ylim(0, limit * 1.1)
    axes.set_ylabel("GB on the device")
    axes.set_title(f"memory: largest over mean {uneven:.2f} (tables)", loc="left", fontsize=10)
    _legend(axes)


def _draw_times(axes: Axes, planned: Planned, uneven: float) -> None:
    loads = planned.estimate.time
    values = {PARTS[part][0]: [load[place] for load in loads] for place, part in enumerate(Milliseconds._fields)}
    _stack(axes, values, dict(PARTS.values()))
    axes.set_ylim(0, planned.estimate.step * 1.1 or 1)
    axes.set_ylabel("ms a step, on tables")
    axes.set_xlabel("rank")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.set_title(f"time: largest over mean {uneven:.2f}, parts laid end to end", loc="left", fontsize=10)
    _legend(axes)


def _stack(axes: Axes, values: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """One bar a rank, parts on top of each other; parts that no rank has are left out."""
    count = len(next(iter(values.values())))
    below = [0.0] * count
    for name, sizes in values.items():
        if any(sizes):
            width = 0.8 if count <= 64 else 1.0
            axes.bar(range(count), sizes, bottom=below, width=width, color=colours[name], label=name, linewidth=0)
            below = [b + s for b, s in zip(below, sizes, strict=True)]
    axes.set_xlim(-0.6, count - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
