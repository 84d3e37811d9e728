"""Messages of gRPC in the bytes of a stream: each behind five that say whether it is packed, and how long it is."""

from __future__ import annotations

import struct
import zlib

from gateway.errors import InvalidRequest, NotOffered, RequestTooLarge

PREFIX = struct.Struct(">BL")
"""Whether a message is packed; its bytes."""

_ANY_FORMAT = 47
"""zlib's number for: gzip or zlib, whichever it is."""


def unpacked(message: bytes, encoding: str, limit: int) -> bytes:
    """A message that the caller has packed as its `grpc-encoding` says.

    Raises:
        NotOffered: it is packed in a way that we do not know.
        InvalidRequest: it is not.
        RequestTooLarge: it is longer than `limit` bytes; not more than these are unpacked to know it.
    """
    if encoding not in ("gzip", "deflate"):
        raise NotOffered(f"compression '{encoding}': send identity, gzip or deflate")
    inflater = zlib.decompressobj(_ANY_FORMAT)
    try:
        whole = inflater.decompress(message, limit + 1)
    except zlib.error:
        raise InvalidRequest(f"a message is not what {encoding} makes") from None
    if len(whole) > limit:
        raise RequestTooLarge(len(whole), limit)
    if not inflater.eof:
        raise InvalidRequest(f"a message that {encoding} has made ends too early")
    return whole
