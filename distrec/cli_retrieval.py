"""The verbs that follow training: export, index, recall."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="data.test=PATH, say", show_default=False)]
Step = Annotated[int | None, typer.Option(help="which checkpoint; default: the best, else the newest")]
IndexFolder = Annotated[Path | None, typer.Option(help="the index; default: RUN/index")]


def add_verbs(app: typer.Typer) -> None:
    """Give `app` the verbs."""
    for verb in (export, index, recall):
        app.command()(verb)


def export(
    run: Run,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder to write into; default: RUN/export")] = None,
    step: Step = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="of the tables; tells what fewer bits cost in metrics")
    ] = "fp32",
    program: Annotated[
        Literal["onnx", "torch", "none"], typer.Option(help="the dense graph: ONNX and torch.export, torch.export, neither")
    ] = "onnx",
) -> None:
    """Write a run as files that serve. They are its tables, its dense graph and a retriever's vectors."""
    from distrec import run_folder
    from distrec.cli import ranks_of
    from distrec.recall.screen import exported

    config = run_folder.saved_config(run, overrides or [])
    with ranks_of(config, run) as ranks:
        from distrec.export.write import export as write

        done = write(config, ranks, run, out, step, precision, program)
        if ranks.first:
            exported(str(done.folder), done.facts)


def index(
    run: Run,
    factory: Annotated[str, typer.Option(help='a Faiss factory string: "IVF1024,Flat"; auto: by size and recall')] = "auto",
    recall: Annotated[float, typer.Option(help="share of the exact best items to find, for the search parameters")] = 0.98,
    k: Annotated[int | None, typer.Option("-k", help="items a query that --recall is measured at; default: 100")] = None,
    export: Annotated[Path | None, typer.Option(help="what `distrec export` wrote; default: RUN/export")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write into; default: RUN/index")] = None,
) -> None:
    """Index a run's exported items with Faiss. Search parameters are tuned by measuring."""
    from distrec import log
    from distrec.recall.command import build_index

    log.quiet_dependencies()
    log.setup(0, run / "logs", required=False)
    build_index(run, factory, recall, k, export, out)


def recall(
    context: typer.Context,
    run: Run,
    overrides: Overrides = None,
    query: Annotated[list[str] | None, typer.Option(help="a user's id; may be repeated", show_default=False)] = None,
    history: Annotated[
        str | None,
        typer.Option(
            metavar="ITEM,ITEM,…", help='or items, oldest first; ids with commas as JSON: ["a,b", "c"]', show_default=False
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="how many items; default: 10, or as many as there are")] = None,
    everyone: Annotated[
        Literal["valid", "test"] | None,
        typer.Option("--all", help="or every query of data.valid or data.test, into Parquet", show_default=False),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="measure the model and the index instead")] = False,
    index: IndexFolder = None,
    export: Annotated[Path | None, typer.Option(help="with --report: what the index is of; default: RUN/export")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of what --report or --all writes; default: in RUN")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object a query instead of a table")] = False,
) -> None:
    """Recommend items, or report how good they are. The report tells model and index apart."""
    from distrec import run_folder
    from distrec.cli import ranks_of
    from distrec.errors import UserError

    asked = bool(query or history is not None)
    if not (report or asked or everyone):
        raise UserError("say for whom: --query USER, --history ITEM,ITEM,…, --all test or --report")
    if report + asked + bool(everyone) > 1:
        raise UserError("--report, --all, and --query with --history are three questions; ask one at a time")
    if asked and out:
        raise UserError("--out is for --report and --all: what --query and --history find is printed")
    if export and not report:
        raise UserError("--export is for --report: recommendations come from --index")
    if report and k is not None:
        raise UserError("-k is for recommendations; the report measures at each of retrieval.ks: retrieval.ks=[10,50]")
    if as_json and not asked:
        written = "report.json" if report else "Parquet, and manifest.json beside it"
        raise UserError(
            f"--json is for --query and --history, which print; {'--report' if report else '--all'} writes {written}"
        )
    config = run_folder.saved_config(run, overrides or [])
    with ranks_of(config, run) as ranks:
        from distrec.recall.command import recommend_items, recommend_to_all, write_report

        if report:
            write_report(config, ranks, run, index, export, out, shlex.join(["distrec", *context.find_root().obj]))
        elif everyone:
            recommend_to_all(config, ranks, run, index, everyone, k, out)
        else:
            recommend_items(config, ranks, run, index, query or [], history, k, as_json)
