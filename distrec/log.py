"""What a run says: one logger, quiet dependencies, and the progress that a program may show."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger("distrec")

# Messages of dependencies that a user can do nothing about: (category, start of the message). pytest uses the same list.
DEPENDENCY_WARNINGS = [
    (DeprecationWarning, "\x1b[93m"),  # fbgemm_gpu, on an import of its own, in yellow
    (FutureWarning, "HeuristicalStorageReservation is known to cause issues"),
    (FutureWarning, "Please use DTensor instead and we are deprecating ShardedTensor"),
    (FutureWarning, "`broadcast_buffers` is deprecated"),
    (FutureWarning, "`torch.distributed.reduce_scatter_tensor` is deprecated"),
    (FutureWarning, "`torch.distributed.all_gather_into_tensor` is deprecated"),
    (FutureWarning, "The `check_fn` argument is deprecated"),
    (UserWarning, "torch.distributed is disabled, unavailable or uninitialized"),
    (UserWarning, "TORCH_CUDA_ARCH_LIST is not set"),
]


class Progress:
    """Shows nothing; a program passes one that does."""

    def start(self, done: int, total: int) -> None:
        """Training begins at step `done` of `total`."""

    def step(self, done: int, facts: Mapping[str, float]) -> None:
        """`done` steps are done; `facts` are the newest numbers by tag."""

    def phase(self, name: str) -> None:
        """The run turns to `name`: evaluating, saving."""

    def stop(self) -> None:
        """Training has ended."""


def quiet_dependencies() -> None:
    """Silence what dependencies say in normal operation."""
    for category, message in DEPENDENCY_WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(message), category=category)
    for name in ("torchrec", "torch.distributed", "torch.fx", "torch.nn.parallel", "fbgemm_gpu"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().addFilter(
        lambda record: "Sharding spec not found" not in record.getMessage()
    )  # replicated tables have none


def setup(rank: int, folder: Path | None = None) -> None:
    """Send rank 0's messages to stderr, every rank's warnings too, and all of them to `folder`/rank-N.log."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    screen.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [screen]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / f"rank-{rank}.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    logger.handlers = handlers
