"""Checkpoints that are whole or are not there: sharded files in a new directory, and a manifest with checksums written last."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from distrec.dist import Ranks, from_first, of_all_ranks, refuse, together
from distrec.errors import UserError
from distrec.log import logger
from distrec.seal import checksum, crc32_of, replace_json, replace_signed

MANIFEST = "manifest.json"
BEST = "best.json"
FORMAT = 1
ABSENT = "absent"


class LoadPlanner(DefaultLoadPlanner):
    """Reads checkpoints by the names that they were written with.

    Torch's own takes a table of which this rank holds no part for the sign of a checkpoint older than torch 2.4, in which an
    empty dict, such as that of the dense optimizer of a model without dense parameters, would have an entry.
    """

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads."""
        assert self.metadata is not None
        return create_default_local_load_plan(self.state_dict, self.metadata, not self.allow_partial_load)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of, and what its files must be."""

    step: int
    world: int
    model: dict  # distrec.config.load.structure of the run's config
    data: str  # fingerprints of the reader and of a retriever's catalogue
    position: dict  # Position.to_json
    progress: dict  # what the loop remembers: best metric, evaluations without a better one
    earlier: int = 0  # steps of the runs that this one started from
    numbering: dict[str, str] = field(default_factory=dict)  # distrec.data.numbering of what was read
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> bytes, crc32
    format: int = FORMAT


class Checkpoints:
    """The checkpoints of a run: `folder/step-000000100/…`. All methods but `steps` are called by every rank together."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks):
        """Keep the newest `keep` ones, and the best."""
        self.folder, self._keep, self._ranks = folder, keep, ranks

    def steps(self) -> list[int]:
        """Steps that have a manifest, oldest first."""
        return saved_steps(self.folder)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return path_of(self.folder, step)

    def save(self, state: dict[str, Any], manifest: Manifest, best: int | None = None) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Raises:
            UserError: it could not be written, on a full disk say; what was written of it is gone and older ones stand.
        """
        target = self.path(manifest.step)
        from_first(lambda: _clear(target))
        try:
            save_shards(state, storage_writer=FileSystemWriter(target, single_file_per_rank=True, sync_files=True))
        except (CheckpointException, OSError) as error:
            from_first(partial(self._give_up, manifest.step, error))
        files = self._checksums(target)
        from_first(lambda: self._finish(replace(manifest, files=files)))
        from_first(lambda: self._prune(manifest.step, best))
        return target

    def amend(self, step: int, progress: dict) -> None:
        """Give the checkpoint of a step what the loop has learned since it was saved: how its evaluation went."""
        from_first(lambda: _write_manifest(self.path(step), replace(manifest_of(self.path(step)), progress=progress)))

    def newest(self) -> Manifest | None:
        """The newest checkpoint whose files are all as its manifest says; damaged ones are passed over with a warning.

        Raises:
            UserError: there are checkpoints and all are damaged.
        """
        steps, damage = from_first(self.steps), []
        for step in reversed(steps):
            try:
                return self.read_manifest(step)
            except UserError as error:
                damage.append(str(error))
                if self._ranks.first:
                    logger.warning("passing over a damaged checkpoint: %s", error)
        if steps:
            refuse(f"no checkpoint in {self.folder} is whole; remove that folder to start over. {damage[0]}")
        return None

    def read_manifest(self, step: int) -> Manifest:
        """The manifest of a step, after every file was checked against it.

        Raises:
            UserError: no manifest, of another format, or a file that is missing or damaged, by name.
        """
        manifest = from_first(lambda: manifest_of(self.path(step)))
        together(lambda: self._verify(self.path(step), manifest))
        return manifest

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill the tensors of `state` in place, from any number of ranks and any plan."""
        reader = FileSystemReader(self.path(step))
        try:
            load_shards(state, storage_reader=reader, planner=LoadPlanner())
        except CheckpointException as error:
            refuse(f"checkpoint {self.path(step)} does not fit this run: {_cause(error)}")

    def has(self, step: int, key: str) -> bool:
        """Whether the checkpoint holds an entry under a dotted key."""
        return key in FileSystemReader(self.path(step)).read_metadata().state_dict_metadata

    def mark_best(self, step: int | None, metrics: Mapping[str, float]) -> None:
        """Remember which checkpoint is the best one; None: none is."""
        from_first(lambda: replace_json(self.folder / BEST, {"step": step, "metrics": metrics}))

    def best(self) -> int | None:
        """The step that `mark_best` named last, if its checkpoint stands."""
        return from_first(lambda: best_step(self.folder))

    def _checksums(self, target: Path) -> dict[str, tuple[int, int]]:
        """Each rank reads the files that it wrote; rank 0 the metadata too."""
        mine = {path.name: checksum(path) for path in self._own_files(target)}
        return {name: value for part in of_all_ranks(mine) for name, value in sorted(part.items())}

    def _own_files(self, target: Path) -> Iterator[Path]:
        yield from target.glob(f"__{self._ranks.rank}_*")
        if self._ranks.first:
            yield target / ".metadata"

    def _verify(self, target: Path, manifest: Manifest) -> None:
        mine = [name for name in sorted(manifest.files) if _writer(name) % self._ranks.world == self._ranks.rank]
        for name in mine:
            path = target / name
            try:
                found = checksum(path)
            except OSError as error:
                raise UserError(f"checkpoint file {path} cannot be read: {error.strerror}") from None
            if found != tuple(manifest.files[name]):
                raise UserError(f"checkpoint file {path} is damaged: its size or crc32 is not what the manifest says")

    def _finish(self, manifest: Manifest) -> None:
        try:
            _write_manifest(self.path(manifest.step), manifest)
        except UserError as error:
            self._give_up(manifest.step, error)

    def _give_up(self, step: int, error: BaseException) -> NoReturn:
        # Before there is room again, and said because torch's writer hides what the system told it.
        free = shutil.disk_usage(self.folder).free / 2**20
        shutil.rmtree(self.path(step), ignore_errors=True)
        left = self.steps()
        stands = f"the checkpoint of step {left[-1]} stands" if left else "there is no older one"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {self.folder}, where {free:,.0f} MiB were free: "
            f"{_cause(error)}; {stands}. Make room, then go on with --resume newest"
        ) from None

    def _prune(self, newest: int, best: int | None) -> None:
        """Later ones than the newest are damaged, or of a future that will be trained anew: they take no one's place."""
        for step in [step for step in self.steps() if step <= newest][: -self._keep]:
            if step != best:
                _remove(self.path(step))


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that have a manifest, oldest first."""
    names = (path.parent.name for path in folder.glob(f"step-*/{MANIFEST}"))
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name)))


def path_of(folder: Path, step: int) -> Path:
    """Where in the folder the checkpoint of a step is, or would be."""
    return folder / f"step-{step:09d}"


def best_step(folder: Path) -> int | None:
    """The step that `Checkpoints.mark_best` named last, if its checkpoint stands."""
    try:
        step = json.loads((folder / BEST).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if step in saved_steps(folder) else None


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two configs part, each as `tables.user.dim (8, now 16)`."""
    before, after = dict(_flat(saved)), dict(_flat(now))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key, ABSENT) != after.get(key, ABSENT))
    return [f"{key} ({before.get(key, ABSENT)}, now {after.get(key, ABSENT)})" for key in keys]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; items of a list by their name where they have one."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = {item["name"]: item for item in value}
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{prefix}.{key}" if prefix else key)


def _writer(name: str) -> int:
    """The rank that wrote a file. On as many ranks it also reads it, which then comes from the memory of the same machine."""
    found = re.match(r"__(\d+)_", name)
    return int(found[1]) if found else 0


def _clear(target: Path) -> None:
    """An empty place for a new checkpoint: what a killed run left there is none, and one of the same step is redone."""
    try:
        if target.exists():
            _remove(target)
        target.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write checkpoints to {target}: {error.strerror}; set `folder` to where you can") from None


def _remove(target: Path) -> None:
    (target / MANIFEST).unlink(missing_ok=True)  # first: a kill in between then leaves no checkpoint, not half of one
    shutil.rmtree(target)


def _write_manifest(target: Path, manifest: Manifest) -> None:
    replace_signed(target / MANIFEST, asdict(manifest))


def manifest_of(target: Path) -> Manifest:
    """The manifest of the checkpoint in a folder; its files are not looked at.

    Raises:
        UserError: there is none, it is damaged, or of another format.
    """
    path = target / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise UserError(f"{path} has format {values.get('format')}; this distrec reads format {FORMAT}")
        if values.pop("crc32", None) != crc32_of(values):
            raise UserError(f"{path} is damaged: its crc32 is not that of what it says")
        return Manifest(**values)
    except FileNotFoundError:
        raise UserError(f"{target} is not a checkpoint: it has no {MANIFEST}, which is written last") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line; of several ranks, the first's."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, failure = sorted(error.failures.items())[0]
        return f"rank {rank}: {_cause(failure[0])}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
