"""The one exception type for what a user can mend."""


class UserError(Exception):
    """Something the user gave us is wrong; the message names the thing and the fix.

    The command line prints the message without a traceback and exits with `exit_code`. Anything else that is
    raised is a fault of distrec and keeps its traceback.
    """

    exit_code = 2


class AnotherRankFailed(UserError):
    """Another rank says what is wrong; this one ends with the same exit code and in silence."""
