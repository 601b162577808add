"""Start the ranks of one node, and say in one line why they ended.

    python -m distrec.agent [torchrun's options] -m distrec train CONFIG [KEY=VALUE ...]

This is torchrun with five differences. A failed rank gives one line and its own exit code, where torchrun prints a
traceback of the launcher and always exits with 1. A user's mistake is not tried again. A signal to the agent ends in one
line too. Local rank 0 owns the terminal. And the environment holds what long runs on large tables need, unless the user has
set it otherwise.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api as launcher

from distrec import environment
from distrec.errors import UserError

DEFAULTS = environment.DEFAULTS | {
    # Else the agents' store serves the ranks too and outlives them: a restarted rank finds a dead one's address there.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # Seconds between a rank's SIGTERM and its SIGKILL, in which it saves a checkpoint. Torch 2.11 has a fixed 30.
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ranks to their end.

    Returns:
        0; or the exit code of the rank that failed first; or 128 + the number of the signal that ended it or the agent.
    """
    try:
        config, command, words = configure(torchrun.parse_args(argv))
    except (ValueError, AssertionError, RuntimeError) as error:  # what torchrun raises for options that do not fit
        return _end(f"the agent's options do not fit: {error}", UserError.exit_code)
    launcher.LocalElasticAgent = _Agent  # pyright: ignore[reportPrivateImportUsage]: torchrun has no option for it
    try:
        launcher.elastic_launch(config, command)(*words)
    except ChildFailedError as error:
        return _end(*describe(error.failures))
    except SignalException as stop:
        return _end(f"stopped by {stop.sigval.name}", 128 + stop.sigval)
    except RendezvousError as error:
        return _end(f"the nodes cannot meet at {config.rdzv_endpoint}, or have lost it: {error}", 1)
    return 0


class _Agent(LocalElasticAgent):
    """torchrun's, which starts the ranks anew whatever they ended with, but for mistakes that a new start would only repeat."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # type: ignore[override]
        result: RunResult = super()._monitor_workers(worker_group)  # type: ignore[call-arg]
        if any(failure.exitcode == UserError.exit_code for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def configure(args: Namespace) -> tuple[launcher.LaunchConfig, Callable | str, list[str]]:
    """What to launch, from torchrun's parsed options; fills in the environment that the ranks inherit."""
    ranks = torchrun.determine_local_world_size(args.nproc_per_node)
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    for name, value in {**DEFAULTS, "OMP_NUM_THREADS": str(threads)}.items():
        os.environ.setdefault(name, value)
    if args.nnodes in ("1", "1:1") and not args.rdzv_endpoint:
        args.rdzv_backend, args.rdzv_endpoint, args.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
    args.master_port = args.master_port or 29500
    config, command, words = torchrun.config_from_args(args)
    if args.tee == args.redirects == "0":
        _give_terminal_to_first_rank(config)
    if not config.max_restarts:
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
    return config, command, words


def describe(failures: Mapping[int, ProcessFailure]) -> tuple[str, int]:
    """One line on the rank that explains the failures, and the exit code that a shell would give it.

    Args:
        failures: by global rank; the ranks of this node that did not exit with 0.
    """
    first = min(failure.timestamp for failure in failures.values())
    rank, failure = min(failures.items(), key=lambda item: _causality(item[1], first))
    if failure.exitcode >= 0:
        return f"rank {rank} failed with exit code {failure.exitcode}; see the message above", failure.exitcode
    hint = "; the kernel does that when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
    return f"rank {rank} was killed by {failure.signal_name()}{hint}", 128 - failure.exitcode


def _causality(failure: ProcessFailure, first: int) -> tuple[bool, bool, bool, int]:
    """Causes sort before effects; `first` is the time of the first failure.

    One rank's failure breaks the collectives of the others within milliseconds, and time stamps are in seconds. But no
    failure elsewhere makes a rank find a user's mistake, or has the kernel kill it at once; and a rank that got SIGTERM, or
    SIGKILL long after, got it from this agent.
    """
    killed = failure.exitcode == -signal.SIGKILL and failure.timestamp <= first + 1
    return failure.exitcode != UserError.exit_code, not killed, failure.exitcode == -signal.SIGTERM, failure.timestamp


def _give_terminal_to_first_rank(config: launcher.LaunchConfig) -> None:
    """Local rank 0 writes straight to the terminal; of the others, only stderr arrives, with the rank's number.

    They all compute the same metrics and report through rank 0, so their stdout says nothing new and is kept in the log
    folder; but a warning or a traceback is often on one rank alone. torchrun's own options cannot say this for ranks
    above 9.
    """
    others = range(1, config.nproc_per_node)
    config.logs_specs = DefaultLogsSpecs(
        log_dir=config.logs_specs.root_log_dir if config.logs_specs else None,
        redirects=dict.fromkeys(others, Std.OUT),
        tee=dict.fromkeys(others, Std.ERR),
    )
    config.log_line_prefix_template = config.log_line_prefix_template or "[rank ${rank}] "


def _is_news(record: logging.LogRecord) -> bool:
    """False for torchrun's lines on a failed rank where ours follows at once; before a restart they are the only trace."""
    return not record.getMessage().startswith(("failed (exitcode", "Sending process"))


def _end(message: str, code: int) -> int:
    print(f"distrec: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
