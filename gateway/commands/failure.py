"""How a command ends when it cannot do what it was asked."""

from __future__ import annotations

FAILED = 1
"""It ran, and something in its data went wrong."""

USAGE = 2
"""It was asked for what cannot be."""

UNFINISHED = 3
"""The server is not there, or went away."""


class CommandFailed(Exception):
    """The command's last words; `str` is what its user reads.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code
