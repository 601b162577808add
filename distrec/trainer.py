"""From a config to a trained model: `build` puts the parts together in named steps, `Trainer.run` is the loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from distrec import run_folder
from distrec.batch import Batch, Position
from distrec.checkpoint import Checkpoints, Manifest
from distrec.config.check import METRICS
from distrec.config.load import fingerprint
from distrec.config.schema import Config
from distrec.data import Reader
from distrec.dist import Ranks, from_first, lowest, together
from distrec.engine import Engine, open_reader
from distrec.errors import UserError
from distrec.evaluate import Evaluation, better
from distrec.log import Progress, logger
from distrec.metrics.ranking import RankingMetrics
from distrec.metrics.suspicions import idle_features
from distrec.metrics.throughput import Throughput
from distrec.metrics.usage import TableUse
from distrec.metrics.writer import NullWriter, Writer
from distrec.signals import StopRequest
from distrec.task import Outputs

USE_EVERY = 10  # steps between samples of which rows are used
AHEAD = 2  # batches that the pipeline draws before the one it trains on


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
    seconds: dict[str, float]  # wall time by phase
    skipped: int = 0


@dataclass
class Memory:
    """What the loop remembers from one evaluation to the next; travels in a checkpoint."""

    best: float | None = None
    best_step: int | None = None
    without_better: int = 0
    skipped: int = 0


@dataclass
class Clock:
    """Wall seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within to `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def build(config: Config, ranks: Ranks, resume: str | None, progress: Progress | None = None) -> Trainer:
    """Everything a run needs, on every rank, ready to `run`.

    Raises:
        UserError: anything in the config, the data or the run folder that cannot be trained, before a step is taken.
    """
    clock = Clock()
    with clock.phase("start"):
        folder = from_first(lambda: run_folder.claim(config, resume))
        engine = Engine.build(config, ranks)
        readers = {name: open_reader(engine, name) for name in ("train", "valid", "test") if getattr(config.data, name)}
        trainer = Trainer(engine, readers, folder, progress or Progress(), clock)
        if resume is not None:
            trainer.restore()
        trainer.open_writer()
    return trainer


class Trainer:
    """The loop. State that a step changes: the engine's parameters and optimizers, `position`, `memory`."""

    def __init__(self, engine: Engine, readers: dict[str, Reader], folder: Path, progress: Progress, clock: Clock):
        self.engine, self.readers, self.folder = engine, readers, folder
        self.config, self.ranks, self.optimizers = engine.config, engine.ranks, engine.optimizers
        self.position, self.memory = Position(), Memory()
        self.checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, self.config.checkpoint.keep, self.ranks)
        self.pipeline = TrainPipelineSparseDist(
            engine.model,
            self.optimizers,  # type: ignore[arg-type]  # what the pipeline needs of an optimizer: zero_grad and step
            self.ranks.device,
            execute_all_batches=True,
            custom_model_fwd=self._forward,  # type: ignore[arg-type]
        )
        self.metrics = RankingMetrics(self.config.tasks, self.config.data.group is not None, self.ranks.device)
        self.throughput = Throughput(self.ranks.device)
        self.use = TableUse(*engine.features_of_tables(), device=self.ranks.device)
        self.writer: NullWriter = NullWriter()
        self.stop, self.stopping = StopRequest(), False
        self.latest: dict[str, float] = {}
        self._progress, self._clock = progress, clock
        self._failure: UserError | None = None
        self._loss = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)  # sum of losses, steps

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Train to the end, or to a request to stop; evaluate and save on the way."""
        total, early = self.total_steps(), False
        self._progress.start(self.optimizers.steps, total)
        with self.stop, self.writer, closing(self.readers["train"].batches(self.position)) as batches:
            while self.optimizers.steps < total and not self.stopping and not early:
                self._train(batches, self._steps_to_next_event(total))
                if not self.stopping:
                    early = self._event(total)
            self._end_of_training(total)
            self._progress.stop()
            return self._report(total, early)

    def _train(self, batches: Iterator[Batch], steps: int) -> None:
        """A segment: `steps` steps without evaluation or checkpoint, at whose end the pipeline is empty."""
        self.engine.model.train()
        with self._clock.phase("train"):
            drawn = self._draw(batches, steps)
            first = together(lambda: list(itertools.islice(drawn, AHEAD)))  # what is wrong from the start, all ranks hear of
            self._raise_failure()
            segment = itertools.chain(first, drawn)
            for _ in range(steps):
                self._after_step(self.pipeline.progress(segment))
                if self.stopping:
                    break
        self._stop_cleanly()

    def _after_step(self, outputs: Outputs) -> None:
        """What follows an update: counting, and every `log_every` steps telling."""
        rows = len(outputs["weights"]) * self.ranks.world
        if not self.optimizers.skip:
            self.metrics.update(outputs["logits"], outputs["labels"], outputs["weights"], outputs.get("groups"))
            self._loss += torch.stack([outputs["loss"].double(), torch.ones_like(self._loss[0])])
        self.memory.skipped += self.optimizers.skip
        self.throughput.step(rows)
        self._progress.step(self.optimizers.steps, self.latest)
        if self.optimizers.steps % self.config.train.log_every == 0:
            self._log()

    def _forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """The model's forward under guard: before backward moves a row, all ranks agree that the loss is a number."""
        loss, outputs = self.engine.model(batch)
        if not self.engine.model.training:
            return loss, outputs
        finite, going = self._agree(loss)
        self.stopping, self.optimizers.skip = not going, not finite
        if not finite and self.config.train.non_finite == "stop":
            raise UserError(self._not_finite(loss))
        self.position = batch.position
        if self.optimizers.steps % USE_EVERY == 0:
            self.use.update(self.engine.ids(batch))
        return (loss if finite else torch.zeros_like(loss, requires_grad=True)), outputs

    def _agree(self, loss: Tensor) -> tuple[bool, bool]:
        wants_to_go_on = self.stop.signal is None and self._failure is None
        flags = torch.stack([loss.detach().isfinite().float(), torch.full_like(loss, float(wants_to_go_on)).float()])
        finite, going = lowest(flags).tolist()
        return bool(finite), bool(going)

    def _draw(self, batches: Iterator[Batch], count: int) -> Generator[Batch, None, None]:
        """`count` batches. A reader's error ends them here and asks all ranks to stop after the step at hand."""
        for _ in range(count):
            try:
                with self.throughput.waiting():
                    batch = next(batches)
            except UserError as error:
                self._failure = error
                return
            yield batch

    # -- events: evaluation, checkpoints, the end ----------------------------------------------------------------------

    def total_steps(self) -> int:
        """Steps of the whole run; with a fixed number of epochs, counted from the position."""
        train = self.config.train
        if train.steps is not None and train.epochs is None:
            return train.steps
        epochs = train.epochs or 1
        reader = self.readers["train"]
        left = 0
        if self.position.epoch < epochs:
            left = reader.steps_left(self.position) + (epochs - self.position.epoch - 1) * reader.steps_per_epoch
        return min(self.optimizers.steps + left, train.steps or math.inf)  # type: ignore[return-value]

    def _steps_to_next_event(self, total: int) -> int:
        done = self.optimizers.steps
        to_multiple = [
            every - done % every for every in (self.config.evaluate.every_steps, self.config.checkpoint.every_steps) if every
        ]
        return min([total - done, self.readers["train"].steps_left(self.position), *to_multiple])

    def _event(self, total: int) -> bool:
        """Save and evaluate where it is due; whether training should end early."""
        done, at_end = self.optimizers.steps, self.optimizers.steps == total
        evaluate_now = "valid" in self.readers and self._due(self.config.evaluate.every_steps, at_end)
        if self._due(self.config.checkpoint.every_steps, at_end) or evaluate_now:
            self.save()
        if not evaluate_now:
            return False
        result = self.evaluate("valid")
        self._judge(result, done)
        patience = self.config.evaluate.patience
        return patience is not None and self.memory.without_better >= patience

    def _due(self, every: int | None, at_end: bool) -> bool:
        done = self.optimizers.steps
        at_epoch_end = not self.position.deals
        return at_end or (done % every == 0 if every else at_epoch_end)

    def evaluate(self, split: str) -> Evaluation:
        """Metrics over all rows of a split, written and logged under its name."""
        self._progress.phase(f"evaluating on data.{split}")
        with self._clock.phase("evaluate"), self.throughput.paused():
            result = self.engine.evaluate(outputs(self.pipeline, self.engine, self.readers[split]))
            self._log_use()
        self.latest |= {f"{split}/{name}": value for name, value in result.metrics.items()}
        self.writer.scalars(self.optimizers.steps, {f"{split}/{name}": value for name, value in result.metrics.items()})
        if self.ranks.first:
            numbers = ", ".join(f"{name} {value:.5g}" for name, value in result.metrics.items())
            logger.info("step %d, data.%s, %s rows: %s", self.optimizers.steps, split, f"{result.rows:,}", numbers)
            for warning in result.warnings:
                logger.warning("warning: %s", warning)
        return result

    def _judge(self, result: Evaluation, step: int) -> None:
        """Compare with the best evaluation so far."""
        first = self.config.tasks[0]
        name = self.metrics.prefix(first) + (self.config.evaluate.monitor or METRICS[first.kind][0])
        value = result.metrics[name]
        if better(value, self.memory.best, name):
            self.memory.best, self.memory.best_step, self.memory.without_better = value, step, 0
            self.checkpoints.mark_best(step, result.metrics)
        else:
            self.memory.without_better += 1

    def _end_of_training(self, total: int) -> None:
        """Tell what is left to tell; and score the best checkpoint on rows that chose nothing."""
        self._log()
        if self.stopping:
            return
        if "test" in self.readers:
            best = self.checkpoints.best()
            if best is not None and best != self.optimizers.steps:
                self.engine.load(self.checkpoints, best)
            self.evaluate("test")
        quality = {tag: value for tag, value in self.latest.items() if tag.startswith(("valid/", "test/"))}
        self.writer.hparams(self.config.model_dump(mode="json"), quality)

    # -- saving and going on -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of now. The numbers so far are told first, so a checkpoint holds none in the making."""
        self._log()
        self._progress.phase("saving")
        with self._clock.phase("save"), self.throughput.paused():
            manifest = Manifest(
                step=self.optimizers.steps,
                world=self.ranks.world,
                model=fingerprint(self.config),
                data=self.readers["train"].fingerprint,
                position=self.position.to_json(),
                progress=dict(vars(self.memory)),
            )
            path = self.checkpoints.save(self.engine.state(), manifest, self.memory.best_step)
        if self.ranks.first:
            logger.info("step %d: saved %s", self.optimizers.steps, path)

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            UserError: it is of another model or of other data.
        """
        step = self.checkpoints.newest()
        if step is None:
            return
        manifest = self.checkpoints.read_manifest(step)
        self._require_same(manifest)
        self.engine.load(self.checkpoints, step)
        self.position, self.memory = Position.from_json(manifest.position), Memory(**manifest.progress)
        if self.ranks.first:
            logger.info("resuming after step %d, epoch %d", step, self.position.epoch + 1)

    def _require_same(self, manifest: Manifest) -> None:
        if manifest.model != fingerprint(self.config):
            raise UserError(
                f"the checkpoint of step {manifest.step} in {self.folder} is of another model: its tables, features, tasks, "
                "model or kinds of optimizers differ from this config; resume with the config it was trained with, "
                "or set another `folder`"
            )
        if manifest.data != self.readers["train"].fingerprint:
            raise UserError(
                f"data.train is not what the checkpoint of step {manifest.step} was reading: its files, their rows, or the "
                "shuffling (data.shuffle, data.shuffle_window, train.seed) have changed, so rows would be read twice or "
                "never; restore them, or set another `folder`"
            )

    def open_writer(self) -> None:
        """Rank 0 writes metrics, from the step at which this run begins."""
        if not self.ranks.first:
            return
        start = self.optimizers.steps
        self.writer = Writer(self.folder, start or None, [task.kind for task in self.config.tasks])
        self.writer.text("config", f"```json\n{self.config.model_dump_json(indent=2)}\n```")
        self.writer.text("plan", self.engine.plan_markdown())

    # -- telling -------------------------------------------------------------------------------------------------------

    def _log(self) -> None:
        """Write the numbers since the last time; every rank takes part, rank 0 writes."""
        total = self._loss.clone()
        dist.all_reduce(total)
        if total[1] == 0:
            return
        numbers = {f"train/{name}": value for name, value in self.metrics.compute(dist.group.WORLD).items()}
        numbers["train/loss"] = float(total[0] / total[1])
        numbers |= {f"train/lr_{name}": rate for name, rate in self.optimizers.learning_rates().items()}
        numbers |= self.throughput.interval() | {
            "train/epoch": float(self.position.epoch),
            "train/skipped": float(self.memory.skipped),
        }
        self.metrics.reset()
        self._loss.zero_()
        self.latest |= numbers
        self.writer.scalars(self.optimizers.steps, numbers)

    def _log_use(self) -> None:
        self.use.merge(dist.group.WORLD)  # type: ignore[arg-type]
        for table, counts in self.use.buckets.items():
            self.writer.histogram(f"ids/{table}", counts.float().log1p(), self.optimizers.steps)
        if self.ranks.first:
            for warning in idle_features(self.use.ids):
                logger.warning("warning: %s", warning)
        self.use = TableUse(*self.engine.features_of_tables(), device=self.ranks.device)

    def _report(self, total: int, early: bool) -> Report:
        report = Report(
            steps=self.optimizers.steps,
            total_steps=total,
            stopped_by=self.stop.signal.name if self.stop.signal else None,
            early=early,
            metrics={tag: value for tag, value in self.latest.items() if tag.startswith(("valid/", "test/"))},
            best_step=self.memory.best_step,
            throughput=self.throughput.run(),
            seconds=self._clock.seconds,
            skipped=self.memory.skipped,
        )
        if self.ranks.first:
            run_folder.write_summary(self.folder, dict(vars(report)))
        return report

    # -- stopping ------------------------------------------------------------------------------------------------------

    def _stop_cleanly(self) -> None:
        """After a request to stop, or a reader's error on any rank: nothing that was learned is lost."""
        if self.stopping:
            self.save()
            self._raise_failure()

    def _raise_failure(self) -> None:
        def check() -> None:
            if self._failure is not None:
                raise self._failure

        together(check)

    def _not_finite(self, loss: Tensor) -> str:
        """Save what is whole, and say which rank saw what."""
        values: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(values, loss.item())
        where = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values) if not math.isfinite(value))
        step = self.optimizers.steps + 1
        if self.optimizers.steps:
            self.save()
        return (
            f"the loss of step {step} is not a number ({where}). Nothing was updated with it"
            + (f", and step {step - 1} is saved" if self.optimizers.steps else "")
            + '. Look for extreme values in the data (transform = "log1p"), lower the learning rates, '
            'or leave such batches out (train.non_finite = "skip")'
        )


def score(config: Config, ranks: Ranks, folder: Path, split: str, step: int | None) -> tuple[int, Evaluation]:
    """Metrics of a run's checkpoint over a split; and which checkpoint: the one asked for, else the best, else the newest.

    Raises:
        UserError: the config names no such rows, or there is no such checkpoint.
    """
    if not getattr(config.data, split):
        raise UserError(
            f"the run in {folder} has no data.{split}; "
            f"name the rows: distrec evaluate {folder} data.{split}=PATH --split {split}"
        )
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, config.checkpoint.keep, ranks)
    chosen = step if step is not None else checkpoints.best() or checkpoints.newest()
    if chosen is None:
        raise UserError(f"{folder} has no checkpoint yet")
    checkpoints.read_manifest(chosen)
    engine = Engine.build(config, ranks)
    engine.load(checkpoints, chosen)
    pipeline = TrainPipelineSparseDist(engine.model, engine.optimizers, ranks.device, execute_all_batches=True)  # type: ignore[arg-type]
    return chosen, engine.evaluate(outputs(pipeline, engine, open_reader(engine, split)))


def outputs(pipeline: TrainPipelineSparseDist, engine: Engine, reader: Reader) -> Iterator[Outputs]:
    """What the model says of a reader's rows, without training on them."""
    engine.model.eval()
    with closing(reader.batches(epochs=1)) as batches:
        for _ in range(reader.steps_per_epoch):
            with torch.no_grad():
                result = pipeline.progress(batches)
            yield result
