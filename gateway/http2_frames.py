"""Frames of HTTP/2 (RFC 9113)."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = struct.Struct(">HBBBL")
"""Of a frame: the higher 16 and the lower 8 bits of its length, type, flags, stream."""

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11

HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 1, 3, 4, 5, 6
DEFAULT_WINDOW = (1 << 16) - 1
MOST = (1 << 31) - 1
"""The largest window, and the highest number of a stream."""

SETTING = struct.Struct(">HL")


class Violation(Exception):
    """The peer does what no peer may.

    Attributes:
        code: of HTTP/2.
    """

    def __init__(self, code: int, what: str) -> None:
        super().__init__(what)
        self.code = code


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """A frame."""
    length = len(payload)
    return HEAD.pack(length >> 8, length & 255, kind, flags, number) + payload


def unpadded(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the payload of a padded frame starts and ends."""
    padding = data[start] if start < end else 0
    if start + 1 + padding > end:
        raise Violation(PROTOCOL_ERROR, "more padding than there is")
    return start + 1, end - padding


def number_in(payload: bytes) -> int:
    """The number that is all of a frame's payload, without its reserved bit."""
    if len(payload) != 4:
        raise Violation(FRAME_SIZE_ERROR, f"a frame of {len(payload)} bytes, expected 4")
    return int.from_bytes(payload, "big") & MOST
