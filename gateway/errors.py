"""What can go wrong for a caller. Transport-free: `status.py` says which gRPC code each becomes."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from backends.base import InvalidInput


class GatewayError(Exception):
    """Base of the errors whose message is written for the caller."""


class ModelNotFound(GatewayError):
    """No such model or version, or it was unloaded."""

    def __init__(self, name: str, version: str = "") -> None:
        at = f" version {version}" if version else ""
        # Existing clients look for this phrase, Triton's own.
        super().__init__(f"Request for unknown model: '{name}'{at} is not found")


class ModelNotReady(GatewayError):
    """The model is known, yet cannot answer now: it is loading, failed to load, or the server is going down."""


class QueueFull(GatewayError):
    """As many requests wait for the model as may."""


class DeadlineExceeded(GatewayError):
    """The request was not answered in time, or can no longer be."""


class InvalidRequest(GatewayError):
    """The request contradicts the protocol or the model's signature."""


class MalformedRequest(InvalidRequest):
    """What came is no message of the RPC."""


class NotOffered(GatewayError):
    """An RPC or a feature of the protocol that this server does not have."""


class RegionNotFound(InvalidRequest):
    """No such region of shared memory is registered, or none is any more."""


class RegionExists(InvalidRequest):
    """A region of shared memory of that name is registered already."""


class TooManyRegions(GatewayError):
    """As many regions of shared memory are registered as may be."""


class NotAllowed(GatewayError):
    """The server's settings forbid this; another setting would allow it."""


class ModelLoadFailed(GatewayError):
    """A model that was asked for could not be loaded; the message carries the reason."""


class ResponseTooLarge(GatewayError):
    """The response is larger than a message may be."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"response larger than max ({size} vs. {limit}): --max-message-mb sets the limit")


class RequestTooLarge(GatewayError):
    """The request is larger than a message may be."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"request larger than max ({size} vs. {limit}): --max-message-mb sets the limit")


class ExecutionFailed(GatewayError):
    """The model failed on valid input. The cause stays in the server's log, under the error's id."""


def restated(error: BaseException, subject: str = "") -> Exception:
    """A fresh exception that says the same, of `subject` if it is given.

    An exception raised twice, in two tasks, would gather both tracebacks. The cause stays what it was.
    """
    kind: type[Exception]
    if isinstance(error, (GatewayError, InvalidInput)):
        kind = InvalidInput if isinstance(error, InvalidInput) else type(error)  # a backend's own subclass says no more
        text, cause = str(error), error.__cause__
    else:
        kind, text, cause = ExecutionFailed, "it failed on this request", error
    new = kind(f"{subject}: {text}" if subject else text)
    new.__cause__ = cause
    return new


def too_late(left_s: float, takes_s: float = 0.0) -> DeadlineExceeded:
    """For a caller with so many seconds left, whose request takes so many as far as is known.

    If these are fewer, it is refused for the sake of those before it.
    """
    if left_s <= 0:
        return DeadlineExceeded("the deadline had passed before the request could be executed")
    if 0 < takes_s <= left_s:
        return DeadlineExceeded(f"in the {shown_ms(left_s)} left it would make requests late that came before it")
    known = f": with what waits before it, it takes about {shown_ms(takes_s)}" if takes_s else ""
    return DeadlineExceeded(f"cannot be answered in the {shown_ms(left_s)} left{known}")


def shown_ms(seconds: float) -> str:
    """A duration as messages have it: "20 ms", "1.5 s"."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def let_go(error: BaseException) -> None:
    """Free what the frames of an answered error hold: tensors, which would otherwise wait for the garbage collector."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            pending += (current.__cause__, current.__context__)


def without_folders(text: str, root: Path) -> str:
    """`text` without this machine's folders, which do not concern the clients that RepositoryIndex shows it to."""
    return _FOLDERS.sub(_unless_elsewhere, text.replace(f"{root}/", ""))


_FOLDERS = re.compile(r"(?<![\w./])/[\w.+@-]+/(?:[\w.+@-]+/)*")


def _unless_elsewhere(path: re.Match[str]) -> str:
    """Nothing in the place of a folder; the name of a graph's node may look like one and stays."""
    top = Path(*Path(path.group()).parts[:2])
    return "" if top.is_dir() else path.group()
