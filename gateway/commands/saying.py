"""What a command was asked for, on stdout."""

from __future__ import annotations

import os
import sys

from gateway.commands.failure import UNFINISHED, CommandFailed


def say(text: str) -> None:
    """Print, at once.

    Raises:
        CommandFailed: the disk is full, or the reader has gone, as `head` does: that needs no words.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still holds of it
        said = "" if isinstance(error, BrokenPipeError) else f"stdout: {error.strerror}"
        raise CommandFailed(said, UNFINISHED) from None
