"""A recording of some steps for Perfetto: what each rank's processor and GPU did, and when."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from distrec.config.schema import Profile
from distrec.log import logger

FOLDER = "profile"


class NullTrace:
    """Records nothing."""

    def step(self) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing."""


class Trace(NullTrace):
    """Records `settings.steps` steps after the first `settings.start` ones, by `torch.profiler`.

    They are written when they are done, or with the end of training, to `folder/profile/rank-N.json.gz`: Chrome's trace
    format, in which a step is a range named `ProfilerStep#N`.
    """

    def __init__(self, settings: Profile, folder: Path, rank: int):
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._path = folder / FOLDER / f"rank-{rank}.json.gz"
        self._start, self._written = settings.start, False
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=settings.start - 1, warmup=1, active=settings.steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            acc_events=True,
        )

    def step(self) -> None:
        """A step of training has ended."""
        self._profile.step()

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._profile.stop()
        if not self._written:
            logger.warning("nothing is profiled: training ended within train.profile.start = %d steps", self._start)

    def _write(self, profiler: profile) -> None:
        self._written = True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._path))
        except OSError as error:
            logger.warning("cannot write the profile %s: %s; training goes on", self._path, error.strerror)
        else:
            logger.info("profiled; open %s in ui.perfetto.dev", self._path)


def trace_of(settings: Profile | None, folder: Path, rank: int) -> NullTrace:
    """What records on this rank, if anything does."""
    return NullTrace() if settings is None or rank not in settings.ranks else Trace(settings, folder, rank)
