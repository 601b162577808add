"""Importing each library in a process of its own: a bad one raises, aborts the process, or hangs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distrec.doctor.finding import Finding
from distrec.doctor.versions import install_torch, installed, reinstall, uninstall

TIMEOUT_S = 120.0  # a first import of torch from a network disk takes a minute
FACTS = "distrec-facts "  # before the line of JSON, for libraries print lines of their own


@dataclass(frozen=True)
class Library:
    """A package that distrec uses, and the program that shows that it works."""

    name: str  # of the import
    distributions: tuple[str, ...]  # any of which provides it
    program: str  # exits with 0 when the library works; may print FACTS and a JSON object
    needs: tuple[str, ...] = ()  # libraries without which this one cannot work
    optional: str = ""  # what alone needs it; empty: everything does


TORCH = """
import json, os, torch
facts = {"cuda": torch.version.cuda, "gpus": [], "nccl": None, "cuda_error": None}
assert torch.ones(2).sum().item() == 2
if facts["cuda"]:
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    try:
        for i in range(torch.cuda.device_count()):
            assert torch.ones(2, device=i).sum().item() == 2
            facts["gpus"].append(torch.cuda.get_device_name(i))
        if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            torch.cuda.init()
    except Exception as error:
        facts["cuda_error"] = (str(error) or type(error).__name__).splitlines()[0]
print("distrec-facts " + json.dumps(facts))
"""

FBGEMM = """
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
places = [("cpu", EmbeddingLocation.HOST, ComputeDevice.CPU)]
if torch.cuda.is_available():
    places.append(("cuda", EmbeddingLocation.DEVICE, ComputeDevice.CUDA))
for device, location, compute in places:
    table = SplitTableBatchedEmbeddingBagsCodegen([(8, 4, location, compute)], learning_rate=0.1, device=torch.device(device))
    table.split_embedding_weights()[0].fill_(1.0)
    pooled = table(torch.tensor([1, 2, 3], device=device), torch.tensor([0, 1, 3], device=device))
    assert pooled[:, 0].tolist() == [1.0, 2.0], pooled
    pooled.sum().backward()
    assert [row[0] != 1 for row in table.split_embedding_weights()[0].tolist()] == [False, True, True, True] + [False] * 4
"""

FAISS = """
import faiss, numpy
index = faiss.IndexFlatIP(4)
index.add(numpy.eye(4, dtype="float32"))
assert index.search(numpy.eye(4, dtype="float32"), 1)[1].ravel().tolist() == [0, 1, 2, 3]
"""

# The one that is pinned, those for GPUs that people put in its place, and the name that Faiss's own build has, and conda's.
FAISS_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-cuda", "faiss")

LIBRARIES = (
    Library("torch", ("torch",), TORCH),
    Library("fbgemm_gpu", ("fbgemm-gpu", "fbgemm-gpu-cpu"), FBGEMM, needs=("torch",)),
    Library("torchrec", ("torchrec",), "import torchrec, torchrec.distributed", needs=("torch", "fbgemm_gpu")),
    Library("torchx", ("torchx",), "import torchx.specs, torchx.runner"),
    Library("pyarrow", ("pyarrow",), "import pyarrow.parquet"),
    Library("polars", ("polars",), "import polars; assert polars.Series([1, 2]).sum() == 3"),
    Library("pydantic", ("pydantic",), "import pydantic"),
    Library("tensorboard", ("tensorboard",), "from torch.utils.tensorboard import SummaryWriter", needs=("torch",)),
    Library("faiss", FAISS_BUILDS, FAISS, optional="nearest-neighbour search"),
)


@dataclass(frozen=True)
class Outcome:
    """How a library's program ended."""

    problem: str = ""  # empty: it works
    facts: Mapping[str, Any] = field(default_factory=dict)


def probe_all(libraries: Sequence[Library] = LIBRARIES, timeout_s: float = TIMEOUT_S) -> dict[str, Outcome]:
    """Run every library's program, two at a time; by name of the import."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(
            zip((lib.name for lib in libraries), pool.map(lambda lib: run(lib.program, timeout_s), libraries), strict=True)
        )


def run(program: str, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Run a Python program in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(f"hangs: no answer in {timeout_s:g} s")
    if done.returncode < 0:
        return Outcome(f"its import kills the process with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        return Outcome(_last_line(done.stderr) or f"its import ends the process with exit code {done.returncode}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(FACTS)]
    return Outcome(facts=json.loads(lines[-1].removeprefix(FACTS)) if lines else {})


def judge(library: Library, outcomes: Mapping[str, Outcome], gpu: bool) -> Finding:
    """What a library's outcome means; where a library that it needs is broken, that one is the thing to mend."""
    found, outcome = installed(*library.distributions), outcomes[library.name]
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    fix = _fix(library, found, gpu)
    if library.optional and len(found) > 1 and not outcome.problem:  # of FBGEMM's two, `versions.pairs` says so
        return Finding(library.name, "warning", f"{named} overwrite each other's files, and the last to come works", fix)
    if not outcome.problem:
        return Finding(library.name, "ok", named or "works, with no metadata that says its version")
    broken = [name for name in library.needs if outcomes[name].problem]
    if broken and found:
        return Finding(library.name, "fault", f"{named} needs {broken[0]}, which does not work", f"mend {broken[0]} first")
    if not found and library.optional:
        return Finding(library.name, "note", f"not installed; only {library.optional} needs it", fix)
    return Finding(library.name, "fault", f"{named or 'not installed'}: {outcome.problem}", fix)


def _fix(library: Library, found: Mapping[str, str], gpu: bool) -> str:
    if library.name == "torch":
        return install_torch(gpu)
    if library.optional:
        pinned, *others = library.distributions
        removed = f"{uninstall(*found)} && " if found.keys() & {*others} else ""
        return removed + reinstall(pinned, gpu=gpu)
    cuda_build, *cpu_build = library.distributions
    return reinstall(cuda_build if gpu or not cpu_build else cpu_build[0], gpu=gpu)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
