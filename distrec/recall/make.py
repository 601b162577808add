"""An index for an export: built by a given factory string, or by the first of those that suit it which finds enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from distrec.recall.auto import tune
from distrec.recall.factory import candidates, fill
from distrec.recall.index import VectorIndex, build
from distrec.recall.report import halves, hold
from distrec.recall.vectors import Export

TUNING = 1000  # queries that parameters are chosen on


def make_index(
    export: Export, factory: str, target: float, k: int, tell: Callable[[str], None] = lambda line: None
) -> VectorIndex:
    """Build, and set the fastest search parameters that find the `target` share of the exact best k.

    They are measured on half of the exported queries; the report measures on the other half.

    Args:
        export: the vectors.
        factory: a Faiss factory string, with x and y to be filled in or without, or `auto`.
        target: recall to reach, in (0, 1].
        k: at how many items.
        tell: is told what was tried.

    Returns:
        The index; its facts have every setting that was measured.

    Raises:
        UserError: the factory string is none or does not fit the vectors.
    """
    rows, dim = export.items.rows, export.items.dim
    held = hold(export, halves(export.queries.rows)[0][:TUNING], min(k, rows))
    choices = candidates(rows, target) if factory == "auto" else [factory]
    index = None
    for choice in choices:
        index = build(export.items, fill(choice, rows, dim), export.model)
        points = tune(index, held.vectors, held.truth, target)
        best = next(point for point in points if point.parameters == index.facts["parameters"])
        tell(f"{index.facts['factory']}, {best.parameters or 'no parameters'}: recall@{held.truth.shape[1]} {best.recall:.4f}")
        index.facts |= {} if export.own_id is None else {"own_id": export.own_id}
        index.facts |= {"asked": factory, "target": target, "k": held.truth.shape[1], "points": [asdict(p) for p in points]}
        if best.recall >= target:
            break
    assert index is not None, "there is always a choice"
    return index
