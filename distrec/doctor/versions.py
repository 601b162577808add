"""Versions of torch, TorchRec and FBGEMM that fit together, and the commands that install them.

FBGEMM's shared libraries load only with the torch minor release they were built for, and TorchRec calls FBGEMM's operators
by signatures that change with each minor release.
"""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distrec.doctor.finding import Finding

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
FBGEMM = ("fbgemm-gpu", "fbgemm-gpu-cpu")  # two distributions of one import


@dataclass(frozen=True)
class Fit:
    """Releases that distrec's tests have run on together."""

    torch: str
    torchrec: str
    fbgemm: str


FITS = (Fit("2.13.0", "1.8.0", "1.8.0"), Fit("2.11.0", "1.6.1", "1.6.0"))


def installed(*distributions: str) -> dict[str, str]:
    """Version of each distribution that is installed, read from its metadata; nothing is imported."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def summary() -> str:
    """What `distrec --version` says, a line each: distrec, Python, and the libraries whose versions must fit each other."""
    libraries = installed("torch", "torchrec", *FBGEMM, "faiss-cpu", "faiss-gpu")
    found = installed("distrec") | {"python": platform.python_version()} | libraries
    return "\n".join(f"{name} {release}" for name, release in found.items())


def install(*words: str) -> str:
    """The command that installs into this environment and touches nothing else."""
    return shlex.join([sys.executable, "-m", "pip", "install", "--no-deps", *words])


def uninstall(*distributions: str) -> str:
    """The command that removes distributions from this environment."""
    return shlex.join([sys.executable, "-m", "pip", "uninstall", "--yes", *distributions])


def reinstall(*distributions: str, gpu: bool) -> str:
    """The command that puts distributions back as the closure pins them, even where pip believes that they are there."""
    return install("--force-reinstall", *(pinned(name, gpu) for name in distributions))


def pinned(distribution: str, gpu: bool) -> str:
    """The closure's line for a distribution; the bare name where the closures are not at hand or do not hold it."""
    file = closure("cuda" if gpu else "cpu")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line for line in lines if _canonical(line.partition("==")[0]) == distribution), distribution)


def install_torch(gpu: bool) -> str:
    """The command that installs the newest torch that fits, from the index that has this build."""
    file = closure("torch-cuda" if gpu else "torch-cpu")
    return install("--force-reinstall", *(("-r", str(file)) if file.is_file() else (f"torch=={FITS[0].torch}",)))


def closure(name: str) -> Path:
    """File of pinned requirements, in the checkout that distrec is installed from."""
    return REQUIREMENTS / f"{name}.txt"


def pairs(found: Mapping[str, str], cuda: str | None, gpu: bool) -> Iterator[Finding]:
    """Whether torch, TorchRec and FBGEMM fit each other.

    Args:
        found: versions by distribution, of torch, torchrec and either FBGEMM. What is missing is another check's matter.
        cuda: the CUDA release that torch was built for; None: a CPU build.
        gpu: the machine has an NVIDIA GPU.
    """
    builds = [name for name in FBGEMM if name in found]
    if len(builds) == 2:
        yield _two_builds(gpu)
    elif builds and {"torch", "torchrec"} <= found.keys():
        yield _releases(found, builds[0])
        yield from _build(builds[0], found, cuda, gpu)


def _two_builds(gpu: bool) -> Finding:
    fix = f"{uninstall(*FBGEMM)} && {reinstall(FBGEMM[0] if gpu else FBGEMM[1], gpu=gpu)}"
    return Finding("versions", "fault", f"{' and '.join(FBGEMM)} are both installed and overwrite each other's files", fix)


def _releases(found: Mapping[str, str], build: str) -> Finding:
    torch, torchrec, fbgemm = (_minor(found[name]) for name in ("torch", "torchrec", build))
    said = f"torch {found['torch']}, torchrec {found['torchrec']}, {build} {found[build]}"
    fit = next((fit for fit in FITS if _minor(fit.torch) == torch), None)
    if fit and (_minor(fit.torchrec), _minor(fit.fbgemm)) == (torchrec, fbgemm):
        return Finding("versions", "ok", f"{said} fit together")
    if fit:
        wanted = (f"torchrec=={fit.torchrec}", f"{build}=={fit.fbgemm}")
        return Finding("versions", "fault", f"{said} do not fit: torch {torch} needs {' and '.join(wanted)}", install(*wanted))
    fix = f"{install_torch(gpu=build == FBGEMM[0])} && {install(f'torchrec=={FITS[0].torchrec}', f'{build}=={FITS[0].fbgemm}')}"
    if torchrec == fbgemm and _built_for(fbgemm) == torch:
        return Finding("versions", "warning", f"{said} fit each other, but distrec is not tested with them", fix)
    return Finding("versions", "fault", f"{said} do not fit each other", fix)


def _build(build: str, found: Mapping[str, str], cuda: str | None, gpu: bool) -> Iterator[Finding]:
    """CPU and CUDA builds that do not go together."""
    if build == FBGEMM[0] and cuda is None:
        fix = f"{uninstall(build)} && {install(f'{FBGEMM[1]}=={found[build]}')}"
        yield Finding("builds", "fault", f"{build} needs CUDA's libraries, and torch {found['torch']} is a CPU build", fix)
    elif build == FBGEMM[1] and cuda and gpu:
        fix = f"{uninstall(build)} && {install(f'{FBGEMM[0]}=={found[build]}')}"
        yield Finding("builds", "fault", f"{build} has no GPU kernels, and this machine has a GPU", fix)


def _built_for(fbgemm: str) -> str | None:
    """The torch minor release that an FBGEMM 1.N is built for: 1.0 for 2.5, and in step since."""
    found = re.fullmatch(r"1\.(\d+)", fbgemm)
    return f"2.{int(found[1]) + 5}" if found else None


def _minor(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
