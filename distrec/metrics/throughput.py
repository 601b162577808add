"""How fast a run goes, and what it waits for."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from distrec.metrics.pointwise import ratio

GIB = 2**30


@dataclass
class Span:
    """Some steps, added up."""

    steps: int = 0
    samples: int = 0
    wall: float = 0.0  # seconds
    waited: float = 0.0  # seconds of them spent waiting for data

    def add(self, other: Span) -> None:
        """Take the other span's steps in."""
        self.steps += other.steps
        self.samples += other.samples
        self.wall += other.wall
        self.waited += other.waited

    def rates(self) -> dict[str, float]:
        """Samples a second, seconds a step, and the share of the time that went into waiting; NaN without steps."""
        return {
            "perf/samples_per_s": ratio(self.samples, self.wall),
            "perf/step_s": ratio(self.wall, self.steps),
            "perf/data_wait": ratio(self.waited, self.wall),
        }


class Throughput:
    """Speed and memory over an interval and over the run.

    A step lasts from the end of the step before it to its own `step` call, less what was `paused`. The run's average
    leaves out the first `warmup_steps`: they load kernels, grow the allocator's pools and fill the pipeline. Intervals
    hold every step. Times are those of the host: a GPU may lag by the few steps in its queue, which an interval of many
    steps averages out.
    """

    def __init__(
        self, device: torch.device | str = "cpu", warmup_steps: int = 10, clock: Callable[[], float] = time.perf_counter
    ):
        """Start the clock, which gives seconds."""
        self.device = torch.device(device)
        self._clock = clock
        self._warmup_left = warmup_steps
        self._interval, self._run = Span(), Span()
        self._step_began = clock()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, the loop waits for data."""
        began = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, the loop does something else than train: evaluates, or saves."""
        began = self._clock()
        try:
            yield
        finally:
            self._step_began += self._clock() - began

    def step(self, samples: int) -> None:
        """End a step of `samples` rows: of all ranks, when the job's speed is wanted and not this rank's."""
        now = self._clock()
        span = Span(1, samples, now - self._step_began, self._waited)
        self._step_began, self._waited = now, 0.0
        self._interval.add(span)
        if self._warmup_left:
            self._warmup_left -= 1
        else:
            self._run.add(span)

    def interval(self) -> dict[str, float]:
        """Rates over the steps since the last call, and memory now; begins the next interval."""
        ended, self._interval = self._interval, Span()
        return ended.rates() | self._memory()

    def run(self) -> dict[str, float]:
        """Rates over all steps after the warm-up (NaN when there were none), and memory now."""
        return self._run.rates() | self._memory()

    def _memory(self) -> dict[str, float]:
        memory = {"system/rss_gib": resident_bytes() / GIB}
        if self.device.type == "cuda":
            memory["system/gpu_peak_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        return memory


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; on systems without /proc, the most it ever was."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
