"""`distrec` and `python -m distrec`: run the command line, and turn what a user can mend into one message."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from distrec.errors import AnotherRankFailed, UserError

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 2 for what a user can mend, 1 for the rest."""
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
    if "RANK" in os.environ and isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST):
        rank = os.environ["RANK"]
        print(f"distrec: rank {rank} lost contact with another rank, which failed or hangs: see its message", file=sys.stderr)
    else:
        traceback.print_exc()
    return 1


def _leave(code: int) -> None:
    """Exit now: a process group that lost a rank can hang in its destructors for as long as a timeout lasts."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code and "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
