"""What a benchmark leaves: a table on screen, and JSON and a picture under `results/<device>/`."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Case, Variant
from distrec.json_out import to_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "pyarrow", "numpy", "faiss-cpu", "faiss-gpu")
CASES_A_COLUMN, TITLE = 10, 90  # of a picture; and characters in a line of a case's title
SIZES = ("tiny", "short", "full")


def options(question: str, argv: Sequence[str] | None = None, **more: str) -> argparse.Namespace:
    """The options that every benchmark takes: `size`, `rounds`, `out`; and `more`, each with its help."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: does it run; short: `make bench`; full")
    parser.add_argument("--rounds", type=int, help="counted rounds; default: by size")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and pictures")
    for option, meaning in more.items():
        parser.add_argument(option, help=meaning)
    chosen = parser.parse_args(argv)
    chosen.rounds = chosen.rounds or {"tiny": 1, "short": 3, "full": 7}[chosen.size]
    return chosen


def publish(
    name: str, question: str, cases: Sequence[Case], chosen: argparse.Namespace, device: str = "cpu", **facts: Any
) -> Path:
    """Print the cases, and write `<out>/<device>/<name>.json` and `.png`; returns the JSON's path."""
    for case in cases:
        Console(width=128).print(table(case))
    folder = chosen.out / folder_of(device)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "benchmark": name,
        "question": question,
        "command": command(name, chosen),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device,
        "machine": machine(device),
        "versions": versions(),
        "facts": facts,
        "cases": [case.to_json() for case in cases],
    }
    path = folder / f"{name}.json"
    path.write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    draw(question, cases, path.with_suffix(".png"))
    return path


def folder_of(device: str) -> str:
    """`cpu`, or the GPU's name: `nvidia-h100-80gb-hbm3`."""
    return device if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def command(name: str, chosen: argparse.Namespace) -> str:
    """What repeats the measurement, without the paths of this machine."""
    own = [f"--{option} …" for option, value in vars(chosen).items() if option not in ("size", "rounds", "out") and value]
    return " ".join([f"python -m benchmarks.{name} --size {chosen.size} --rounds {chosen.rounds}", *own])


def table(case: Case) -> Table:
    """A case for the screen."""
    shown = Table(title=f"{case.name} ({case.unit})", title_justify="left")
    second = [case.also[0]] if case.also else []
    over = f"over {case.reference}"
    for column in ("variant", "median", "min", "max", over, "by CPU time", *second, "CPU s a run", "peak MiB"):
        shown.add_column(column, justify="left" if column == "variant" else "right")
    for variant in case.variants.values():
        shown.add_row(*row(case, variant))
    return shown


def row(case: Case, variant: Variant) -> list[str]:
    """A variant's cells."""
    rate, ratio = variant.rate, case.ratios()[variant.name]
    cells = [variant.name, *(short(value) for value in (rate.median, rate.min, rate.max))]
    cells.append(f"{ratio.median:.3g} ({ratio.min:.3g} to {ratio.max:.3g})")
    by_cpu = variant.cpu_ratio(case.variants[case.reference])
    cells.append("" if by_cpu is None else f"{by_cpu:.3g}")
    if case.also:
        cells.append(short(rate.median * case.also[1]))
    cells.append(short(median(variant.cpu_s)) if variant.cpu_s else "")
    cells.append("" if variant.peak_mib is None else f"{variant.peak_mib:,.0f}")
    return cells


def short(value: float) -> str:
    """Four digits at most, or whole numbers."""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def draw(question: str, cases: Sequence[Case], path: Path) -> None:
    """A bar a variant at its median, with a line from the slowest round to the fastest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = 1 + (len(cases) - 1) // CASES_A_COLUMN
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(9 * columns, 1.2 + 1.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(question, fontsize=11)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(cases) :]:
        axes.remove()
    for axes, case in zip(places[: len(cases)], cases, strict=True):
        rates = [variant.rate for variant in case.variants.values()]
        spread = [[r.median - r.min for r in rates], [r.max - r.median for r in rates]]
        axes.barh(list(case.variants), [r.median for r in rates], xerr=spread, color="#4c78a8", ecolor="#333333", capsize=3)
        axes.set_title(fill(f"{case.name} ({case.unit})", TITLE), fontsize=9, loc="left")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
    figure.savefig(path, dpi=110)


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    facts = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    return facts | ({"accelerator": torch.cuda.get_device_name()} if device == "cuda" else {})


def versions() -> dict[str, str]:
    """Of the packages that do the work."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def quiet() -> None:
    """Benchmarks print tables, and what dependencies say in normal operation is none of them."""
    from distrec.log import quiet_dependencies

    quiet_dependencies()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
