"""What `distrec inspect` shows: warnings first, then columns, then the label over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from distrec.json_out import to_json as json_text
from distrec.profile.columns import Column
from distrec.profile.inspection import Inspection
from distrec.screen import console

HEADS = ("column", "type", "use", "nulls", "distinct", "from", "to", "skew", "outside", "AUC alone", "most frequent")
WIDE = 140  # characters; on less, eleven columns would be strips of a few letters each
RIGHT = {"nulls", "distinct", "from", "to", "skew", "outside", "AUC alone", "rows", "mean label"}


def show(found: Inspection) -> None:
    """Print an inspection."""
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="bold red")
    if console.width >= WIDE:
        console.print(_columns(found))
    else:
        console.print(_seen(found))
        for column in found.columns.values():
            console.print(_lines(found, column))
    for table in _rates(found):
        console.print(table)
    for line in _shared(found):
        console.print(line)


def to_json(found: Inspection) -> str:
    """The same for programs: one object; `distinct` without its sketch."""
    return json_text(
        {
            "warnings": found.warnings,
            "rows": found.rows,
            "sampled": found.sampled,
            "label": found.roles.label,
            "time": found.roles.time,
            "columns": [_record(found, column) for column in found.columns.values()],
            "label_rates": {split: [asdict(period) for period in periods] for split, periods in found.rates.items()},
            "shared_rows": {split: asdict(shared) for split, shared in found.shared.items()},
        },
        indent=2,
    )


def _record(found: Inspection, column: Column) -> dict[str, Any]:
    role, distinct = found.roles.by_column[column.name], column.distinct
    return {
        "name": column.name,
        "type": column.type,
        "use": role.purpose,
        "reason": role.reason,
        "nulls": column.nulls,
        "nulls_exact": column.nulls_exact,
        "bounds": column.bounds,
        "bounds_exact": column.bounds_exact,
        "distinct": distinct.estimate,
        "distinct_exact": distinct.exact,
        "top": column.top,
        "moments": asdict(column.moments) if column.moments else None,
        "lengths": asdict(column.lengths) if column.lengths else None,
        "out_of_range": found.out_of_range.get(column.name),
        "auc_alone": found.aucs.get(column.name),
    }


def _seen(found: Inspection) -> str:
    sampled, rows = found.sampled["train"], found.rows["train"]
    seen = f"all {rows:,} rows of train" if sampled == rows else f"a sample of {sampled:,} of {rows:,} rows of train"
    return f"columns, from {seen} and the footers of all files; ~ is an estimate"


def _lines(found: Inspection, column: Column) -> str:
    """A column for narrow screens: what it is, and below that whatever there is to tell."""
    name, kind, use, *cells = _cells(found, column)
    told = [f"{head} {cell}" for head, cell in zip(HEADS[3:], cells, strict=True) if cell]
    return f"{name}: {use}, {kind}\n    {'; '.join(told)}"


def _columns(found: Inspection) -> RichTable:
    table = _table(_seen(found), HEADS)
    for column in found.columns.values():
        table.add_row(*(Text(cell) for cell in _cells(found, column)))
    return table


def _cells(found: Inspection, column: Column) -> Iterator[str]:
    distinct, moments, name = column.distinct, column.moments, column.name
    yield name
    yield column.type
    yield found.roles.by_column[name].purpose
    yield _share(max(column.nulls, moments.missing if moments else 0.0), column.nulls_exact)
    yield f"{'' if distinct.exact else '~'}{distinct.estimate:,}" if distinct.sampled else ""
    yield from (_bound(column, end) for end in (0, 1))
    yield f"{round(moments.shape.skewness, 1) + 0.0:.1f}" if moments and column.kind == "real" else ""  # -0.04 is 0.0
    yield _share(found.out_of_range[name]) if name in found.out_of_range else ""
    yield f"{found.aucs[name]:.4f}" if name in found.aucs else ""
    once = 1 / max(distinct.sampled, 1)
    told = "" if name == found.roles.time else ", ".join(f"{v} ({share:.1%})" for v, share in column.top[:3] if share > once)
    yield told


def _bound(column: Column, end: int) -> str:
    if column.bounds is None or column.kind in ("time", "boolean"):
        return ""
    value = column.bounds[end]
    return f"{'' if column.bounds_exact else '~'}{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _rates(found: Inspection) -> Iterator[RichTable]:
    by = found.roles.time or "place in the files"
    for split, periods in found.rates.items():
        table = _table(f"{found.roles.label} by {by}: {split}, {found.rows[split]:,} rows", ("from", "rows", "mean label"))
        for period in periods:
            table.add_row(period.first, f"{period.rows:,}", f"{period.rate:.4f}")
        yield table


def _shared(found: Inspection) -> Iterator[str]:
    for split, shared in found.shared.items():
        if not shared.leaks:
            yield f"rows of {split} that stand in train, too: none found; a share over {shared.smallest:.3%} would have shown"


def _table(title: str, heads: tuple[str, ...]) -> RichTable:
    table = RichTable(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right" if head in RIGHT else "left", overflow="fold")
    return table


def _share(value: float, exact: bool = True) -> str:
    if not value:
        return "0" if exact else "~0"
    return f"{'' if exact else '~'}{value:.1%}" if value >= 0.001 else "<0.1%"
