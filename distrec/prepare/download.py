"""Fetches a file over HTTP: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.request import urlopen

from distrec.errors import UserError
from distrec.prepare.output import Progress, no_progress
from distrec.seal import beside

CHUNK = 1 << 16  # bytes
TIMEOUT_S = 60  # without a byte


def download(url: str, target: Path, progress: Progress = no_progress) -> None:
    """Fetch `url` into `target`, which appears only when every byte that the server announced is there.

    Args:
        url: http or https.
        target: file to make; its folder is made too.
        progress: called with (bytes so far, bytes in all; 0 when the server does not say).

    Raises:
        UserError: the server cannot be reached, refuses, or stops early, or `target` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _partial(target) as partial, urlopen(url, timeout=TIMEOUT_S) as response:
            _copy(response, partial, progress)
            partial.replace(target)
    except (OSError, HTTPException) as error:  # URLError, HTTPError and timeouts are OSErrors
        raise UserError(
            f"cannot download {url} to {target}: {error}; fetch it by other means and name it with --source"
        ) from error


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    partial = beside(target)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _copy(response: HTTPResponse, path: Path, progress: Progress) -> None:
    total, done = int(response.headers.get("Content-Length") or 0), 0
    with path.open("wb") as file:
        while chunk := response.read(CHUNK):
            done += file.write(chunk)
            progress(done, total)
    if total and done != total:  # a read of a given size ends early without an error of its own
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
