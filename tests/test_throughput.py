"""Throughput on a clock that the test turns."""

import math
import re
from pathlib import Path

import pytest
import torch

from distrec.metrics.throughput import Throughput, resident_bytes


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def one_step(throughput: Throughput, clock: Clock, samples: int, wait: float, work: float) -> None:
    with throughput.waiting():
        clock.now += wait
    clock.now += work
    throughput.step(samples)


def test_an_interval_holds_the_steps_since_the_last(clock):
    throughput = Throughput(clock=clock, warmup_steps=0)
    one_step(throughput, clock, 100, wait=1.0, work=3.0)
    one_step(throughput, clock, 300, wait=0.0, work=4.0)
    first = throughput.interval()
    one_step(throughput, clock, 50, wait=0.5, work=0.5)
    second = throughput.interval()
    assert [first["perf/samples_per_s"], first["perf/step_s"], first["perf/data_wait"]] == [50.0, 4.0, 0.125]
    assert [second["perf/samples_per_s"], second["perf/step_s"], second["perf/data_wait"]] == [50.0, 1.0, 0.5]


def test_the_run_leaves_the_warm_up_out_and_intervals_do_not(clock):
    throughput = Throughput(clock=clock, warmup_steps=2)
    for _ in range(2):
        one_step(throughput, clock, 10, wait=10.0, work=10.0)
    assert math.isnan(throughput.run()["perf/samples_per_s"])
    assert throughput.interval()["perf/samples_per_s"] == 0.5
    for _ in range(4):
        one_step(throughput, clock, 10, wait=0.25, work=0.75)
        throughput.interval()
    assert throughput.run()["perf/samples_per_s"] == 10.0
    assert throughput.run()["perf/data_wait"] == 0.25


def test_pauses_do_not_count(clock):
    throughput = Throughput(clock=clock, warmup_steps=0)
    with throughput.paused():
        clock.now += 1000
    one_step(throughput, clock, 10, wait=0.0, work=2.0)
    assert throughput.interval()["perf/samples_per_s"] == 5.0


def read_past_the_end(throughput: Throughput, clock: Clock) -> None:
    with throughput.waiting():
        clock.now += 1
        next(iter(()))


def test_an_exhausted_reader_passes_through_and_its_wait_counts(clock):
    throughput = Throughput(clock=clock, warmup_steps=0)
    with pytest.raises(StopIteration):
        read_past_the_end(throughput, clock)
    clock.now += 1
    throughput.step(2)
    assert throughput.interval()["perf/data_wait"] == 0.5


def test_an_interval_without_steps_is_nan(clock):
    assert math.isnan(Throughput(clock=clock).interval()["perf/step_s"])


def test_resident_memory_is_what_the_kernel_says():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system has no /proc")
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status.read_text())
    assert resident_bytes() == pytest.approx(int(kib) * 1024, rel=0.02)


def test_memory_is_in_gib_and_a_cpu_run_has_no_gpu_peak():
    memory = Throughput().interval()
    assert memory["system/rss_gib"] == pytest.approx(resident_bytes() / 2**30, rel=0.1)
    assert "system/gpu_peak_gib" not in memory


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_peak_outlives_the_allocation():
    throughput = Throughput("cuda")
    torch.ones(2**28, device="cuda")  # 1 GiB
    assert throughput.interval()["system/gpu_peak_gib"] >= 1.0
