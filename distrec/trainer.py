"""From a config to a trained model: `build` puts the parts together in named steps, `Trainer.run` is the loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from distrec import run_folder
from distrec.batch import Batch, Position
from distrec.checkpoint import Checkpoints, Manifest
from distrec.config.check import monitored_metric
from distrec.config.load import structure
from distrec.config.schema import Config
from distrec.data import Reader
from distrec.dist import Ranks, from_first, lowest, of_all_ranks, refuse
from distrec.draw import Draw
from distrec.embeddings.shard import release_cached_rows
from distrec.engine import Engine, open_reader
from distrec.errors import UserError
from distrec.evaluate import Evaluation, better
from distrec.log import Progress, logger
from distrec.pipeline import make_pipeline, outputs
from distrec.record import Clock, Record, Report
from distrec.running_statistics import RunningStatistics
from distrec.signals import StopRequest
from distrec.task import Outputs
from distrec.tracing import trace_of
from distrec.trained import chosen, require_same_model, require_same_numbering


@dataclass
class Memory:
    """What the loop remembers from one evaluation to the next; travels in a checkpoint."""

    best: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    without_better: int = 0
    evaluated: int | None = None  # step of the newest evaluation
    metrics: dict[str, float | None] = field(default_factory=dict)  # what it found, by tag; None, as JSON has it, for NaN
    skipped: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by phase up to the checkpoint, of every process so far


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
        trainer = Trainer(engine, readers, folder, Record(engine, folder, progress or Progress(), clock))
        if resume is None or not trainer.restore():
            trainer.begin()
        if resume is not None:
            from_first(lambda: run_folder.write_config(folder, config))
        trainer.record.open(engine.optimizers.steps)
    return trainer


class Trainer:
    """The loop. State that a step changes: the engine's parameters and optimizers, `position`, `memory`."""

    def __init__(self, engine: Engine, readers: dict[str, Reader], folder: Path, record: Record):
        self.engine, self.readers, self.folder, self.record = engine, readers, folder, record
        self.config, self.ranks, self.optimizers = engine.config, engine.ranks, engine.optimizers
        self.position, self.memory = Position(), Memory()
        self.checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, self.config.checkpoint.keep, self.ranks)
        self.pipeline = make_pipeline(engine, self._forward)
        self.stop, self.stopping = StopRequest(), False
        self.trace = trace_of(self.config.train.profile, folder, self.ranks.rank)
        self._statistics = RunningStatistics(engine.model.module.head.model, self.ranks.device)  # type: ignore[arg-type]
        self._saved = 0  # step of the newest checkpoint; nothing is worth one before the first step

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Train to the end, or to a request to stop; evaluate and save on the way."""
        total = self.total_steps()
        self.record.progress.start(self.optimizers.steps, total)
        try:
            reading = closing(self.readers["train"].batches(self.position))
            with self.stop, self.record.writer, self.trace, reading as batches:
                early = self._event(total)  # of a resumed run: what was due when it was cut off
                while self.optimizers.steps < total and not self.stopping and not early:
                    self.train(batches, self._steps_to_next_event(total))
                    early = not self.stopping and self._event(total)
                return self._end(total, early)
        finally:
            self.record.progress.stop()

    def train(self, batches: Iterator[Batch], steps: int) -> None:
        """A segment: `steps` steps without evaluation or checkpoint, at whose end the pipeline is empty."""
        self.engine.model.train()
        release_cached_rows(self.engine.model)
        self._draw = Draw(batches, steps, self.record.throughput.waiting)
        with self.record.clock.phase("train"):
            self._begin()
            for _ in range(steps):
                outputs = self.pipeline.progress(self._draw)
                self._after_step(outputs)
                if self.stopping:
                    break
        if self.stopping:  # asked to, or because a rank cannot read on: nothing that was learned is lost
            self.save()
            self._draw.raise_failure()

    def _begin(self) -> None:
        try:
            self._draw.begin()
        except UserError:
            self.save()
            raise

    def _after_step(self, outputs: Outputs) -> None:
        """What follows an update: counting, and every `log_every` steps telling."""
        skipped = self.optimizers.skip
        if not skipped:
            self._statistics.average()
        self.engine.averaging.after(self.optimizers.steps)
        self.memory.skipped += skipped
        self.record.count(outputs, skipped)
        self.trace.step()
        if self.optimizers.steps % self.config.train.log_every == 0:
            self._tell()

    def _forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """The model's forward under guard: before backward moves a row, all ranks agree that it went well."""
        if not self.engine.model.training:
            return self.engine.model(batch)
        self._statistics.remember()
        loss, outputs = self.engine.model(batch)
        sound = loss.detach().isfinite() & self._statistics.finite()
        finite, going = self._agree(sound)
        self.stopping, self.optimizers.skip = not going, not finite
        if not finite:
            self._statistics.undo()
            if self.config.train.non_finite == "stop":
                self._refuse(loss, sound)
        self.position = batch.position
        self.record.count_use(batch)
        return (loss if finite else torch.zeros_like(loss, requires_grad=True)), outputs

    def _agree(self, sound: Tensor) -> tuple[bool, bool]:
        """Whether what all ranks computed is sound, and whether all want to go on."""
        wants_to = self.stop.signal is None and self._draw.failure is None
        sound_everywhere, going = lowest(torch.stack([sound, torch.full_like(sound, wants_to)]).float()).tolist()
        return bool(sound_everywhere), bool(going)

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
        every_so_many = self.config.evaluate.every_steps, self.config.checkpoint.every_steps, self.engine.search_steps
        to_multiple = [every - done % every for every in every_so_many if every]
        return min([total - done, self.readers["train"].steps_left(self.position), *to_multiple])

    def _event(self, total: int) -> bool:
        """Save and evaluate where it is due and not done; whether training should end early.

        The checkpoint comes first, so that nothing is lost with a long evaluation, and then hears what was found.
        """
        evaluate_now = "valid" in self.readers and self._due(self.config.evaluate.every_steps, total)
        if evaluate_now or self._due(self.config.checkpoint.every_steps, total):
            self.save()
        if evaluate_now and self.memory.evaluated != self.optimizers.steps:
            self._judge(self.evaluate("valid", self.optimizers.steps))
        done, every = self.optimizers.steps, self.engine.search_steps
        if every and done and done % every == 0:
            self._search_negatives()
        patience = self.config.evaluate.patience
        return patience is not None and self.memory.without_better >= patience

    def _search_negatives(self) -> None:
        """After the checkpoint, for a run that is resumed from it begins with this."""
        with self.record.phase("search", "searching for hard negatives"):
            self.engine.search_negatives(partial(outputs, self.pipeline, self.engine))

    def _due(self, every: int | None, total: int) -> bool:
        """Every so many steps, or at the end of each epoch; and at the end."""
        done = self.optimizers.steps
        at_epoch_end = not self.position.deals
        return done > 0 and (done >= total or (done % every == 0 if every else at_epoch_end))

    def evaluate(self, split: str, step: int) -> Evaluation:
        """Metrics over all rows of a split, written and logged under its name and the step."""
        self.engine.averaging.now(self.optimizers.steps)
        with self.record.phase("evaluate", f"evaluating on data.{split}"):
            result = self.engine.evaluate(self.readers[split], partial(outputs, self.pipeline, self.engine))
        self.record.tell_evaluation(split, step, result)
        return result

    def _judge(self, result: Evaluation) -> None:
        """Compare with the best evaluation so far."""
        step, memory, name = self.optimizers.steps, self.memory, monitored_metric(self.config)
        memory.evaluated, memory.metrics = step, dict(self.record.quality)
        memory.without_better += 1
        if better(result.metrics[name], memory.best, name):
            memory.best, memory.best_step, memory.best_metrics = result.metrics[name], step, result.metrics
            memory.without_better = 0
            self.checkpoints.mark_best(step, result.metrics)
        self.checkpoints.amend(step, dict(vars(memory)))

    def _end(self, total: int, early: bool) -> Report:
        """Tell what is left to tell; and score the best checkpoint on rows that chose nothing."""
        self._tell()
        trained = self.optimizers.steps
        if "test" in self.readers and not self.stopping:
            self._load_best()
            self.evaluate("test", trained)
        report = Report(
            steps=trained,
            total_steps=total,
            stopped_by=self.stop.signal.name if self.stopping and self.stop.signal else None,
            early=early,
            metrics=self.record.quality,
            best_step=self.memory.best_step,
            throughput=self.record.throughput.run(),
            seconds=self.record.clock.seconds,
            skipped=self.memory.skipped,
        )
        return self.record.end(report)

    def _load_best(self) -> None:
        best = self.checkpoints.best()
        if best is not None and best != self.optimizers.steps:
            self.checkpoints.read_manifest(best)
            self.engine.load(self.checkpoints, best)

    def _tell(self) -> None:
        self.record.tell({"train/epoch": float(self.position.epoch), "train/skipped": float(self.memory.skipped)})

    # -- saving and going on -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of now, unless there is one. Numbers so far are told first: it holds none in the making."""
        if self._saved == self.optimizers.steps:
            return
        self.engine.averaging.now(self.optimizers.steps)
        self._tell()
        self.record.tell_use()
        self.memory.seconds = dict(self.record.clock.seconds)
        with self.record.phase("save", "saving"):
            manifest = Manifest(
                step=self.optimizers.steps,
                world=self.ranks.world,
                model=structure(self.config),
                data="-".join(self._reads()),
                position=self.position.to_json(),
                progress=dict(vars(self.memory)),
                earlier=self.optimizers.earlier,
                numbering=self.engine.numbering.numbers,
            )
            path = self.checkpoints.save(self.engine.state(), manifest, self.memory.best_step)
        self._saved = manifest.step
        if self.ranks.first:
            logger.info("step %d: saved %s", manifest.step, path)

    def begin(self) -> None:
        """At the first step: with new weights, or with all that another run has learned (`train.start_from`).

        Raises:
            UserError: there is no such run, it has no checkpoint, or it is of another model or of ids numbered otherwise.
        """
        if self.config.train.start_from is None:
            return
        folder = Path(self.config.train.start_from)
        if not from_first(folder.is_dir):
            refuse(f"train.start_from: there is no folder {folder}; name a run's, which `distrec train` printed")
        checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, self.config.checkpoint.keep, self.ranks)
        manifest = chosen(checkpoints, self.config, named := f"{folder} (train.start_from)")
        require_same_numbering(self.engine, manifest, named)
        self.engine.load(checkpoints, manifest.step, to_train=False)
        self.optimizers.steps, self.optimizers.earlier = 0, manifest.earlier + manifest.step
        if self.ranks.first:
            logger.info("starting from %s, step %d", folder, manifest.step)

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint; returns whether there is one.

        Raises:
            UserError: it is of another model or of other data, or all are damaged.
        """
        manifest = self.checkpoints.newest()
        if manifest is None:
            return False
        require_same_model(manifest, self.config, self.folder)
        require_same_numbering(self.engine, manifest, self.folder)
        self._require_same_data(manifest)
        self.engine.load(self.checkpoints, manifest.step)
        self.position, self.memory = Position.from_json(manifest.position), Memory(**manifest.progress)
        self.record.clock.add(self.memory.seconds)
        self.record.quality |= {tag: math.nan if value is None else value for tag, value in self.memory.metrics.items()}
        self.checkpoints.mark_best(self.memory.best_step, self.memory.best_metrics)  # not one of a future that is undone
        self._saved, self.optimizers.earlier = manifest.step, manifest.earlier
        if self.ranks.first:
            logger.info("resuming after step %d, epoch %d", manifest.step, self.position.epoch + 1)
        return True

    def _reads(self) -> list[str]:
        """Short hashes of the log, and of a retriever's catalogue."""
        items = self.engine.items
        return [self.readers["train"].fingerprint, *([] if items is None else [items.catalogue.index.fingerprint])]

    def _require_same_data(self, manifest: Manifest) -> None:
        log, *catalogue = manifest.data.split("-")
        if log != self._reads()[0]:
            refuse(
                f"data.train is not what the checkpoint of step {manifest.step} was reading: its files, their rows, or the "
                "shuffling (data.shuffle, data.shuffle_window, train.seed) have changed, so rows would be read twice or "
                "never; restore them, or set another `folder`"
            )
        if catalogue != self._reads()[1:]:
            refuse(
                f"retrieval.items is not the catalogue of the checkpoint of step {manifest.step}: items were added, removed or "
                "moved, and it knows by their places how often they come up; restore it, or set another `folder`"
            )

    def _refuse(self, loss: Tensor, sound: Tensor) -> None:
        """Save what is whole, and say which rank saw what."""
        seen = of_all_ranks(None if sound else loss.item())
        where = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(seen) if value is not None)
        what = "the loss" if any(value is not None and not math.isfinite(value) for value in seen) else "a running statistic"
        done = self.optimizers.steps
        self.save()
        refuse(
            f"{what} of step {done + 1} is not a finite number (loss on {where}). Nothing was updated with it"
            + (f", and step {done} is saved" if done else "")
            + '. Look for extreme values in the data (transform = "log1p"), lower the learning rates, '
            'or leave such batches out (train.non_finite = "skip")'
        )
