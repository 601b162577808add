"""The pinned closures: they agree with each other and with pyproject.toml, and hold all that the code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = ("cpu.txt", "torch-cpu.txt", "cuda.txt", "s3.txt", "dev.txt")
FBGEMM = {"fbgemm-gpu-cpu": "fbgemm-gpu"}  # the same import, built for CPU


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(file: str) -> list[str]:
    text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
    found = [line for line in text.splitlines() if line and not line.startswith(("#", "--"))]
    assert found, f"{file} pins nothing"
    return found


def pins(*files: str) -> dict[str, str]:
    return dict(split(line) for file in files for line in lines(file))


def split(requirement: str) -> tuple[str, str]:
    name, _, version = requirement.partition("==")
    return canonical(name.partition("[")[0]), version


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_one_exact_pin(file: str) -> None:
    names = [split(line)[0] for line in lines(file)]
    assert len(names) == len(set(names))
    for line in lines(file):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9_.+!]*", line), line


def test_cpu_and_cuda_agree_on_every_package_they_share() -> None:
    cpu, cuda = pins("cpu.txt", "torch-cpu.txt"), pins("cuda.txt", *cuda_torch())
    shared = cpu.keys() & cuda.keys()
    assert {"torchrec", "pyarrow", "torchx", "torch"} <= shared
    assert {name: cpu[name].partition("+")[0] for name in shared} == {name: cuda[name].partition("+")[0] for name in shared}
    assert cpu["fbgemm-gpu-cpu"] == cuda["fbgemm-gpu"]
    only_cpu = {FBGEMM.get(name, name) for name in cpu} - cuda.keys()
    assert not only_cpu, "on CPU alone"


def cuda_torch() -> list[str]:
    return [path.name for path in (ROOT / "requirements").glob("torch-cuda.txt")]


def test_direct_requirements_are_the_versions_of_the_closures() -> None:
    cpu, cuda, s3, dev = pins("cpu.txt"), pins("cuda.txt", *cuda_torch()), pins("s3.txt"), pins("dev.txt")
    extras = PROJECT["optional-dependencies"]
    for requirements, closure in (
        (PROJECT["dependencies"], cpu),
        (extras["export"], cpu),
        (extras["cuda"], cuda),
        (extras["s3"], s3),
        (extras["dev"], dev),
    ):
        direct = dict(map(split, requirements))
        assert direct
        assert direct == {name: closure.get(name, "not pinned") for name in direct}
    everything = cpu | cuda | s3 | dev
    for extra in extras.values():
        for name, version in map(split, extra):
            assert everything.get(name, version) == version, name


def test_the_cpu_closure_is_closed() -> None:
    """Installed with --no-deps, so what a package requires must be pinned too, at a version that it takes."""
    closed = pins("cpu.txt", "torch-cpu.txt", "s3.txt", "dev.txt")
    by_import = {FBGEMM.get(name, name): version for name, version in closed.items()}
    faults, seen = [], 0
    for name in closed:
        for text in needs(name):
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                seen += 1
                version = by_import.get(canonical(needed.name))
                if version is None or not needed.specifier.contains(version, prereleases=True):
                    faults.append(f"{name} needs {needed}, pinned: {version}")
    assert seen > 50
    assert faults == []


def needs(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed, so what it requires is not known here")


def test_everything_that_is_imported_is_pinned() -> None:
    closed, provided = pins("cpu.txt", "torch-cpu.txt"), packages_distributions()
    modules = third_party("distrec") | third_party("launch")
    assert {"torch", "torchrec", "torchx", "pyarrow", "pydantic", "typer"} <= modules
    for module in modules:
        owners = {canonical(owner) for owner in provided.get(module, [])}
        assert owners & {*closed, *(FBGEMM[name] for name in closed if name in FBGEMM)}, (
            f"{module} comes from {owners}, which is not pinned"
        )


def test_the_code_imports_nothing_that_only_another_package_requires() -> None:
    provided = packages_distributions()
    extras = PROJECT["optional-dependencies"]
    direct = {split(r)[0] for r in [*PROJECT["dependencies"], *extras["cuda"], *extras["export"]]}
    for module in third_party("distrec") | third_party("launch"):
        owners = {FBGEMM.get(canonical(owner), canonical(owner)) for owner in provided.get(module, [])}
        assert owners & direct, f"{module} is imported; name {owners} in pyproject.toml"


def third_party(folder: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found - sys.stdlib_module_names - {"distrec"}
