"""What an output file says of the run that wrote it, in an extended attribute where the file system has such.

Its content has no room for it, and a file beside it would be one too many; so `--resume` may not know.
"""

from __future__ import annotations

import hashlib
import os
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

_ATTRIBUTE = "user.tensorgate.run"


def mark(flags: Namespace, written: Path) -> None:
    """Note on a file, complete but not in its place yet, what wrote it."""
    with suppress(OSError):
        os.setxattr(written, _ATTRIBUTE, _digest(flags, written))


def is_finished(flags: Namespace) -> bool:
    """Whether the output is just what these flags would write."""
    try:
        return os.getxattr(flags.output, _ATTRIBUTE) == _digest(flags, flags.output)
    except OSError:
        return False


def _digest(flags: Namespace, written: Path) -> bytes:
    """Of what is asked for, and of both files as they are: either may have been changed since."""
    asked = (flags.model, flags.version, flags.map, flags.keep, flags.select, flags.binary, flags.batch_size)
    stats = [(stat.st_size, stat.st_mtime_ns) for stat in (flags.input.stat(), written.stat())]
    return hashlib.sha256(repr((asked, stats)).encode()).hexdigest().encode()
