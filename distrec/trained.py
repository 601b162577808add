"""A trained model, taken from its run folder, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from distrec import run_folder
from distrec.checkpoint import Checkpoints, Manifest, differences
from distrec.config.load import structure
from distrec.config.schema import Config
from distrec.data import Reader
from distrec.data.catalogue import CatalogueReader
from distrec.dist import Ranks, from_first, refuse, together
from distrec.engine import Engine, open_reader
from distrec.errors import UserError
from distrec.evaluate import Evaluation
from distrec.pipeline import make_pipeline, outputs
from distrec.task import Outputs


def score(config: Config, ranks: Ranks, folder: Path, split: str, step: int | None) -> tuple[int, Evaluation]:
    """Metrics of a run's checkpoint over a split; and which checkpoint (see `restored`).

    Raises:
        UserError: the config names no such rows, there is no such checkpoint, or it is of another model.
    """
    if not getattr(config.data, split):
        raise UserError(
            f"the run in {folder} has no data.{split}; "
            f"name the rows: distrec evaluate {folder} data.{split}=PATH --split {split}"
        )
    engine, manifest = restored(config, ranks, folder, step)
    return manifest.step, engine.evaluate(open_reader(engine, split), scoring(engine))


def restored(config: Config, ranks: Ranks, folder: Path, step: int | None) -> tuple[Engine, Manifest]:
    """A run's model at a checkpoint: the one asked for, else the best, else the newest. Its tables are there once.

    Raises:
        UserError: there is no such checkpoint, or it is of another model.
    """
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, config.checkpoint.keep, ranks)
    manifest = chosen(checkpoints, config, folder, step)
    engine = Engine.build(_without_copies(config), ranks)
    require_same_numbering(engine, manifest, folder)
    engine.load(checkpoints, manifest.step, to_train=False)
    return engine, manifest


def chosen(checkpoints: Checkpoints, config: Config, folder: Path | str, step: int | None = None) -> Manifest:
    """Of a run's checkpoints the one asked for, else the best, else the newest; `folder` is what messages call it.

    Every rank must call it.

    Raises:
        UserError: there is no such checkpoint, or it is of another model.
    """
    if step is not None and step not in (steps := from_first(checkpoints.steps)):
        refuse(f"{folder} has no checkpoint of step {step}; it has: {', '.join(map(str, steps)) or 'none'}")
    wanted = step if step is not None else checkpoints.best()
    manifest = checkpoints.newest() if wanted is None else checkpoints.read_manifest(wanted)
    if manifest is None:
        refuse(f"{folder} has no checkpoint yet")
    require_same_model(manifest, config, folder)
    return manifest


def _without_copies(config: Config) -> Config:
    """Copies of the tables are for training; a plan beside them is that of one copy's ranks."""
    if config.embedding.replicas == 1:
        return config
    once = config.embedding.model_copy(update={"replicas": 1, "sync_every": 1, "plan": None})
    return config.model_copy(update={"embedding": once})


def scoring(engine: Engine) -> Callable[[Reader | CatalogueReader], Iterator[Outputs]]:
    """What gives a model's outputs for a reader's batches, outside of training."""
    return partial(outputs, make_pipeline(engine), engine)


def require_same_model(manifest: Manifest, config: Config, folder: Path | str) -> None:
    """Every rank must call it.

    Raises:
        UserError: a checkpoint's tensors are of other tables, features, tasks or optimizers than the config's.
    """
    if differing := differences(manifest.model, structure(config)):
        named = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        refuse(
            f"the checkpoint of step {manifest.step} in {folder} was trained with another config; what differs: {named}. "
            "Set that back, or train anew (another `folder`, no `train.start_from`)"
        )


def require_same_numbering(engine: Engine, manifest: Manifest, folder: Path | str) -> None:
    """Every rank must call it.

    Raises:
        UserError: what is read is numbered otherwise than what a checkpoint was trained on.
    """
    where = f"the checkpoint of step {manifest.step} in {folder}"
    together(lambda: engine.numbering.require(manifest.numbering, where))
