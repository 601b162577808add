"""`distrec` and `python -m distrec`: run the command line, and turn what a user can mend into one message."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from distrec import environment
from distrec.errors import AnotherRankFailed, UserError

LOST = (  # in what Gloo, NCCL and the store say, in lower case
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "application timeout",  # "… caused pair closure": an earlier wait of another thread had timed out
    "nccl",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 2 for what a user can mend, 1 for the rest."""
    environment.prepare()
    words = with_resume_value(list(sys.argv[1:] if argv is None else argv))
    try:
        from distrec.cli import app

        app(args=words, prog_name="distrec", standalone_mode=True, obj=words)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
    except UserError as error:
        if not isinstance(error, AnotherRankFailed):
            print(f"distrec: {error}", file=sys.stderr)
        _leave(error.exit_code)
    except Exception as error:
        _leave(_fault(error))


def with_resume_value(words: list[str]) -> list[str]:
    """`--resume` may stand alone; the parser wants a value after it."""
    for at, word in enumerate(words):
        if word == "--resume" and (at + 1 == len(words) or words[at + 1] not in ("auto", "newest")):
            return [*words[:at], "--resume=newest", *words[at + 1 :]]
    return words


def _fault(error: Exception) -> int:
    if library := unloadable(error):
        reason = str(error).partition("\n")[0]
        print(f"distrec: {library} does not load here: {reason}. `distrec doctor` says why, and what mends it", file=sys.stderr)
        return UserError.exit_code
    if "RANK" in os.environ and isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LOST):
        _name_the_silent(error)
    else:
        traceback.print_exc()
    return 1


def _name_the_silent(error: Exception) -> None:
    """Say which ranks do not answer; of those that do, one says it."""
    from distrec import dist

    rank, world, heard = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), dist.roll_call()
    if not heard:
        first = str(error).partition("\n")[0]
        print(f"distrec: rank {rank} did not meet the other ranks: {first}", file=sys.stderr)
        return
    silent = [str(other) for other in range(world) if other not in heard]
    who = f"rank{'s' if len(silent) > 1 else ''} {', '.join(silent)}" if silent else "another rank"
    if rank == min(heard):
        print(f"distrec: rank {rank} lost contact with {who}, which failed, hangs or is stopped", file=sys.stderr)


def unloadable(error: Exception) -> str | None:
    """The library whose import ended with this error: one that is absent, or was built for another torch."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("distrec"):
        return error.name
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    library = frames[-1].f_globals["__name__"].partition(".")[0] if frames else "distrec"
    return library if isinstance(error, ImportError | OSError) and library not in ("distrec", "__main__") else None


def _leave(code: int) -> None:
    """Exit; a rank does so at once, for everything is written and only C++ is left to end.

    A process group that lost a rank can hang in its destructors for as long as a timeout lasts. One that lost none may have a
    thread left that frees a tensor while the interpreter goes down, which aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
