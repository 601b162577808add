"""The tables of docs/measured.md, from the results that benchmarks left: `python -m benchmarks.markdown [DEVICE]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Case, Variant
from benchmarks.report import RESULTS, short


def tables(device: str = "cpu", results: Path = RESULTS) -> Iterator[tuple[str, str]]:
    """Every benchmark's command, and the tables of its cases."""
    for path in sorted((results / device).glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "cases" in found:  # retrieval_quality.py writes a document of its own
            yield found["command"], "\n\n".join(table(Case.from_json(case)) for case in found["cases"])


def table(case: Case) -> str:
    """A case in Markdown, and below it what is known of each of its variants."""
    heads = ["variant", case.unit, "slowest to fastest", f"over {case.reference}", "by CPU time", "peak MiB"]
    rows = [heads, ["---"] * len(heads), *(_row(case, variant) for variant in case.variants.values())]
    known = case.facts.get("of", {})
    return "\n".join([f"{case.name}:", "", *map(line, rows), *(["", *map(line, _known(known))] if known else [])])


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def _known(known: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    names = list(dict.fromkeys(name for facts in known.values() for name in facts))
    yield ["variant", *(name.replace("_", " ") for name in names)]
    yield ["---"] * (1 + len(names))
    for variant, facts in known.items():
        yield [variant, *(_value(facts.get(name, "")) for name in names)]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else short(value)


def _row(case: Case, variant: Variant) -> list[str]:
    reference = case.variants[case.reference]
    rate, ratio, by_cpu = variant.rate, variant.ratio(reference), variant.cpu_ratio(reference)
    return [
        variant.name,
        short(rate.median),
        f"{short(rate.min)} to {short(rate.max)}",
        f"{ratio.median:.3g} ({ratio.min:.3g} to {ratio.max:.3g})",
        "" if by_cpu is None else f"{by_cpu:.3g}",
        "" if variant.peak_mib is None else f"{variant.peak_mib:,.0f}",
    ]


if __name__ == "__main__":
    for command, text in tables(sys.argv[1] if len(sys.argv) > 1 else "cpu"):
        print(f"{command}\n\n{text}\n")
