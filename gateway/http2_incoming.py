"""What arrives on an HTTP/2 connection, taken apart into frames (RFC 9113)."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from hpack import HPACKError

from gateway.http2_frames import (
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    HEAD,
    INTERNAL_ERROR,
    MOST,
    PADDED,
    PREFACE,
    PROTOCOL_ERROR,
    Violation,
)
from gateway.http2_headers import LONGEST_PACKED

LARGEST_FRAME = 1 << 20
"""Bytes of a frame."""

_log = logging.getLogger(__name__)


class Incoming(asyncio.Protocol, ABC):
    """The way in. What becomes of what arrives is a subclass's matter.

    Attributes:
        block: headers that are not whole yet, if there are any: nothing else may come between.
        begun: whether the peer has shown that it speaks HTTP/2.
    """

    def __init__(self) -> None:
        self.block: list[bytes] | None = None
        self._unread = b""
        self.begun = False
        self._data: tuple[int, int, int] | None = None  # what of a frame is still to come

    @abstractmethod
    def begin(self) -> None:
        """A peer that speaks HTTP/2 is there."""

    @abstractmethod
    def turn_down(self) -> None:
        """A peer that does not."""

    @abstractmethod
    def receive(self, number: int, data: bytes, start: int, end: int, last: int) -> None:
        """These bytes of `data` have arrived for a stream; `last` is other than 0 if it ends with them."""

    @abstractmethod
    def handle(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any other frame has arrived, or padded data."""

    @abstractmethod
    def refuse(self, violation: Violation) -> None:
        """The peer is of no use any more."""

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol`'s."""
        try:
            if self._unread:
                data = self._unread + data
                self._unread = b""
            self._unread = data[self._take(data) :]
        except Violation as violation:
            self.refuse(violation)
        except HPACKError as error:
            _log.debug("damaged headers: %.200s", error)
            self.refuse(Violation(COMPRESSION_ERROR, "damaged headers, or too many"))  # its text quotes all of them
        except Exception:  # a fault of ours ends one connection, at most
            _log.exception("a connection fails")
            self.refuse(Violation(INTERNAL_ERROR, "internal error"))

    def _take(self, data: bytes) -> int:
        """Take frames; how many bytes have been."""
        size = len(data)
        at = 0
        if not self.begun:
            if not self._begins(data):
                return 0
            at = len(PREFACE)
        if self._data:
            at = self._more_data(data)
        while size - at >= HEAD.size:
            high, low, kind, flags, number = HEAD.unpack_from(data, at)
            length = high << 8 | low
            start = at + HEAD.size
            end = start + length
            if length > LARGEST_FRAME or self.block is not None:
                self._check(kind, length)
            if kind == DATA and not flags & PADDED:
                if end > size:  # a message need not wait for its frames to be whole
                    self._data = number & MOST, end - size, flags & END_STREAM
                    self.receive(number & MOST, data, start, size, 0)
                    return size
                self.receive(number & MOST, data, start, end, flags & END_STREAM)
            elif end > size:
                if length > LONGEST_PACKED:
                    raise Violation(ENHANCE_YOUR_CALM, f"a frame of {length} bytes that cannot be taken in parts")
                break
            else:
                self.handle(kind, flags, number & MOST, data[start:end])
            at = end
        return at

    def _check(self, kind: int, length: int) -> None:
        if length > LARGEST_FRAME:
            raise Violation(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        if kind != CONTINUATION:
            raise Violation(PROTOCOL_ERROR, "headers are interrupted")

    def _begins(self, data: bytes) -> bool:
        if data.startswith(PREFACE):
            self.begun = True
            self.begin()
        elif not PREFACE.startswith(data[: len(PREFACE)]):
            self.turn_down()
        return self.begun

    def _more_data(self, data: bytes) -> int:
        """Take what a frame has still to bring; how many bytes."""
        assert self._data  # noqa: S101
        number, left, last = self._data
        taken = min(left, len(data))
        self._data = (number, left - taken, last) if taken < left else None
        self.receive(number, data, 0, taken, 0 if self._data else last)
        return taken
