"""The one table from errors to gRPC status codes."""

from __future__ import annotations

import logging
import uuid
from typing import NamedTuple

from google.protobuf.message import DecodeError
from grpc import StatusCode

from backends.base import InvalidInput
from gateway import errors
from gateway.logs import about

_log = logging.getLogger(__name__)

_CODES: dict[type[Exception], StatusCode] = {
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    errors.ModelNotReady: StatusCode.UNAVAILABLE,
    errors.RegionNotFound: StatusCode.NOT_FOUND,
    errors.RegionExists: StatusCode.ALREADY_EXISTS,
    errors.TooManyRegions: StatusCode.RESOURCE_EXHAUSTED,
    errors.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.NotOffered: StatusCode.UNIMPLEMENTED,
    errors.NotAllowed: StatusCode.FAILED_PRECONDITION,
    errors.ModelLoadFailed: StatusCode.FAILED_PRECONDITION,
    errors.RequestTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    errors.ResponseTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    InvalidInput: StatusCode.INVALID_ARGUMENT,
}


class Status(NamedTuple):
    """What a caller gets instead of a response."""

    code: StatusCode
    details: str


CANCELLED = Status(StatusCode.CANCELLED, "the caller has cancelled")

_LONGEST = 1500
"""Bytes of a message: it travels in HTTP/2 trailers, which peers refuse from 8 KiB on, and may quote the caller."""


def status_of(error: Exception, rpc: str, **fields: object) -> Status:
    """The code and message a caller gets for `error`.

    Whatever is not in the table is our fault or the model's: the caller gets an id, the log the id and the traceback.
    `fields` say there whose request it was, as in `logs.about`.
    """
    if isinstance(error, (DecodeError, errors.MalformedRequest)):
        return Status(StatusCode.INVALID_ARGUMENT, f"{rpc}: the request is not a valid protobuf message of this RPC")
    for kind in type(error).__mro__:
        if kind in _CODES:
            return Status(_CODES[kind], _shortened(str(error)))
    correlation = uuid.uuid4().hex[:12]
    cause = error.__cause__ if isinstance(error, errors.ExecutionFailed) and error.__cause__ else error
    extra = about(**fields, rpc=rpc, error_id=correlation)
    _log.error("%s failed, id %s: %s", rpc, correlation, error, exc_info=cause, extra=extra)
    what = str(error) if isinstance(error, errors.ExecutionFailed) else f"{rpc} failed"
    return Status(
        StatusCode.INTERNAL,
        f"{what}: internal error, id {correlation}; the server's log has the cause under that id",
    )


def _shortened(message: str) -> str:
    encoded = message.encode(errors="replace")
    if len(encoded) <= _LONGEST:
        return encoded.decode()
    return f"{encoded[:_LONGEST].decode(errors='ignore')}... ({len(encoded)} bytes)"
