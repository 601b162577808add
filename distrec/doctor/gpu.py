"""NVIDIA's driver, the CUDA runtime that torch brings, and NCCL."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distrec.doctor.finding import Finding
from distrec.doctor.versions import FBGEMM, install_torch, reinstall

OLDEST_DRIVER = {13: 580, 12: 525}  # CUDA major release -> driver branch, from NVIDIA's CUDA compatibility tables
TIMEOUT_S = 30


@dataclass(frozen=True)
class Driver:
    """What `nvidia-smi` says: a version and the GPUs, or a problem; nothing where there is no driver."""

    version: str = ""
    gpus: tuple[str, ...] = ()
    problem: str = ""


def driver() -> Driver:
    """Ask `nvidia-smi`, which every installation of the driver and NVIDIA's container runtime bring."""
    if shutil.which("nvidia-smi") is None:
        return Driver()
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(problem=str(error))
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        return Driver(problem=(lines or done.stderr.splitlines() or [f"exit code {done.returncode}"])[0].strip())
    rows = [line.partition(",") for line in lines]
    return Driver(rows[0][0].strip(), tuple(row[2].strip() for row in rows)) if rows else Driver()


def check_driver(found: Driver, cuda: str | None) -> Finding:
    """Whether the driver works and is new enough for the CUDA release that torch was built for."""
    name = "CUDA driver"
    if found.problem:
        return Finding(name, "fault", f"nvidia-smi fails: {found.problem}", "sudo reboot (a driver was updated or not loaded)")
    if not found.version:
        return Finding(name, "note", "no NVIDIA driver: runs are on CPU")
    least = OLDEST_DRIVER.get(int(cuda.split(".")[0]), 0) if cuda else 0
    if int(found.version.split(".")[0]) < least:
        fix = f"sudo apt-get install nvidia-driver-{least}-server && sudo reboot"
        return Finding(name, "fault", f"{found.version} is too old for CUDA {cuda}, which needs {least} or newer", fix)
    return Finding(name, "ok", f"{found.version}; {_counted(found.gpus)}")


def check_runtime(found: Driver, torch: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether torch computes on the GPUs that the driver shows, and has NCCL for them.

    Args:
        found: the driver.
        torch: facts of torch's probe; empty where torch does not work.
    """
    if not torch:
        return
    yield _runtime(found, torch)
    if torch["nccl"]:
        yield Finding("NCCL", "ok", torch["nccl"])
    elif torch["cuda"] and torch["gpus"]:
        yield Finding("NCCL", "fault", "torch was built without it, and GPUs cannot exchange rows", install_torch(gpu=True))
    else:
        yield Finding("NCCL", "note", "not in this build of torch; ranks on CPU use Gloo")


def _runtime(found: Driver, torch: Mapping[str, Any]) -> Finding:
    name = "CUDA runtime"
    if torch["cuda"] is None:
        if not found.version:
            return Finding(name, "note", "torch is a CPU build")
        fix = f"{install_torch(gpu=True)} && {reinstall(FBGEMM[0], gpu=True)}"
        return Finding(name, "warning", "torch is a CPU build, and the GPUs of this machine stay idle", fix)
    if torch["cuda_error"] and found.version:
        fix = f"look at `nvidia-smi` for a busy or failed GPU; else {install_torch(gpu=True)}"
        return Finding(name, "fault", f"CUDA {torch['cuda']}: torch cannot compute on the GPU: {torch['cuda_error']}", fix)
    if not torch["gpus"]:
        return Finding(name, "note", f"CUDA {torch['cuda']}, and torch sees no GPU: runs are on CPU")
    return Finding(name, "ok", f"CUDA {torch['cuda']}; torch computes on {_counted(torch['gpus'])}")


def _counted(gpus: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
