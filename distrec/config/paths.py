"""A saved config's relative paths: they were typed where training began, and are read wherever the run is used."""

from __future__ import annotations

import copy
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

KEYS = (("data", "train"), ("data", "valid"), ("data", "test"), ("retrieval", "items"), ("embedding", "plan"))


def readable_from_here(values: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """The values of a run's config; where not all their relative paths lead somewhere from here, those that lead somewhere
    from the folder of training are taken from there.

    Which folder that was is told by where the run lies: a run `/srv/ads/runs/mine`, whose `folder` is `runs/mine`, was trained
    in `/srv/ads`, or all of it was moved there. Absolute paths and URLs stay as they are.

    Args:
        values: of the config, defaults included.
        run: the run's folder.
    """
    found = copy.deepcopy(dict(values))
    base = _trained_in(found, run)
    if base is None or all(_leads_somewhere(path) for path in _relative(found)):
        return found
    _change(found, lambda path: str(base / path) if _is_relative(path) and _leads_somewhere(base / path) else path)
    return found


def _trained_in(values: Mapping[str, Any], run: Path) -> Path | None:
    """None where the run lies in another folder than its config says, so that this one tells nothing."""
    folder = Path(os.path.normpath(str(values.get("folder") or f"runs/{values.get('name')}")))
    for place in (run.absolute(), run.resolve()):
        if not folder.is_absolute() and place.parts[-len(folder.parts) :] == folder.parts:
            return Path(*place.parts[: -len(folder.parts)])
    return None


def _relative(values: dict[str, Any]) -> Iterator[str]:
    seen: list[str] = []
    _change(values, lambda path: seen.append(path) or path)
    return filter(_is_relative, seen)


def _change(values: dict[str, Any], change: Callable[[str], str]) -> None:
    """What is no path is left for the schema to refuse."""
    for section, key in KEYS:
        inner = values.get(section)
        if not isinstance(inner, dict):
            continue
        if isinstance(named := inner.get(key), list):
            inner[key] = [change(path) if isinstance(path, str) else path for path in named]
        elif isinstance(named, str):
            inner[key] = change(named)


def _is_relative(path: str) -> bool:
    return "://" not in path and not Path(path).is_absolute()


def _leads_somewhere(path: str | Path) -> bool:
    """What may not be seen is not there: whoever reads it says why."""
    return os.path.exists(path) or any(glob.iglob(str(path), recursive=True))  # noqa: PTH110, PTH207
