"""Checkpoints that are whole or are not there: sharded files in a new directory, and a manifest with checksums written last."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from distrec.dist import Ranks, from_first, together
from distrec.errors import UserError
from distrec.log import logger

MANIFEST = "manifest.json"
FORMAT = 1
CHUNK = 2**24


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of, and what its files must be."""

    step: int
    world: int
    model: str  # distrec.config.load.fingerprint of the run's config
    data: str  # Reader.fingerprint
    position: dict  # Position.to_json
    progress: dict  # what the loop remembers: best metric, evaluations without a better one
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> bytes, crc32
    format: int = FORMAT


class Checkpoints:
    """The checkpoints of a run: `folder/step-000000100/…`. All methods but `steps` are called by every rank together."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks):
        """Keep the newest `keep` ones, and the best."""
        self.folder, self._keep, self._ranks = folder, keep, ranks

    def steps(self) -> list[int]:
        """Steps that have a manifest, oldest first."""
        found = self.folder.glob(f"step-*/{MANIFEST}")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:09d}"

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
            from_first(lambda: shutil.rmtree(target, ignore_errors=True))
            raise UserError(self._not_saved(manifest.step, error)) from None
        files = self._checksums(target)
        from_first(lambda: _write_manifest(target, Manifest(**{**asdict(manifest), "files": files})))
        from_first(lambda: self._prune(best))
        return target

    def newest(self) -> int | None:
        """The newest step whose files are all as its manifest says; damaged ones are passed over with a warning."""
        for step in reversed(from_first(self.steps)):
            try:
                self.read_manifest(step)
            except UserError as error:
                if self._ranks.first:
                    logger.warning("passing over a damaged checkpoint: %s", error)
            else:
                return step
        return None

    def read_manifest(self, step: int) -> Manifest:
        """The manifest of a step, after every file was checked against it.

        Raises:
            UserError: no manifest, of another format, or a file that is missing or damaged, by name.
        """
        manifest = from_first(lambda: _read_manifest(self.path(step)))
        together(lambda: self._verify(self.path(step), manifest))
        return manifest

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill the tensors of `state` in place, from any number of ranks and any plan."""
        reader = FileSystemReader(self.path(step))
        try:
            load_shards(state, storage_reader=reader)
        except CheckpointException as error:
            raise UserError(f"checkpoint {self.path(step)} does not fit this run: {_cause(error)}") from None

    def has(self, step: int, key: str) -> bool:
        """Whether the checkpoint holds an entry under a dotted key."""
        return key in FileSystemReader(self.path(step)).read_metadata().state_dict_metadata

    def mark_best(self, step: int, metrics: dict[str, float]) -> None:
        """Remember which checkpoint is the best one."""
        from_first(lambda: _replace(self.folder / "best.json", {"step": step, "metrics": metrics}))

    def best(self) -> int | None:
        """The step that `mark_best` named last, if its checkpoint stands."""
        return from_first(lambda: _read_best(self.folder, self.steps()))

    def _checksums(self, target: Path) -> dict[str, tuple[int, int]]:
        """Each rank reads the files that it wrote; rank 0 the metadata too."""
        mine = {path.name: _checksum(path) for path in self._own_files(target)}
        everyone: list[Any] = [None] * self._ranks.world
        dist.all_gather_object(everyone, mine)
        return {name: value for part in everyone for name, value in sorted(part.items())}

    def _own_files(self, target: Path) -> Iterator[Path]:
        yield from target.glob(f"__{self._ranks.rank}_*")
        if self._ranks.first:
            yield target / ".metadata"

    def _verify(self, target: Path, manifest: Manifest) -> None:
        for name in sorted(manifest.files)[self._ranks.rank :: self._ranks.world]:
            path = target / name
            if not path.exists():
                raise UserError(f"checkpoint file {path} is missing")
            if _checksum(path) != tuple(manifest.files[name]):
                raise UserError(f"checkpoint file {path} is damaged: its size or crc32 is not what the manifest says")

    def _not_saved(self, step: int, error: BaseException) -> str:
        left = self.steps()
        stands = f"the checkpoint of step {left[-1]} stands" if left else "there is no older one"
        return (
            f"the checkpoint of step {step} could not be written to {self.folder}: {_cause(error)}; {stands}. "
            "Make room, then go on with --resume"
        )

    def _prune(self, best: int | None) -> None:
        for step in self.steps()[: -self._keep]:
            if step != best:
                _remove(self.path(step))


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
    try:
        _replace(target / MANIFEST, asdict(manifest))
    except OSError as error:
        raise UserError(f"cannot write {target / MANIFEST}: {error.strerror}") from None


def _replace(path: Path, value: dict) -> None:
    """Write JSON so that the path holds all of it or what it held before, through a power cut too."""
    part = path.with_suffix(".tmp")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _read_manifest(target: Path) -> Manifest:
    path = target / MANIFEST
    if not path.exists():
        raise UserError(f"{target} is not a checkpoint: it has no {MANIFEST}, which is written last")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise UserError(f"{path} has format {values.get('format')}; this distrec reads format {FORMAT}")
        return Manifest(**values)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _read_best(folder: Path, steps: list[int]) -> int | None:
    try:
        step = json.loads((folder / "best.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError):
        return None
    return step if step in steps else None


def _checksum(path: Path) -> tuple[int, int]:
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return size, crc


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, failure = sorted(error.failures.items())[0]
        return f"rank {rank}: {str(failure[0]).splitlines()[0]}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
