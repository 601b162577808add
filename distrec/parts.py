"""A folder that all ranks fill, each with its own parts: it appears whole at the end or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distrec.dist import Ranks, from_first, of_all_ranks, together
from distrec.errors import UserError
from distrec.seal import checksum, refuse_to_replace, replacing, seal


@contextmanager
def filled_by_all(target: Path, kind: str, ranks: Ranks) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield an empty folder beside `target` and a dict for what its manifest says; every rank must enter.

    When the block ends well, the folder is sealed as of a `kind`, with the checksums of all that lies in it, and takes the
    target's name; else it is removed, where a process was killed by whoever fills the target next. Of two that fill at once
    the last one stays.

    Raises:
        UserError: the target holds something else, or cannot be written.
    """
    facts = dict[str, Any]()
    with ExitStack() as stack:
        folder = from_first(lambda: _begin(target, kind, stack))
        try:
            yield folder, facts
            files = _checksums(folder, ranks)
            from_first(lambda: _finish(folder, target, kind, facts, files, stack))
        except OSError as error:  # a full disk, say, on this rank
            raise _cannot_write(target, error) from None


def _begin(target: Path, kind: str, stack: ExitStack) -> Path:
    refuse_to_replace(target, kind)
    try:
        return stack.enter_context(replacing(target.resolve()))  # where a link leads; and "." has no name
    except OSError as error:
        raise _cannot_write(target, error) from None


def _checksums(folder: Path, ranks: Ranks) -> dict[str, tuple[int, int]]:
    """Of all files, each read by one rank."""
    dist.barrier()
    names = from_first(lambda: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    own = together(lambda: {name: checksum(folder / name) for name in names[ranks.rank :: ranks.world]})
    return {name: value for part in of_all_ranks(own) for name, value in part.items()}


def _finish(
    folder: Path, target: Path, kind: str, facts: dict[str, Any], files: dict[str, tuple[int, int]], stack: ExitStack
) -> None:
    seal(folder, kind, facts, files)
    try:
        stack.close()
    except OSError as error:
        raise _cannot_write(target, error) from None


def _cannot_write(target: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {target}: {error.strerror or error}; name another folder with --out")
