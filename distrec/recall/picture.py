"""The recall-QPS curve of an index as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

STAR = 0.03  # of the width, so that one at recall 1 is whole


def draw(measured: Mapping[str, Any], chosen: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: recall against queries a second for every setting, the chosen one marked, beside a scan of all items.

    Args:
        measured: see `distrec.recall.report.measure_index`.
        chosen: `factory` and `parameters`.
        path: of the picture.
    """
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    try:
        curve = sorted(measured["curve"], key=lambda point: point["recall"])
        recalls, rates = [point["recall"] for point in curve], [point["qps"] for point in curve]
        axes.plot(recalls, rates, marker="o", markersize=4, color="#3b6ea8", label=chosen["factory"])
        for point in curve:
            if point["parameters"] == chosen["parameters"]:
                axes.plot(
                    point["recall"], point["qps"], marker="*", markersize=16, color="#c8694f", linestyle="none", label="chosen"
                )
        threads = max(measured["qps"], key=int)
        if measured["flat_qps"] and chosen["factory"] != "Flat":
            rate = measured["flat_qps"][threads]["batch"]
            axes.axhline(rate, color="#5a9e6f", linestyle="--", label="Flat, a scan of all items")
        axes.set_xlim(right=1 + STAR * (1 - axes.get_xlim()[0]))  # none finds more than all
        axes.set_yscale("log")
        axes.set_xlabel(f"recall@{measured['k']} against exact search")
        axes.set_ylabel(f"queries a second, in one batch ({threads} thread{'s' * (threads != '1')})")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=140)
    finally:
        pyplot.close(figure)
