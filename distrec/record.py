"""What a run tells while it trains: scalars, histograms, messages, and the report at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from distrec import run_folder
from distrec.batch import Batch
from distrec.engine import Engine
from distrec.evaluate import Evaluation
from distrec.log import Progress, logger
from distrec.metrics.suspicions import idle_features
from distrec.metrics.throughput import Throughput
from distrec.metrics.usage import TableUse
from distrec.metrics.writer import ChartKind, NullWriter, Writer
from distrec.task import Outputs

USE_EVERY = 10  # steps between samples of which rows are used
HPARAMS: Any = {  # what people compare runs by
    "data": {"batch_size"},
    "model": True,
    "optimizer": True,
    "train": {"epochs", "steps", "seed", "precision", "clip_norm"},
}


@dataclass
class Report:
    """How a run ended, the same on every rank."""

    steps: int
    total_steps: int
    stopped_by: str | None  # a signal's name; None when training came to its end
    early: bool  # ended by evaluate.patience
    metrics: dict[str, float]  # by tag: valid/…, test/…
    best_step: int | None
    throughput: dict[str, float]  # by tag: perf/…, system/…
    seconds: dict[str, float]  # wall time by phase, with that of the runs that this one went on from
    skipped: int = 0


@dataclass
class Clock:
    """Wall seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within to `name`."""
        began = perf_counter()
        try:
            yield
        finally:
            self.add({name: perf_counter() - began})

    def add(self, seconds: Mapping[str, float]) -> None:
        """More time by phase: of a process before this one, say."""
        for name, more in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more


class Record:
    """Counts locally, step by step; adds up over ranks when it tells. Rank 0 writes."""

    def __init__(self, engine: Engine, folder: Path, progress: Progress, clock: Clock):
        self.progress, self.clock = progress, clock
        self.throughput = Throughput(engine.ranks.device)
        self.writer: NullWriter = NullWriter()
        self.quality: dict[str, float] = {}  # the newest metrics of evaluations, by tag
        self._engine, self._folder = engine, folder
        self._metrics = engine.training_metrics()
        self._use = self._no_use()
        self._loss = torch.zeros(2, dtype=torch.float64, device=engine.ranks.device)  # sum of losses, steps
        self._latest: dict[str, float] = {}
        self._warned = False

    def open(self, start: int) -> None:
        """Write from now on, after the `start` steps that a run before this one has told of."""
        if not self._engine.ranks.first:
            return
        config = self._engine.config
        kinds: Sequence[ChartKind] = ["retrieval"] if config.retrieval is not None else [task.kind for task in config.tasks]
        self.writer = Writer(self._folder, start or None, kinds)
        self.writer.text("config", f"```json\n{config.model_dump_json(indent=2)}\n```")
        self.writer.text("plan", self._engine.plan_markdown())

    @contextmanager
    def phase(self, name: str, said: str) -> Iterator[None]:
        """Something else than training: shown as `said`, timed under `name`, and no part of the throughput."""
        self.progress.phase(said)
        with self.clock.phase(name), self.throughput.paused():
            yield

    def count(self, outputs: Outputs, skipped: bool) -> None:
        """Take in the step that has just ended."""
        if not skipped:
            self._metrics.count(outputs)
            self._loss += torch.stack([outputs["loss"].double(), torch.ones_like(self._loss[0])])
        self.throughput.step(len(outputs["weights"]) * self._engine.ranks.world)
        self.progress.step(self._engine.optimizers.steps, self._latest)

    def count_use(self, batch: Batch) -> None:
        """Count the rows that a batch looks up, of every `USE_EVERY`-th one."""
        if self._engine.optimizers.steps % USE_EVERY == 0:
            self._use.update(self._engine.ids(batch))

    def tell(self, facts: Mapping[str, float]) -> None:
        """Write the numbers since the last time, and `facts`. Every rank must call it."""
        total = self._loss.clone()
        dist.all_reduce(total)
        if total[1] == 0:
            return
        learned = self._metrics.compute(dist.group.WORLD) | {"loss": float(total[0] / total[1])}
        self._warn_once(self._engine.divergence(self._metrics, learned))
        numbers = {f"train/{name}": value for name, value in learned.items()}
        numbers |= self._rates() | self.throughput.interval() | dict(facts)
        self._metrics.reset()
        self._loss.zero_()
        self._latest = numbers
        self.writer.scalars(self._engine.optimizers.steps, numbers)

    def tell_use(self) -> None:
        """Write which rows were used since the last time. Every rank must call it."""
        if not self._use.batches:
            return
        self._use.merge(dist.group.WORLD)  # type: ignore[arg-type]
        for table, counts in self._use.buckets.items():
            self.writer.histogram(f"ids/{table}", counts.float().log1p(), self._engine.optimizers.steps)
        self._say(*(f"warning: {warning}" for warning in idle_features(self._use.ids)))
        self._use = self._no_use()

    def tell_evaluation(self, split: str, step: int, result: Evaluation) -> None:
        """Write the metrics of a split under the number of steps trained."""
        numbers = {f"{split}/{name}": value for name, value in result.metrics.items()}
        self.quality |= numbers
        self.writer.scalars(step, numbers)
        if self._engine.ranks.first:
            said = ", ".join(f"{name} {value:.5g}" for name, value in result.metrics.items())
            logger.info("step %d, data.%s, %s rows: %s", self._engine.optimizers.steps, split, f"{result.rows:,}", said)
        self._say(*(f"warning: {warning}" for warning in result.warnings))

    def end(self, report: Report) -> Report:
        """Write what outlasts the run."""
        if not report.stopped_by:
            self.writer.hparams(self._engine.config.model_dump(mode="json", include=HPARAMS), self.quality)
        if self._engine.ranks.first:
            run_folder.write_summary(self._folder, dict(vars(report)))
        return report

    def _rates(self) -> dict[str, float]:
        return {f"train/lr_{name}": rate for name, rate in self._engine.optimizers.learning_rates().items()}

    def _warn_once(self, warnings: Sequence[str]) -> None:
        """Say the first that there are, here and on TensorBoard's page TEXT."""
        if warnings and not self._warned:
            self._warned = True
            said = [f"warning: at step {self._engine.optimizers.steps}, {warning}" for warning in warnings]
            self._say(*said)
            self.writer.text("warnings", "\n\n".join(said))

    def _no_use(self) -> TableUse:
        return TableUse(*self._engine.features_of_tables(), device=self._engine.ranks.device)

    def _say(self, *warnings: str) -> None:
        if self._engine.ranks.first:
            for warning in warnings:
                logger.warning(warning)
