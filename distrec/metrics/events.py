"""TensorBoard's event file, written by the caller's thread.

`SummaryWriter` leaves the writing to a thread of its own, which a full disk kills with a traceback; every later call fails too.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]  # made at run time
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from distrec.metrics.append import AppendFile

_POSITIVE = 1e-12 * 1.1 ** np.arange(774)  # to 1e20: TensorBoard's own buckets
BUCKETS: Any = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])


class Events:
    """One file of a run folder. Steps are those of training; times are seconds since 1970, now unless given."""

    def __init__(self, folder: Path, first_step: int):
        """Begin a file; events that earlier files of the folder hold of `first_step` and later are no longer shown.

        Raises `OSError` when the file cannot be made.
        """
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"  # files are read by name
        self._records = RecordWriter(AppendFile(folder / name))
        self._write(Event(file_version="brain.Event:2", wall_time=time.time()))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START), wall_time=time.time()))

    def scalar(self, tag: str, number: float, step: int, now: float) -> None:
        """A point of a curve."""
        self._add(summary.scalar(tag, number), step, now)

    def text(self, tag: str, markdown: str) -> None:
        """A text of the page TEXT."""
        self._add(summary.text(tag, markdown))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """The distribution of finite `values (N,)`, N > 0."""
        self._add(summary.histogram(tag, values, BUCKETS), step)

    def charts(self, layout: dict[str, Any]) -> None:
        """What the page CUSTOM SCALARS draws."""
        self._add(summary.custom_scalars(layout))

    def hparams(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """The run's row on the page HPARAMS."""
        parts: Iterable[Any] = summary.hparams(settings, metrics)
        for part in parts:
            self._add(part)

    def close(self) -> None:
        """Close the file. Raises `UserError` when events still wait for room on the disk."""
        self._records.close()

    def _add(self, content: Any, step: int = 0, now: float | None = None) -> None:
        self._write(Event(summary=content, step=step, wall_time=time.time() if now is None else now))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
