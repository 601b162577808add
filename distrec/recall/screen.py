"""What a person sees of exports, indexes, recommendations and reports: tables on screen, and the report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable

from distrec.screen import console

MIB = 2**20


def exported(folder: str, facts: Mapping[str, Any]) -> None:
    """What `distrec export` wrote, and what fewer bits cost."""
    model = facts["model"]
    console.print(f"wrote {folder}: step {model['step']} of {model['run']}")
    for line in _export_lines(facts):
        console.print(f"  {line}")
    if "before" in facts.get("rounding", {}):
        _rounding(facts["rounding"])
    elif "rounding" in facts:
        console.print("  what fewer bits cost is not measured: the run has no data.valid and no data.test")


def indexed(folder: str, facts: Mapping[str, Any], size: int) -> None:
    """What `distrec index` built."""
    console.print(f"wrote {folder}: {_index_line(facts, size)}")


def recommended(said: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A query's items."""
    table = RichTable(title=said, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("", "score") else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def recommended_to_all(folder: str, facts: Mapping[str, Any]) -> None:
    """What `distrec recall --all` wrote."""
    files = "one file" if len(facts["parts"]) == 1 else f"{len(facts['parts'])} files"
    where = f"{folder}/{facts['parts'][0].partition('/')[0]}"
    console.print(f"wrote {where}: the best {facts['k']} for {facts['rows']:,} {_queries_of(facts['split'])}, in {files}")
    if facts["zero"]:
        console.print(f"  warning: {facts['zero']:,} of them have a zero vector: the model knows no feature of them")
    if facts["short"]:
        console.print(f"  {facts['short']:,} lists are shorter, for the index found no more or little was left to show")


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    model, index, measured = report["model"], report["index"], report["measured"]
    lines = [
        f"# Retrieval: {model['run']}, step {model['step']}",
        "",
        f"Printed by `{report['command']}`. Config {model['config']}, checkpoint {model['checkpoint']}, "
        f"tables in {model.get('tables', 'fp32')}.",
        "",
        "## How good the model is",
        "",
        f"Every query of data.{report['split']} ({report['queries']:,}) ranks all {index['rows']:,} items by exact search"
        + (f"; items in its column `{report['mask']}` are left out." if report["mask"] else "; nothing is left out."),
        "",
        *_untargeted(report["exact"]),
        *_model_table(report["exact"], report["ks"]),
        "",
        *_popular_table(report["popular"], report["ks"]),
        *(line for warning in report["warnings"] for line in (f"Warning: {warning}.", "")),
        "## How good the index is",
        "",
        _index_line(index, report["index_bytes"]),
        f"Measured on {measured['queries']:,} {_queries_of(report['index_split'])} that its parameters were not chosen on.",
        "",
        "| against exact search | |",
        "|---|--:|",
        *(f"| {name} | {value:.4f} |" for name, value in measured.items() if name.startswith("recall@")),
        "",
        "What users get, on those queries:",
        "",
        *_untargeted(measured["model"]),
        *_through_table(measured, report["ks"]),
        "",
        "| queries a second | in one batch | one at a time |",
        "|---|--:|--:|",
        *_speed_rows("this index", measured["qps"]),
        *_speed_rows("Flat", measured["flat_qps"]),
        "",
        "![recall against queries a second](recall.png)",
        "",
        f"| setting | recall@{measured['k']} | queries a second |",
        "|---|--:|--:|",
        *(f"| `{p['parameters'] or '-'}` | {p['recall']:.4f} | {p['qps']:,.0f} |" for p in measured["curve"]),
        "",
    ]
    return "\n".join(lines)


def _index_line(index: Mapping[str, Any], size: int) -> str:
    name = f"`{index['factory']}`" + (f" with `{index['parameters']}`" if index["parameters"] else "")
    built = f"trained in {index['train_s']:.1f} s, filled in {index['add_s']:.1f} s, {size / MIB:,.1f} MiB"
    return f"{name}, {index['rows']:,} vectors of {index['dim']}: {built}."


def _export_lines(facts: Mapping[str, Any]) -> list[str]:
    tables = facts["tables"]
    lines = [f"tables: {len(tables)}, {next(iter(tables.values()))['precision']}"] if tables else []
    if program := facts.get("program"):
        checked = f", ONNX within {program['difference']:.1g} of the model" if "difference" in program else ""
        lines.append(f"program: {', '.join(program['files'])}{checked}")
    if "items" in facts:
        parts = len(facts["items"]["parts"])
        files = "one file" if parts == 1 else f"{parts} files"
        rounded = "" if facts["model"]["tables"] == "fp32" else f", computed from the {facts['model']['tables']} tables"
        lines.append(f"items: {facts['items']['rows']:,} vectors of {facts['dim']} in {files}{rounded}")
        if facts["zero_vectors"]:
            lines.append(f"warning: {facts['zero_vectors']:,} items have a zero vector: the model knows no feature of them")
        queries = facts["queries"]
        lines.append(f"{queries['rows']:,} {_queries_of(queries['split'])}, to measure an index with")
    return lines


def _queries_of(split: str | None) -> str:
    """Which queries an export holds: those of a split, or, of a run without rows to evaluate on, some of its items."""
    return f"queries of data.{split}" if split else "items that stand in for queries"


def _rounding(rounding: Mapping[str, Any]) -> None:
    table = RichTable(title=f"data.{rounding['split']}, tables in fp32 and in {rounding['precision']}", title_justify="left")
    for column in ("", "fp32", rounding["precision"], "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name, before in rounding["before"].items():
        after = rounding["after"][name]
        table.add_row(name, f"{before:.5f}", f"{after:.5f}", f"{after - before:+.5f}")
    console.print(table)


def _untargeted(numbers: Mapping[str, float]) -> list[str]:
    """A line that says why there are no metrics, where there are none: they are means over queries with targets."""
    known = any(value == value for name, value in numbers.items() if name.startswith("recall@"))
    return [] if known else ["No query has a target, so that how much of it is found cannot be said.", ""]


def _model_table(numbers: Mapping[str, float], ks: Sequence[int]) -> list[str]:
    """A row a metric, a column a k."""
    names = list(dict.fromkeys(name.partition("@")[0] for name in numbers))
    rows = [[name, *(_cell(numbers, f"{name}@{k}") for k in ks)] for name in names]
    head = ["| |" + "".join(f" @{k} |" for k in ks), "|---|" + "--:|" * len(ks)]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def _popular_table(numbers: Mapping[str, float] | None, ks: Sequence[int]) -> list[str]:
    """What it takes to be better than a list of favourites."""
    if numbers is None:
        return ["What giving everyone the most popular items is worth is not known: set retrieval.train_count.", ""]
    said = "Beside it, what giving everyone the items of most training rows is worth, less the same ones left out:"
    return [said, "", *_model_table(numbers, ks), ""]


def _through_table(measured: Mapping[str, Any], ks: Sequence[int]) -> list[str]:
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in ks]
    rows = [f"| {n} | {_cell(measured['model'], n)} | {_cell(measured['model_through_index'], n)} |" for n in names]
    return ["| | by exact search | by the index |", "|---|--:|--:|", *rows]


def _cell(numbers: Mapping[str, float], name: str) -> str:
    value = numbers.get(name)
    return "" if value is None or value != value else f"{value:.4f}"


def _speed_rows(name: str, speeds: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"| {name}, {threads} thread{'s' if int(threads) > 1 else ''} | {rates['batch']:,.0f} | {rates['single']:,.0f} |"
        for threads, rates in speeds.items()
    ]
