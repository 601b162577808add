"""benchmarks/retrieval_quality.md, from the runs that were recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.markdown import line
from benchmarks.quality_rows import DATASETS, Dataset, Row

Record = Mapping[str, Any]
Runs = Sequence[Mapping[str, Any]]  # both as `benchmarks.retrieval_quality` records them

NAMES = {"recall": "Recall", "ndcg": "NDCG", "hit_rate": "HR"}
HEAD = """# How good the retrievers are

Written by `python -m benchmarks.retrieval_quality`, which trains the configs and records each run in
`benchmarks/results/cpu/retrieval_quality.json`. Look there for every single run, and for the versions that it ran with.

## How it is measured

- **Each row is a config that ships**, trained from scratch by `distrec train` in one process, once for each seed, and scored
  once on `data.test`. A figure is the mean over the seeds; in parentheses are the lowest and the highest.
- **Full ranking.** Each query is scored against every item of the catalogue, by exact search. Nothing is sampled, and no index
  is involved. (HR@10 of .7 and more in papers on MovieLens is among 100 sampled items: another question.)
- *Recall@k* is the share of the items asked for that are among the best k, *NDCG@k* also rewards ranks near the top, and
  *HR@k* is the share of queries that find any. With one item asked for, as in leave-one-out, HR@k is Recall@k. All are between
  0 and 1, and higher is better.
- **Most popular** is no model: everyone is given the items of most training rows, less the same ones masked
  (`python -m benchmarks.retrieval_quality --popular`). What a model is worth begins there.
- **Published** figures are of the same split, the same metric and full ranking, as their authors state them.
- **A run** is the median wall time of one run with reading, scoring and saving, on a CPU where it does not say GPU. The machine
  (`machine` in the record) did other work too, so times say what order to expect and no more.
"""


def render(record: Record) -> str:
    """The whole document. Rows of which no run is recorded are left out."""
    parts = [HEAD]
    for dataset in DATASETS:
        runs = {row: [run for run in record["runs"] if run["config"] == row.config] for row in dataset.rows}
        if measured := {row: found for row, found in runs.items() if found}:
            parts += _section(dataset, measured, record["popular"].get(dataset.title))
    return "\n".join(parts)


def _section(dataset: Dataset, measured: Mapping[Row, Runs], popular: Mapping[str, float] | None) -> Iterator[str]:
    yield f"## {dataset.title}\n"
    yield f"{dataset.protocol}\n"
    yield "\n".join(_table(dataset, measured, popular)) + "\n"
    yield f"Published: {dataset.source}."
    yield from _scoring(dataset, measured)
    if dataset.other is not None:
        yield _gap(dataset, dataset.other, measured)
    yield f"\nThe data, all rows again, or one run of each:\n\n```bash\n{dataset.prepare}"
    yield f"python -m benchmarks.retrieval_quality --again --only {' '.join(row.config for row in measured)}"
    yield from (f"distrec train configs/{row.config}.toml train.seed={runs[0]['seed']}" for row, runs in measured.items())
    yield "```\n"


def _table(dataset: Dataset, measured: Mapping[Row, Runs], popular: Mapping[str, float] | None) -> Iterator[str]:
    compared = any(row.published for row in dataset.rows)
    heads = ["model", "config", "seeds"]
    for metric in dataset.metrics:
        heads += [label(metric), "published"] if compared else [label(metric)]
    yield line([*heads, "a run"])
    yield line(["---", "---", *["---:"] * (len(heads) - 1)])
    if popular is not None:
        figures = [f"{popular[metric]:.4f}" for metric in dataset.metrics]
        cells = [cell for figure in figures for cell in ((figure, "") if compared else (figure,))]
        yield line(["most popular", "none", "", *cells, ""])
    for row, runs in measured.items():
        cells = [row.model, f"[{row.config}](../configs/{row.config}.toml)", str(len(runs))]
        for metric in dataset.metrics:
            cells += [_spread(runs, metric), _published(row, runs, metric)] if compared else [_spread(runs, metric)]
        yield line([*cells, _wall(runs)])
    if dataset.other is not None:
        figures = [f"*{dataset.other.published[metric]:.4f}*" for metric in dataset.metrics]
        yield line([f"*{dataset.other.model}*", "*published*", "", *figures, ""])


def _scoring(dataset: Dataset, measured: Mapping[Row, Runs]) -> Iterator[str]:
    """How long exact search takes, of runs that do it once."""
    seconds = [run["test_s"] for runs in measured.values() for run in runs if run.get("test_s") is not None]
    if seconds:
        yield (
            f"Of a run, exact search for all {dataset.queries:,} test queries, with reading them, takes "
            f"{' to '.join(f'{s:.1f}' for s in sorted({min(seconds), max(seconds)}))} s."
        )


def label(metric: str) -> str:
    """As papers write it: `hit_rate@10` is HR@10."""
    name, k = metric.split("@")
    return f"{NAMES[name]}@{k}"


def _spread(runs: Runs, metric: str) -> str:
    values = [run["metrics"][metric] for run in runs]
    return f"{fmean(values):.4f}" + (f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else "")


def _published(row: Row, runs: Runs, metric: str) -> str:
    if metric not in row.published:
        return ""
    difference = _mean(runs, metric) - row.published[metric]
    return f"{row.published[metric]:.4f} ({difference:+.4f})"


def _gap(dataset: Dataset, other: Row, measured: Mapping[Row, Runs]) -> str:
    metric = dataset.metrics[-1]
    best = max(measured, key=lambda row: _mean(measured[row], metric))
    ours, theirs = _mean(measured[best], metric), other.published[metric]
    return (
        f"{other.model} is no model of distrec: it attends to the whole sequence. The best row here, {best.model}, has "
        f"{label(metric)} {abs(ours - theirs):.3f} {'above' if ours > theirs else 'below'} it; {dataset.queries:,} queries "
        f"alone make for a standard error of {math.sqrt(ours * (1 - ours) / dataset.queries):.3f}."
    )


def _mean(runs: Runs, metric: str) -> float:
    return fmean(run["metrics"][metric] for run in runs)


def _wall(runs: Runs) -> str:
    devices = " and ".join(sorted({run["device"].upper() for run in runs}))
    return f"{median(run['seconds'] for run in runs) / 60:.1f} min" + (f" ({devices})" if devices != "CPU" else "")
