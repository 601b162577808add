"""All checks, in the order in which their faults explain each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distrec.doctor import gpu, libraries, machine, versions
from distrec.doctor.finding import Finding
from distrec.doctor.ranks import Device, self_test


def examine(folder: Path, ranks: int = 2, device: Device = "auto") -> Iterator[Finding]:
    """Every finding, as soon as it stands.

    Args:
        folder: where runs or data will lie; its disk is timed.
        ranks: processes of the self-test; 0: none.
        device: of the self-test.
    """
    yield machine.python()
    yield from _machine(folder)
    outcomes, driver = libraries.probe_all(), gpu.driver()
    facts, has_gpu = outcomes["torch"].facts, bool(driver.version or driver.problem)
    yield gpu.check_driver(driver, facts.get("cuda"))
    yield from gpu.check_runtime(driver, facts)
    for library in libraries.LIBRARIES:
        yield libraries.judge(library, outcomes, has_gpu)
    yield from versions.pairs(versions.installed("torch", "torchrec", *versions.FBGEMM), facts.get("cuda"), has_gpu)
    if ranks and outcomes["torch"].problem:
        yield Finding("all-to-all", "fault", "not tried: torch does not work", "mend torch first")
    elif ranks:
        yield self_test(ranks, device, len(facts.get("gpus", ())))


def _machine(folder: Path) -> Iterator[Finding]:
    yield machine.huge_pages()
    yield machine.shared_memory()
    yield machine.open_files()
    yield from machine.locked_memory()
    yield from machine.disk(folder)
