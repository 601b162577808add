"""Imports point down: which module may import which, and where each third-party package lives."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    0: {"config", "environment", "errors", "json_out", "log"},
    1: {
        "batch",
        "dist",
        "signals",
        "models",
        "prepare.description",
        "losses",
        "metrics",
        "running_statistics",
        "seal",
        "tracing",
        "retrieval.losses",
        "retrieval.blockwise",
        "retrieval.frequency",
        "retrieval.exact",
    },
    2: {
        "prepare",
        "data",
        "embeddings",
        "optim",
        "parts",
        "task",
        "evaluate",
        "checkpoint",
        "run_folder",
        "draw",
        "doctor",
        "export.graph",
        "planner.footprint",
        "recall",
        "retrieval.candidates",
        "retrieval.task",
        "retrieval.evaluate",
    },
    3: {
        "engine",
        "record",
        "trainer",
        "trained",
        "pipeline",
        "profile",
        "export",
        "planner",
        "retrieval",
        "recall.everyone",
        "recall.queries",
        "validate",
    },
    4: {
        "cli",
        "cli_prepare",
        "cli_retrieval",
        "screen",
        "planner.command",
        "planner.picture",
        "planner.screen",
        "profile.screen",
        "recall.command",
        "recall.picture",
        "recall.screen",
        "agent",
        "__main__",
    },
}
FLOOR = {part: floor for floor, parts in FLOORS.items() for part in parts}
SAME_FLOOR = {
    ("config", "errors"),
    ("log", "errors"),
    ("retrieval.task", "task"),
    ("retrieval.evaluate", "evaluate"),
    ("record", "engine"),
    ("pipeline", "engine"),
    ("trained", "engine"),
    ("validate", "engine"),
    ("validate", "profile"),
    ("validate", "retrieval"),
    ("trained", "pipeline"),
    ("trainer", "engine"),
    ("trainer", "record"),
    ("trainer", "pipeline"),
    ("trainer", "trained"),
    ("engine", "retrieval"),
    ("planner", "engine"),
    ("recall.queries", "engine"),
    ("recall.queries", "retrieval"),
    ("recall.everyone", "engine"),
    ("recall.everyone", "recall.queries"),
    ("recall.everyone", "retrieval"),
    ("recall.everyone", "trained"),
    ("export", "engine"),
    ("export", "trained"),
    *((a, b) for a in FLOORS[4] for b in FLOORS[4]),
}

ANYWHERE_FROM_1 = {"torch", "numpy"}
HOMES = {  # third-party module -> where in distrec it may be imported
    "pydantic": {"config"},
    "pyarrow": {"data", "prepare", "profile", "recall", "embeddings.table_files"},
    "fsspec": {"data", "prepare"},
    "numba": {"data"},
    "polars": {"prepare"},
    "torchrec": {
        "batch",
        "embeddings",
        "optim",
        "task",
        "retrieval",
        "recall.queries",
        "checkpoint",
        "engine",
        "pipeline",
    },
    "fbgemm_gpu": {"embeddings"},
    "tensorboard": {"metrics.events", "metrics.projector"},
    "torch.utils.tensorboard": {"metrics.events", "metrics.projector"},
    "typer": {"cli", "cli_prepare", "cli_retrieval"},
    "rich": {"screen", "profile.screen", "planner.screen", "recall.screen", "cli"},
    "matplotlib": {"planner.picture", "recall.picture"},
    "faiss": {"recall"},
    "onnxruntime": {"export.graph"},
    "onnxscript": {"export.graph"},
}
SEES_CONFIG = {"config", "run_folder", *FLOORS[3], *FLOORS[4]}


def part_of(module: str) -> str | None:
    """The longest of its names that has a floor: that of `retrieval.exact` is its own, `metrics.writer` is on its package's."""
    while module and module not in FLOOR:
        module = module.rpartition(".")[0]
    return module or None


@dataclass(frozen=True)
class Import:
    line: int
    module: str  # torch.nn
    name: str | None  # None for `import module`


def imports(source: str) -> Iterator[Import]:
    """Every import that may run, inside functions too; those for the type checker alone are left out."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the floor that they reach"
            yield from (Import(node.lineno, node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))


def violations(module: str, source: str) -> list[str]:
    """What a module, such as `metrics.writer`, imports and may not."""
    return [f"{module}, line {i.line}: {fault}" for i in imports(source) for fault in faults(module, i)]


def faults(module: str, found: Import) -> Iterator[str]:
    top = found.module.split(".")[0]
    if top in ("launch", "benchmarks", "tests"):
        yield f"nobody imports {top}"
    elif top == "distrec":
        yield from floor_faults(module, found)
        if found.name == "Config" and part_of(module) not in SEES_CONFIG:
            yield "the root Config is seen on floors 3 and 4 only; take the section that you need"
    elif top not in sys.stdlib_module_names:
        yield from package_faults(module, found)


def floor_faults(module: str, found: Import) -> Iterator[str]:
    names = [*found.module.split(".")[1:], *([found.name] if found.name else [])]
    part, target = part_of(module), part_of(".".join(names))
    if not names:
        yield "import a module of distrec, not all of it"
    elif part is None or target is None:
        yield f"distrec.{names[0] if target is None else module} has no floor"
    elif part != target and not may_import(part, target):
        yield f"{part} (floor {FLOOR[part]}) imports {target} (floor {FLOOR[target]})"


def may_import(part: str, target: str) -> bool:
    """Down; on one floor, within a package and where it is said."""
    within = part.split(".")[0] == target.split(".")[0]
    return FLOOR[target] < FLOOR[part] or (FLOOR[target] == FLOOR[part] and (within or (part, target) in SAME_FLOOR))


def package_faults(module: str, found: Import) -> Iterator[str]:
    full = found.module if found.name is None else f"{found.module}.{found.name}"
    known = [package for package in HOMES if f"{full}.".startswith(f"{package}.")]
    if known:
        homes = HOMES[max(known, key=len)]
        if not any(f"{module}.".startswith(f"{home}.") for home in homes):
            yield f"{max(known, key=len)} lives in {', '.join(sorted(homes))}"
    elif full.split(".")[0] not in ANYWHERE_FROM_1:
        yield f"{full} has no home"
    elif FLOOR[part_of(module) or module] == 0:
        yield f"{full} on floor 0, which a login node loads"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "distrec").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "distrec").rglob("*.py")) if path != ROOT / "distrec/__init__.py"}


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert {part_of(name) for name in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports((ROOT / "distrec/__init__.py").read_text(encoding="utf-8"))) == []


def test_launch_knows_torchx_and_floor_0_alone() -> None:
    files = list((ROOT / "launch").rglob("*.py"))
    assert files
    for path in files:
        for found in imports(path.read_text(encoding="utf-8")):
            top, _, rest = found.module.partition(".")
            below = top == "distrec" and rest.split(".")[0] in FLOORS[0]
            assert below or top == "torchx" or top in sys.stdlib_module_names, f"{path.name}, line {found.line}: {found.module}"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("models.dlrm", "from distrec.task import RankingTask", "models (floor 1) imports task (floor 2)"),
        ("models.dlrm", "from distrec import losses", "models (floor 1) imports losses (floor 1)"),
        ("data.loader", "def f():\n    from distrec.prepare.zipf import zipf", "data (floor 2) imports prepare (floor 2)"),
        ("engine", "from distrec.trainer import Trainer", "engine (floor 3) imports trainer (floor 3)"),
        ("retrieval.exact", "from distrec.retrieval import task", "retrieval.exact (floor 1) imports retrieval.task (floor 2)"),
        ("retrieval.candidates", "from distrec.data.items import x", "retrieval.candidates (floor 2) imports data (floor 2)"),
        ("log", "import distrec.config.load", "log (floor 0) imports config (floor 0)"),
        ("task", "from distrec.elsewhere import x", "distrec.elsewhere has no floor"),
        ("config.load", "try:\n    import torch\nexcept ImportError:\n    pass", "torch on floor 0"),
        ("errors", "import numpy as np", "numpy on floor 0"),
        (
            "metrics.ranking",
            "from torch.utils.tensorboard import SummaryWriter",
            "torch.utils.tensorboard lives in metrics.events, metrics.projector",
        ),
        (
            "metrics.ranking",
            "from torch.utils import tensorboard",
            "torch.utils.tensorboard lives in metrics.events, metrics.projector",
        ),
        ("data.loader", "import polars", "polars lives in prepare"),
        ("models", "from pydantic import Field", "pydantic lives in config"),
        ("losses", "from torchrec.sparse import jagged_tensor", "torchrec lives in"),
        ("trainer", "import pandas", "pandas has no home"),
        ("task", "from distrec.config.schema import Config", "root Config"),
        ("trainer", "from launch.component import train", "nobody imports launch"),
        ("data.ids", "if TYPE_CHECKING:\n    pass\nelse:\n    import polars", "polars lives in prepare"),
    ],
)
def test_a_violation_is_seen(module: str, source: str, fault: str) -> None:
    assert fault in "\n".join(violations(module, source))


def test_what_only_the_type_checker_imports_is_free() -> None:
    assert violations("data.ids", "if TYPE_CHECKING:\n    from distrec.trainer import Trainer") == []
    assert violations("metrics.events", "from torch.utils.tensorboard import SummaryWriter") == []
    assert violations("trainer", "from distrec.engine import Engine\nfrom distrec.config.schema import Config") == []
