"""What a run says: one logger, quiet dependencies, and the progress that a program may show."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from distrec.errors import UserError

logger = logging.getLogger("distrec")

# Messages of dependencies that a user can do nothing about: (category, start of the message). pytest uses the same list.
DEPENDENCY_WARNINGS = [
    (DeprecationWarning, "\x1b[93m"),  # fbgemm_gpu, on an import of its own, in yellow
    (DeprecationWarning, "`torch.jit."),  # is deprecated, says torch.distributed.optim of its own import
    (FutureWarning, "HeuristicalStorageReservation is known to cause issues"),
    (FutureWarning, "Please use DTensor instead and we are deprecating ShardedTensor"),
    (FutureWarning, "`broadcast_buffers` is deprecated"),
    (FutureWarning, "`torch.distributed.reduce_scatter_tensor` is deprecated"),
    (FutureWarning, "`torch.distributed.all_gather_into_tensor` is deprecated"),
    (UserWarning, "fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered"),
    (UserWarning, "Full backward hook is firing when gradients are computed"),  # FBGEMM's, where rows are fetched ahead
    (UserWarning, "`_get_pg_default_device` will be deprecated"),  # this and the next: torchrec 1.6 with torch 2.11
    (UserWarning, "Multiple backends are registered with this ProcessGroup"),
]
# The same of what they log with the root logger.
DEPENDENCY_MESSAGES = (
    "Sharding spec not found",  # replicated tables have none
    "Could not determine LOCAL_WORLD_SIZE",  # a process on its own was started by no agent that would have set it
    "\n            \x1b[33m\n            _fbgemm_torch_compat_table has no entry",  # fbgemm 1.6 does not know its own release
)


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
    logging.getLogger().addFilter(_is_news)


def setup(rank: int, folder: Path | None = None, required: bool = True) -> None:
    """Send rank 0's messages to stdout, every rank's warnings to stderr, and all of them to `folder`/rank-N.log.

    Args:
        rank: of this process.
        folder: of the files; None: there are none.
        required: whether the files must be; else rank 0 warns where there can be none.

    Raises:
        UserError: the folder cannot be written, and the files must be.
    """
    logger.setLevel(logging.INFO)
    logger.propagate = False
    screen = _Screen(logging.INFO if rank == 0 else logging.WARNING)
    for handler in logger.handlers:
        handler.close()
    logger.handlers = [screen]
    try:
        logger.handlers += [] if folder is None else [_file(rank, folder)]
    except OSError as error:
        said = f"cannot write logs to {folder}: {error.strerror}"
        if required:
            raise UserError(f"{said}; set `folder` to where you can") from None
        if rank == 0:
            logger.warning("warning: %s; messages are shown here alone", said)


def _file(rank: int, folder: Path) -> logging.Handler:
    folder.mkdir(parents=True, exist_ok=True)
    file = _File(folder / f"rank-{rank}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return file


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(DEPENDENCY_MESSAGES)


class _Screen(logging.Handler):
    """Messages to whatever stdout and stderr are at the time: a live progress bar takes their place while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout if record.levelno < logging.WARNING else sys.stderr, flush=True)


class _File(logging.FileHandler):
    """What a full disk refuses is on the screen all the same: once, where logging would print a traceback a message."""

    _refused = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once why, and go on without the file."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._refused:
            self._refused = True
            print(f"cannot write {self.baseFilename}: {error.strerror}; messages are shown here alone", file=sys.stderr)
