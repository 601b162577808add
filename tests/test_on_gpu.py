"""benchmarks/on_gpu.sh: what it does on a machine with a GPU, with a stand-in for Python, and what it says without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import report

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(SCRIPT, tmp_path / "benchmarks")
    return tmp_path


def run(checkout: Path, python: str, *words: str) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "PYTHON": python, "PYTHONPATH": "given"}
    script = checkout / "benchmarks" / "on_gpu.sh"
    return subprocess.run([script, *words], env=environment, capture_output=True, text=True, timeout=100, check=False)


def stand_in(checkout: Path, failing: str = "nothing") -> str:
    """A Python that prints what it was called with and where it would look for packages, and fails for a word of its own."""
    path = checkout / "python"
    path.write_text(f'#!/bin/sh\necho "$*" "$PYTHONPATH"\ncase "$*" in *{failing}*) exit 3;; esac\n')
    path.chmod(0o755)
    return str(path)


def test_tests_come_first_and_then_each_benchmark_in_the_size_asked_for(checkout: Path) -> None:
    done = run(checkout, stand_in(checkout), "tiny")
    assert done.returncode == 0, done.stderr
    here = f"{checkout}:given"
    assert done.stdout.splitlines() == [
        f"- {here}",
        f"-m distrec doctor --ranks 1 {here}",
        f"-m pytest -q -rs -m gpu tests {here}",
        f"-m benchmarks.embedding --size tiny {here}",
    ]


def test_what_the_doctor_misses_stops_nothing_but_a_failed_test_does(checkout: Path) -> None:
    assert run(checkout, stand_in(checkout, "doctor")).returncode == 0
    failed = run(checkout, stand_in(checkout, "pytest"))
    assert failed.returncode == 3
    assert "benchmarks" not in failed.stdout.split("pytest")[1]


def test_packages_that_were_carried_are_unpacked_once_and_come_first(checkout: Path) -> None:
    (checkout / "carried.py").write_text("x = 1")
    with tarfile.open(checkout / "all", "w:xz") as archive:
        archive.add(checkout / "carried.py", "carried.py")
    whole = (checkout / "all").read_bytes()
    (checkout / ".gpu").mkdir()
    (checkout / ".gpu" / "part-00").write_bytes(whole[:100])
    (checkout / ".gpu" / "part-01").write_bytes(whole[100:])
    for _ in range(2):
        done = run(checkout, stand_in(checkout))
        assert done.stdout.splitlines()[0] == f"- {checkout}/.gpu/site:{checkout}:given", done.stderr
        assert (checkout / ".gpu" / "site" / "carried.py").read_text() == "x = 1"
        (checkout / ".gpu" / "part-01").write_bytes(b"")  # not read again


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu_it_says_so_and_ends(checkout: Path) -> None:
    done = run(checkout, sys.executable)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"distrec: needs a CUDA device, and torch {torch.__version__} sees none; `distrec doctor` says why\n"
    )


@pytest.mark.parametrize(
    ("device", "name", "folder"),
    [("cpu", "", "cpu"), ("cuda", "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("cuda", "Tesla T4 ", "tesla-t4")],
)
def test_results_lie_under_the_name_of_the_gpu(monkeypatch: pytest.MonkeyPatch, device: str, name: str, folder: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert report.folder_of(device) == folder
