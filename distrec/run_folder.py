"""The folder of a run: who may write into it, and what it holds beside checkpoints and metrics."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from distrec.config.load import dump, parse
from distrec.config.paths import readable_from_here
from distrec.config.schema import Config
from distrec.errors import UserError
from distrec.json_out import to_json

CONFIG = "config.json"  # who creates it has claimed the folder
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
LOCK = ".lock"
_claimed: set[Path] = set()  # by this process; what another one has claimed is not ours to give back


def claim(config: Config, resume: str | None) -> Path:
    """Make the run folder, or enter one to go on.

    Args:
        config: names the folder.
        resume: None for a new run; `newest` to go on; `auto` to go on if there is something to go on from.

    Raises:
        UserError: a new run into a folder that holds one, or `newest` where there is none.
    """
    folder = Path(config.run_folder)
    if resume == "newest" and not (folder / CONFIG).exists():
        raise UserError(f"there is no run in {folder} to resume; start it without --resume")
    if resume is None or not (folder / CONFIG).exists():
        _create(folder, config)
    return folder


def _create(folder: Path, config: Config) -> None:
    """Of all that try at once, one succeeds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (folder / CONFIG).touch(exist_ok=False)
            _claimed.add(folder)
            return write_config(folder, config)
    except OSError as error:
        raise _unwritable(folder, error) from None
    raise UserError(
        f"{folder} holds a run already; go on with it (--resume newest), name another folder (folder=runs/NAME), or remove it"
    )


def write_config(folder: Path, config: Config) -> None:
    """Keep the config that the run goes on with.

    Raises:
        UserError: the folder cannot be written.
    """
    _replace(folder, CONFIG, dump(config))


def _replace(folder: Path, name: str, text: str) -> None:
    """All of it, or what was there before, also when the process is killed."""
    part = folder / f".{name}.{os.getpid()}"
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"the run folder {folder} cannot be written: {error.strerror}; set `folder`")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else trains in the folder meanwhile: two would remove each other's checkpoints. Every rank must enter it.

    The kernel lets go of it however the process ends. Where a filesystem keeps no locks, nothing is held.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    from distrec.dist import from_first  # here, because it brings torch, which other uses of this module do not

    with ExitStack() as stack:
        from_first(lambda: _hold(folder, stack))
        yield


def _hold(folder: Path, stack: ExitStack) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((folder / LOCK).open("a+", encoding="utf-8"))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a filesystem without locks
        file.seek(0)
        raise UserError(
            f"another process is training in {folder} ({file.read().strip() or 'it does not say which'}): the two would remove "
            "each other's checkpoints; wait for its end, stop it, or name another folder (folder=runs/NAME)"
        ) from None
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
    file.flush()


@contextmanager
def given_back_if_unused(folder: Path) -> Iterator[None]:
    """When the run within fails before it has anything to keep, take back its claim: the mended run starts without ado."""
    _claimed.discard(folder)
    try:
        yield
    except BaseException:
        if folder in _claimed and not _has_results(folder):
            (folder / CONFIG).unlink(missing_ok=True)
        raise


def _has_results(folder: Path) -> bool:
    from distrec.metrics.writer import JSON_LINES  # here, because it brings torch, which other uses of this module do not

    numbers = folder / JSON_LINES
    return any((folder / CHECKPOINTS).glob("step-*")) or (numbers.exists() and numbers.stat().st_size > 0)


def saved_config(folder: Path, overrides: list[str]) -> Config:
    """The config that a run was trained with, its paths as `readable_from_here` gives them, with overrides on top."""
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} is no run folder: it has no {CONFIG}; name the folder that `distrec train` printed")
    try:
        values = readable_from_here(dict(json.loads(path.read_text(encoding="utf-8"))), folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return parse(values, overrides, source=str(path))


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Final numbers, for scripts.

    Raises:
        UserError: the folder cannot be written.
    """
    _replace(folder, SUMMARY, to_json(summary, indent=2, default=str))
