"""What a check found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distrec.errors import UserError

State = Literal["ok", "note", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One check's result. A `note` is a fact that limits nothing; a `warning` costs speed or safety; a `fault` stops a run."""

    name: str
    state: State
    found: str
    fix: str = ""  # a command, or a sentence that holds one; empty when there is nothing to mend

    def text(self) -> str:
        """One line, and one more where there is something to mend."""
        line = f"{self.state:<9}{self.name:<20}{self.found}"
        return f"{line}\n{'':<9}fix: {self.fix}" if self.fix else line


def exit_code(findings: Sequence[Finding], strict: bool = False) -> int:
    """2 when there is a fault (with `strict`: or a warning), else 0. 1 stays what it is elsewhere: a crash of distrec."""
    bad = ("fault", "warning") if strict else ("fault",)
    return UserError.exit_code if any(finding.state in bad for finding in findings) else 0
