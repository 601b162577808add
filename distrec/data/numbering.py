"""What ids stand for: `distrec prepare` numbers users, items or categories, and all that a run reads must be numbered alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from distrec.data.files import READS_AT_ONCE, Source
from distrec.errors import UserError
from distrec.prepare.description import FILE

Numbers = dict[str, str]  # the column that has the ids, which others may share -> a hash of what they stand for, in order


def descriptions(sources: Iterable[Source]) -> dict[str, dict[str, Any]]:
    """What `distrec prepare` says of files that it wrote, by the folder in which their splits lie; of others nothing."""
    folders = {source.path.rsplit("/", 2)[0]: source for source in sources}
    with ThreadPoolExecutor(min(READS_AT_ONCE, len(folders) or 1)) as pool:
        found = zip(folders, pool.map(_description, folders, folders.values()), strict=True)
        return {folder: facts for folder, facts in found if isinstance(facts, dict)}


def _description(folder: str, source: Source) -> Any:
    with suppress(OSError, ValueError, UserError), source.filesystem.open_input_file(f"{folder}/{FILE}") as file:
        return json.loads(file.read())


def numbers_of(description: Mapping[str, Any], columns: Iterable[str]) -> Numbers:
    """How the ids in these columns are numbered; of columns whose ids were taken as they are, nothing."""
    said: Mapping[str, str] = description.get("numbering", {})
    entries = [entry for part in ("columns", "query_columns", "item_columns") for entry in description.get(part, ())]
    shares = {entry["name"]: entry.get("shares", entry["name"]) for entry in entries} if said else {}
    return {shares[column]: said[shares[column]] for column in columns if shares.get(column) in said}


class Numbering:
    """How ids are numbered in all that a run has read so far."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}  # column -> hash, and who said it first

    @property
    def numbers(self) -> Numbers:
        """All that is known."""
        return {column: said for column, (said, _) in self._known.items()}

    def require(self, found: Mapping[str, str], where: str) -> None:
        """Take what is `found` somewhere.

        Raises:
            UserError: it is not what was found elsewhere.
        """
        for column, said in found.items():
            known, first = self._known.setdefault(column, (said, where))
            if said != known:
                raise UserError(
                    f"{where} does not go with {first}: a number in {column!r} stands for one thing here and for another "
                    "there, for `distrec prepare` numbers anew when its log or its items change. Name files of one `distrec "
                    "prepare` (data.train, data.valid, data.test, retrieval.items), for a run that is trained those of its "
                    "training, or train anew"
                )
