"""Which files to train on and which to hold out, so that no row of the future is trained on without a word."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Literal

from distrec.profile.footers import Bound, Survey, ranges

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
NAMES: dict[str, Split] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
NAMES |= dict.fromkeys(("valid", "validation", "val", "dev", "eval"), "valid")
HELD_OUT = 0.1  # of the rows, at least, where files are held out


@dataclass(frozen=True)
class Splits:
    """File indices by split, how a config names them, and what is to be said about it."""

    files: Mapping[Split, tuple[int, ...]]
    paths: Mapping[Split, tuple[str, ...]]
    reason: str
    warning: str = ""


def split_files(survey: Survey, given: Sequence[str], time: str | None) -> Splits:
    """By the names of folders or files, else by time, else the last files; and nothing held out where that could leak."""
    spans = _spans(survey, time)
    named = _by_name(survey, given, spans)
    if named is not None:
        return named
    if len(survey.files) == 1:
        return _all(survey, given, "one file: nothing is held out. Write the rows to evaluate on into a file of their own")
    if time is None:
        return _last_files(survey, given)
    return _by_time(survey, given, time, spans)


def written(path: str, given: Sequence[str]) -> str:
    """A file's path as a config should name it: with its protocol, and relative where the user's own path was."""
    remote = next((g for g in given if "://" in g), None)
    if remote is not None:
        return path if "://" in path else remote.split("://")[0] + "://" + path
    if any(not PurePosixPath(g).is_absolute() for g in given):
        return os.path.relpath(path)
    return path


def _spans(survey: Survey, time: str | None) -> list[tuple[Bound, Bound] | None]:
    return ranges(survey, time) if time is not None else [None] * len(survey.files)


def _by_name(survey: Survey, given: Sequence[str], spans: Sequence[tuple[Bound, Bound] | None]) -> Splits | None:
    paths = [PurePosixPath(file.path) for file in survey.files]
    root = os.path.commonpath([path.parent for path in paths])
    found = [_split_of(path.relative_to(root)) for path in paths]
    if None in found or "train" not in found or len(set(found)) == 1:
        return None
    files: dict[Split, tuple[int, ...]] = {}
    for split in SPLITS:
        chosen = tuple(i for i, name in enumerate(found) if name == split and sum(survey.files[i].rows))
        if chosen:
            files[split] = chosen
    if "train" not in files:
        return None
    paths_of: dict[Split, tuple[str, ...]] = {split: _compact(survey, chosen, given) for split, chosen in files.items()}
    return Splits(files, paths_of, "by the names of folders and files", overlap(files, spans))


def _split_of(path: PurePosixPath) -> Split | None:
    for part in path.parts:
        first = re.split(r"[^a-z]+", part.lower())[0]
        if first in NAMES:
            return NAMES[first]
    return None


def _compact(survey: Survey, chosen: Sequence[int], given: Sequence[str]) -> tuple[str, ...]:
    """The one folder that holds these files and no other that was found, else the files."""
    folder = os.path.commonpath([PurePosixPath(survey.files[i].path).parent for i in chosen])
    inside = [i for i, file in enumerate(survey.files) if PurePosixPath(file.path).is_relative_to(folder)]
    searched = any("*" not in g and "?" not in g and "[" not in g and not g.endswith(".parquet") for g in given)
    whole = searched and inside == list(chosen)
    return (written(folder, given),) if whole else tuple(written(survey.files[i].path, given) for i in chosen)


def overlap(files: Mapping[Split, Sequence[int]], spans: Sequence[tuple[Bound, Bound] | None]) -> str:
    """What is wrong with the order of the splits in time; empty when nothing is, or nothing is known."""
    last = max((spans[i][1] for i in files["train"] if spans[i]), default=None)  # type: ignore[index]
    for split in ("valid", "test"):
        first = min((spans[i][0] for i in files.get(split, ()) if spans[i]), default=None)  # type: ignore[index]
        if last is not None and first is not None and first < last:
            return f"{split} begins before train ends: what is learned of later rows is tested on earlier ones"
    return ""


def _all(survey: Survey, given: Sequence[str], reason: str, warning: str = "") -> Splits:
    return Splits({"train": tuple(range(len(survey.files)))}, {"train": tuple(given)}, reason, warning)


def _last_files(survey: Survey, given: Sequence[str]) -> Splits:
    reason = "no column says when, so the last files are held out: fair only if the files are a random or a timely cut"
    return _hold_out(survey, given, [i for i, f in enumerate(survey.files) if sum(f.rows)], reason)


def _by_time(survey: Survey, given: Sequence[str], time: str, spans: Sequence[tuple[Bound, Bound] | None]) -> Splits:
    filled = [i for i, file in enumerate(survey.files) if sum(file.rows)]
    if any(spans[i] is None for i in filled):
        why = f"the footers do not say which times of {time!r} a file holds"
        return _all(survey, given, f"nothing is held out: {why}. Name files of later rows in valid", why)
    order = sorted(filled, key=lambda i: spans[i])  # type: ignore[arg-type,return-value]
    if any(spans[a][1] > spans[b][0] for a, b in pairwise(order)):  # type: ignore[index]
        why = f"files overlap in {time!r}, so a file held out would be scored by a model that saw later rows"
        return _all(survey, given, f"nothing is held out: {why}. Write files by time, and name the last in valid", why)
    return _hold_out(survey, given, order, f"by {time}: every row in valid is as late as any in train, or later")


def _hold_out(survey: Survey, given: Sequence[str], order: Sequence[int], reason: str) -> Splits:
    """The last of `order`, until they hold enough rows."""
    rows = [sum(survey.files[i].rows) for i in order]
    if len(order) == 1:
        return _all(survey, given, "one file with rows: nothing is held out. Write the rows to evaluate on into another")
    kept = len(order) - 1
    while kept > 1 and sum(rows[kept:]) < HELD_OUT * sum(rows):
        kept -= 1
    files: dict[Split, tuple[int, ...]] = {"train": tuple(order[:kept]), "valid": tuple(order[kept:])}
    paths: dict[Split, tuple[str, ...]] = {
        split: tuple(written(survey.files[i].path, given) for i in chosen) for split, chosen in files.items()
    }
    share = sum(rows[kept:]) / sum(rows)
    return replace(Splits(files, paths, f"{reason}. {len(order) - kept} of {len(order)} files, {share:.0%} of the rows"))
