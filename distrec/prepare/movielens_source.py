"""The MovieLens editions, and their raw files from a zip, a folder or the publisher."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from distrec.errors import UserError
from distrec.prepare.download import download
from distrec.prepare.output import Progress
from distrec.prepare.published import files_in

PUBLISHER = "https://files.grouplens.org/datasets/movielens"


@dataclass(frozen=True)
class Edition:
    """One release of MovieLens, as GroupLens publishes it."""

    name: str
    url: str
    ratings: str  # name of the ratings file
    sha256: str  # of the ratings file
    users: str
    movies: str
    occupations: str | None = None  # names of occupations, one a line, where users have names for them


EDITIONS: dict[str, Edition] = {
    "movielens-1m": Edition(
        name="movielens-1m",
        url=f"{PUBLISHER}/ml-1m.zip",
        ratings="ratings.dat",
        sha256="506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f",
        users="users.dat",
        movies="movies.dat",
    ),
    "movielens-100k": Edition(
        name="movielens-100k",
        url=f"{PUBLISHER}/ml-100k.zip",
        ratings="u.data",
        sha256="06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
        users="u.user",
        movies="u.item",
        occupations="u.occupation",
    ),
}


def raw_files(edition: Edition, source: Path, fetched: bool = False) -> dict[str, bytes]:
    """The edition's files by name, the ratings verified.

    Args:
        edition: which files, and the ratings' checksum.
        source: the publisher's zip, or a folder that it was extracted into.
        fetched: `source` was downloaded, so that the fix for a bad one is to download again.

    Raises:
        UserError: no such source, not a zip, a file missing from it, or ratings other than the published ones.
    """
    names = [name for name in (edition.ratings, edition.users, edition.movies, edition.occupations) if name]
    try:
        files = files_in(source, names)
    except FileNotFoundError:
        raise UserError(
            f"no MovieLens source at {source}; name the zip from {edition.url}, or a folder with its files"
        ) from None
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{source} cannot be read: {error}; {_remedy(edition, source, fetched)}") from error
    _verify(edition, files[edition.ratings], source, fetched)
    return files


def fetch(edition: Edition, folder: Path, progress: Progress) -> Path:
    """The publisher's zip in `folder`, downloaded unless an earlier call left it there."""
    target = folder / edition.url.rpartition("/")[2]
    if not target.exists():
        download(edition.url, target, progress)
    return target


def source_facts(edition: Edition) -> dict:
    """What `dataset.json` says of the source."""
    return {"source": {"url": edition.url, "file": edition.ratings, "sha256": edition.sha256}}


def _verify(edition: Edition, ratings: bytes, source: Path, fetched: bool) -> None:
    found = hashlib.sha256(ratings).hexdigest()
    if found != edition.sha256:
        raise UserError(
            f"{edition.ratings} in {source} is not {edition.name}'s: expected sha256 {edition.sha256}, found {found}; "
            + _remedy(edition, source, fetched)
        )


def _remedy(edition: Edition, source: Path, fetched: bool) -> str:
    return f"delete {source} and run again" if fetched else f"download it anew from {edition.url}"
