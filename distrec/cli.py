"""The verbs. Whatever a verb needs is imported inside it, so that `distrec --help` answers at once."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distrec.cli_prepare import prepare
from distrec.cli_retrieval import add_verbs

if TYPE_CHECKING:
    from distrec.config.schema import Config
    from distrec.dist import Ranks

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(prepare, name="prepare")


def _version(asked: bool) -> None:
    if asked:
        from distrec.doctor.versions import summary

        typer.echo(summary())
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="distrec's, Python's and the libraries'")
    ] = False,
) -> None:
    """Train recommendation models with embedding tables sharded over GPUs and nodes."""


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="the run's TOML file", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="train.epochs=3 data.batch_size=1024", show_default=False)
]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        Literal["newest", "auto"] | None, typer.Option(metavar="[auto]", help="go on with the run; `auto`: or start it")
    ] = None,
) -> None:
    """Train, evaluate and save a model. It runs in this process, or as one rank of those that TorchX or torchrun started."""
    from distrec import run_folder
    from distrec.config.load import load
    from distrec.screen import plan_table, progress_for, report

    run = load(config, overrides or [])
    folder = Path(run.run_folder)
    with ranks_of(run, folder, training=True) as ranks, run_folder.held(folder), run_folder.given_back_if_unused(folder):
        from distrec.trainer import build

        trainer = build(run, ranks, resume, progress_for(ranks.first))
        if ranks.first:
            plan_table(trainer.engine)
        outcome = trainer.run()
        if ranks.first:
            report(outcome, run, str(config), overrides or [], (ranks.world // ranks.local_world, ranks.local_world))
    if outcome.stopped_by:
        raise typer.Exit(128 + signal.Signals[outcome.stopped_by])


@app.command()
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Report every fault of a config, its model and its data. Nothing is trained."""
    from distrec import log
    from distrec.config.load import load

    log.quiet_dependencies()
    run = load(config, overrides or [])
    from distrec.validate import validate

    typer.echo(f"{config} is sound: {validate(run)}")


@app.command()
def init(
    paths: Annotated[list[str], typer.Argument(metavar="PARQUET…", help="files, folders, globs or URLs", show_default=False)],
    label: Annotated[str | None, typer.Option(help="the column to predict; default: by its name")] = None,
    time: Annotated[str | None, typer.Option(help="the column that says when; default: by its name and type")] = None,
) -> None:
    """Draft a commented config for your own data. For example: distrec init data/mine > my.toml"""
    from distrec.errors import UserError
    from distrec.profile.draft import draft
    from distrec.profile.retriever import description_of, draft_retriever
    from distrec.profile.retriever_toml import retriever_toml
    from distrec.profile.toml_out import notes, to_toml

    told = description_of(paths)
    if told is None:
        drafted = draft(paths, label, time)
        typer.echo(to_toml(drafted), nl=False)
        for note in notes(drafted):
            typer.echo(note, err=True)
    elif label or time:
        raise UserError(f"--label and --time are for rankers, and {paths[0]} holds a retriever's data; leave them away")
    else:
        typer.echo(retriever_toml(draft_retriever(paths[0], told)), nl=False)


@app.command()
def inspect(
    what: Annotated[list[str], typer.Argument(metavar="CONFIG|PARQUET…", help="a run's file, or data", show_default=False)],
    label: Annotated[str | None, typer.Option(help="for data: the column to predict")] = None,
    time: Annotated[str | None, typer.Option(help="for data: the column that says when")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of tables")] = False,
) -> None:
    """Show what columns hold, and signs of leaks. A config may be followed by KEY=VALUE."""
    from distrec.config.load import load
    from distrec.profile.inspection import inspect_config, inspect_files
    from distrec.profile.screen import show, to_json

    is_config = what[0].endswith(".toml")
    found = inspect_config(load(what[0], what[1:])) if is_config else inspect_files(what, label, time)
    if as_json:
        typer.echo(to_json(found))
    else:
        show(found)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", show_default=False)],
    overrides: Overrides = None,
    split: Annotated[Literal["valid", "test"], typer.Option(help="which rows")] = "valid",
    step: Annotated[int | None, typer.Option(help="which checkpoint; default: the best, else the newest")] = None,
) -> None:
    """Score a run's checkpoint on data.valid or data.test."""
    from distrec import run_folder
    from distrec.log import logger
    from distrec.screen import metrics_table

    config = run_folder.saved_config(run, overrides or [])
    with ranks_of(config, run) as ranks:
        from distrec.trained import score

        at, result = score(config, ranks, run, split, step)
        if ranks.first:
            metrics_table(f"{run}, step {at}, data.{split}, {result.rows:,} rows", result.metrics)
            for warning in result.warnings:
                logger.warning("warning: %s", warning)


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="where runs or data will lie; its disk is timed")] = Path(),
    ranks: Annotated[int, typer.Option(min=0, help="local processes of the all-to-all self-test; 0: none")] = 2,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="of the self-test; auto: a GPU a rank, else CPU")
    ] = "auto",
    strict: Annotated[bool, typer.Option(help="exit with 2 for warnings too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list instead")] = False,
) -> None:
    """Find what is wrong with this machine. Every fault comes with the command that mends it; the exit code is then 2."""
    from dataclasses import asdict

    from distrec.doctor.examine import examine
    from distrec.doctor.finding import exit_code
    from distrec.json_out import to_json

    findings = []
    for finding in examine(folder, ranks, device):
        findings.append(finding)
        if not as_json:
            typer.echo(finding.text())
    if as_json:
        typer.echo(to_json([asdict(finding) for finding in findings], indent=2))
    raise typer.Exit(exit_code(findings, strict))


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option(help="the same as a page of Markdown, docs/config.md")] = False,
) -> None:
    """Print the config's JSON Schema. Editors complete and check a config with it."""
    from distrec.config import document
    from distrec.json_out import to_json
    from distrec.models import MODELS, RETRIEVERS

    params = {name: model.Params for name, model in (MODELS | RETRIEVERS).items()}
    typer.echo(document.markdown(params) if markdown else to_json(document.json_schema(params), indent=2), nl=not markdown)


@app.command()
def plan(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs a machine, or ranks with --device cpu")] = 8,
    hbm: Annotated[str, typer.Option(help="memory of a GPU; 1GB is 2^30 bytes")] = "80GB",
    host: Annotated[str, typer.Option(help="host memory a rank may use")] = "128GB",
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="what the ranks have")] = "cuda",
    intra: Annotated[str, typer.Option(help="bandwidth between GPUs of a machine, a second")] = "600GB",
    inter: Annotated[str, typer.Option(help="bandwidth of a GPU to other machines, a second")] = "12.5GB",
    hbm_bandwidth: Annotated[str, typer.Option(help="bandwidth of a GPU's memory, a second")] = "897GB",
    save: Annotated[Path | None, typer.Option(help="write the plan, for embedding.plan")] = None,
    png: Annotated[Path | None, typer.Option(help="write a picture (.png, .svg, .pdf)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON and nothing else")] = False,
    compare: Annotated[str | None, typer.Option(metavar="CONFIG|NODESxGPUS", help="plan this too, side by side")] = None,
) -> None:
    """Lay a model out on a cluster that need not be there."""
    from distrec import log
    from distrec.config.load import load
    from distrec.errors import UserError
    from distrec.planner.command import Question, answer

    log.quiet_dependencies()
    source = context.get_parameter_source("hbm")
    if device == "cpu" and source is not None and source.name != "DEFAULT":
        raise UserError("--hbm is the memory of a GPU; with --device cpu, --host says how much memory a rank may use")
    run = load(config, overrides or [])
    question = Question(nodes, gpus, device, hbm, host, intra, inter, hbm_bandwidth)
    typed = shlex.join(["distrec", *context.find_root().obj])
    answer(run, overrides or [], question, save=save, png=png, as_json=as_json, compare=compare, command=typed)


@contextmanager
def ranks_of(config: Config, folder: Path, training: bool = False) -> Iterator[Ranks]:
    """Join the run's ranks, with logs in the run folder, and leave them at the end.

    A run that was trained may lie where nothing can be written: it can be used without logs.
    """
    from distrec import dist, log

    log.quiet_dependencies()
    ranks = dist.start(config.train.device, config.train.timeout_s)
    log.setup(ranks.rank, folder / "logs", required=training)
    yield ranks
    dist.stop()


add_verbs(app)
