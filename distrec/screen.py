"""What a person sees: progress bars, tables, and what to do next."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.table import Table as RichTable

from distrec.config.schema import Config
from distrec.environment import component_path
from distrec.errors import UserError
from distrec.log import Progress

if TYPE_CHECKING:
    from distrec.engine import Engine
    from distrec.prepare.output import Prepared
    from distrec.trainer import Report

LINE_EVERY_S = 5.0


def watched() -> bool:
    """Whether stdout is a person's terminal. TorchX has Slurm run tasks unbuffered: on a terminal that ends in a file."""
    return sys.stdout.isatty() and "SLURM_UNBUFFEREDIO" not in os.environ


console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, color_system="auto" if watched() else None)


def progress_for(first: bool) -> Progress:
    """A bar on a terminal, lines in a log, nothing on ranks that are not the first."""
    if not first:
        return Progress()
    return Bar() if watched() else Lines()


def _facts(facts: Mapping[str, float]) -> str:
    shown = (
        ("train/loss", "loss {:.4f}"),
        ("train/auc", "auc {:.4f}"),
        ("train/rmse", "rmse {:.4f}"),
        ("perf/samples_per_s", "{:,.0f} samples/s"),
    )
    return ", ".join(text.format(facts[tag]) for tag, text in shown if tag in facts and math.isfinite(facts[tag]))


class Bar(Progress):
    """A live progress bar."""

    def start(self, done: int, total: int) -> None:
        """Show it."""
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, facts="")
        self._bar.start()

    def step(self, done: int, facts: Mapping[str, float]) -> None:
        """Move it."""
        self._bar.update(self._task, completed=done, description="training", facts=_facts(facts))

    def phase(self, name: str) -> None:
        """Name what goes on."""
        self._bar.update(self._task, description=name)

    def stop(self) -> None:
        """Leave it as it stands."""
        self._bar.stop()


class Lines(Progress):
    """A line with a bar every few seconds: for logs, and for output that passes through TorchX."""

    def start(self, done: int, total: int) -> None:
        """Begin to count."""
        self._total, self._first, self._began = total, done, time.monotonic()
        self._said = self._began

    def step(self, done: int, facts: Mapping[str, float]) -> None:
        """Say where training is, if it has been a while."""
        now = time.monotonic()
        if now - self._said < LINE_EVERY_S and done < self._total:
            return
        self._said = now
        filled = 24 * done // max(1, self._total)
        left = (now - self._began) / max(1, done - self._first) * (self._total - done)
        said = filter(None, (f"{done}/{self._total} steps", f"{_duration(left)} left", _facts(facts)))
        console.print(f"[{'#' * filled}{'-' * (24 - filled)}] {', '.join(said)}")


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a count that is known as it goes: call it with (done, total); 0 for an unknown total. In a log, nothing."""
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shown = RichBar(*columns, console=console, transient=True, disable=not watched())
    task = shown.add_task(what, total=None, visible=False)
    with shown:
        yield lambda done, total: shown.update(task, completed=done, total=total or None, visible=True)


def prepared(result: Prepared) -> None:
    """Say what `distrec prepare` wrote."""
    rows = ", ".join(f"{split} {count:,}" for split, count in result.rows.items())
    console.print(f"wrote {result.folder}: {rows} rows; {result.description.name} describes the columns")
    for note in result.notes:
        console.print(f"  {note}")


def plan_table(engine: Engine) -> None:
    """The sharding plan."""
    from distrec.embeddings.plan import describe

    table = RichTable(title="embedding tables", title_justify="left")
    for name in ("table", "shape", "sharding", "kernel", "ranks", "weights"):
        table.add_column(name, justify="right" if name in ("shape", "weights") else "left")
    for row in describe(engine.plan, engine.config.tables):
        table.add_row(*row)
    console.print(table)


def metrics_table(title: str, metrics: Mapping[str, float]) -> None:
    """Metrics by name."""
    _pairs(title, [(name, f"{value:.5g}") for name, value in metrics.items()])


def report(
    outcome: Report, config: Config, config_path: str, overrides: Sequence[str], world: tuple[int, int] = (1, 1)
) -> None:
    """How a run ended, where its time went, and what to do next; `world` is the nodes and the ranks of each."""
    rows = [(tag, f"{value:.5f}") for tag, value in outcome.metrics.items()]
    rows += [(name, f"{value:.5f}") for name, value in _known_best(config).items()]
    rows += [(tag, _rate(tag, value)) for tag, value in outcome.throughput.items() if math.isfinite(value)]
    rows += [(f"time/{phase}", _duration(seconds)) for phase, seconds in outcome.seconds.items()]
    _pairs(f"{config.name}: {_ending(outcome)}", rows)
    if outcome.best_step not in (None, outcome.steps):
        console.print(_best(outcome))
    console.print("Next:")
    for what, command in _next(outcome, config, _again(outcome, config, config_path, overrides, world)):
        console.print(f"  {what + ':':<16}{command}")
    console.print("  your own data:  README.md, “Your own data”")


def _best(outcome: Report) -> str:
    """Which step the numbers are of, where the best is not the last: the two are easily taken for each other."""
    by_it = "test/…, evaluate" if any(tag.startswith("test/") for tag in outcome.metrics) else "evaluate"
    best = f"best on data.valid: step {outcome.best_step}; {by_it} and export go by it"
    return f"{best}, valid/… above is of step {outcome.steps}"


def _again(outcome: Report, config: Config, path: str, overrides: Sequence[str], world: tuple[int, int]) -> str:
    """The command that goes on with a run on as many ranks; of a run that is through, with more to do."""
    nodes, ranks = world
    if nodes > 1:
        return "the command that started it, with --resume newest"
    more = f"train.steps={2 * outcome.steps}" if config.train.steps else f"train.epochs={(config.train.epochs or 1) + 1}"
    words = list(overrides)
    if outcome.steps >= outcome.total_steps:
        words = [word for word in words if word.partition("=")[0] != more.partition("=")[0]] + [more]
    if ranks == 1:
        return shlex.join(["distrec", "train", path, *words, "--resume"])
    component = ["torchx", "run", "-s", "local_cwd", f"{component_path()}:train"]
    return shlex.join([*component, "--config", path, "-j", f"1x{ranks}", "--resume", "newest", *words])


def _next(outcome: Report, config: Config, again: str) -> Iterator[tuple[str, str]]:
    """What may follow a run, and the command."""
    folder = shlex.quote(config.run_folder)
    yield "look at it", f"tensorboard --logdir {folder}"
    if config.data.valid or config.data.test:
        yield "score it again", f"distrec evaluate {folder}" + ("" if config.data.valid else " --split test")
    yield "train longer" if outcome.steps >= outcome.total_steps else "go on with it", again
    yield "export it", f"distrec export {folder}"
    if config.retrieval is not None:
        yield "index it", f"distrec index {folder}"
        if config.data.valid or config.data.test:
            yield "measure it", f"distrec recall {folder} --report"


def _ending(outcome: Report) -> str:
    if outcome.steps > outcome.total_steps:
        return f"{outcome.steps} steps before, and {outcome.total_steps} are asked for: nothing was trained"
    steps = f"{outcome.steps} of {outcome.total_steps} steps"
    if outcome.stopped_by:
        return f"stopped by {outcome.stopped_by} after {steps}, saved"
    if outcome.early:
        return f"stopped early after {steps}, no longer improving"
    return steps


def _known_best(config: Config) -> dict[str, float]:
    """What no model can beat on the validation rows, where the data says so."""
    from distrec.data.files import find_files  # here, because they bring torch, which a mistake in a config need not wait for
    from distrec.data.numbering import descriptions

    sources = []
    with suppress(UserError):  # the run is over, and there may be no validation rows
        sources = find_files(config.data.valid)
    for facts in descriptions(sources).values():
        keys = {task.name: "bayes_auc" if task.label == "label" else f"bayes_auc_{task.label}" for task in config.tasks}
        found = {name: facts[key] for name, key in keys.items() if key in facts}
        several = len(config.tasks) > 1
        return {f"valid/{f'{name}/' * several}auc of the true probabilities": auc for name, auc in found.items()}
    return {}


def _rate(tag: str, value: float) -> str:
    if tag.endswith("data_wait"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = RichTable(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
