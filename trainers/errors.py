"""Muster's errors, all in one tree.

A message holds what was wrong, where, the bound, and the next step; the command line prints it as one line and leaves
with `exit_code`. Anything else that escapes is a defect of Muster's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class MusterError(Exception):
    """Base of every error that Muster reports to its user. `exit_code` is what the command ends with."""

    exit_code = 1


class UserError(MusterError):
    """What the user wrote or pointed at cannot work: exit code 2, nothing was created.

    `where` is `file:line`, a command-line argument, or empty; `key` is the dotted key of the job.
    """

    exit_code = 2

    def __init__(self, message: str, *, key: str = "", where: str = "") -> None:
        self.message, self.key, self.where = message, key, where
        text = ": ".join(part for part in (where, key, message) if part)
        # A key or a path may hold anything; what is printed is one line, and moves no cursor.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))

    def __reduce__(self) -> Any:
        return partial(UserError, self.message, key=self.key, where=self.where), ()


class RunError(MusterError):
    """A run that started did not end well: exit code 1. The message is the failing worker's own cause."""


class Stopped(MusterError):
    """The user ended it before there was a run: exit code 130, as for any Ctrl-C."""

    exit_code = 130
