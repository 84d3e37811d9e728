"""Header blocks of gRPC calls: what callers send, and what they get. Compression is the package hpack's (RFC 7541).

Callers repeat themselves: the block of a call is mostly that of the call before, byte for byte. Such a block is looked
up instead of decompressed, which is right as long as nothing has changed the table that its bytes refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf
from urllib.parse import quote

from grpc import StatusCode
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from gateway.status import Status

LONGEST, LONGEST_PACKED = 16 << 10, 64 << 10
"""Bytes of a call's headers: calls with more are refused, and a connection is closed over what is longer than the
second, packed or unpacked."""

_MOST, _LONGEST_KNOWN, _MOST_KNOWN = 64, 1024, 64
"""Blocks that are remembered of a connection, bytes of one, and headers in it: a byte may stand for kilobytes."""

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

_GRPC = "application/grpc"


class Head:
    """What a caller says first.

    Attributes:
        path: of the method.
        timeout_s: that the caller waits, infinite if it does not say.
        encoding: how its messages are packed, if they are.
        metadata: all headers, those of HTTP/2 included; values that are no text have replacement characters.
        refusal: the block that answers it if this is no call of gRPC's, else empty.
    """

    __slots__ = ("encoding", "metadata", "path", "refusal", "timeout_s")

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.metadata = [(str(name, "utf-8", "replace"), str(value, "utf-8", "replace")) for name, value in headers]
        fields = dict(self.metadata)
        self.path = fields.get(":path", "")
        self.timeout_s = _timeout_s(fields.get("grpc-timeout", ""))
        self.encoding = fields.get("grpc-encoding", "")
        self.refusal = b""
        size = sum(len(name) + len(value) for name, value in headers)
        if size > LONGEST:
            told = f"metadata larger than max ({size} vs. {LONGEST}): send less of it"
            self.refusal = trailers(Status(StatusCode.RESOURCE_EXHAUSTED, told), begun=False)
        elif fields.get(":method") != "POST":
            self.refusal = _block((":status", "405"))
        elif not _is_grpc(fields.get("content-type", "")):
            self.refusal = _block((":status", "415"))


class Heads:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._decoder = Decoder(LONGEST_PACKED)
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """What a block says.

        Raises:
            HPACKError: the block is damaged, or says too much: the connection is of no use any more.
        """
        if head := self._known.get(block):
            return head
        size, count, latest = self._table()  # which is held, so that no other can take its address
        try:
            head = Head(self._decoder.decode(block, raw=True))  # type: ignore[arg-type]  # pairs, by another name
        except (IndexError, UnicodeError) as error:  # the package's own way to fail on blocks that end early
            raise HPACKError(str(error)) from error
        new_size, new_count, new = self._table()
        if new is not latest or (new_size, new_count) != (size, count):
            self._known.clear()  # the same bytes would mean something else
        elif len(block) <= _LONGEST_KNOWN and len(head.metadata) <= _MOST_KNOWN and not head.refusal:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[block] = head
        return head

    def _table(self) -> tuple[int, int, object]:
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), entries[0] if entries else None


def _is_grpc(content_type: str) -> bool:
    return content_type.startswith(_GRPC) and content_type[len(_GRPC) : len(_GRPC) + 1] in ("", "+", ";")


def _timeout_s(text: str) -> float:
    """Seconds that a `grpc-timeout` header stands for; infinite without one."""
    digits, unit = text[:-1], text[-1:]
    return int(digits) * _SECONDS[unit] if digits.isdecimal() and len(digits) <= 8 and unit in _SECONDS else inf


def _block(*headers: tuple[str, str]) -> bytes:
    """A block that leaves the peer's table as it is, so that the same bytes always mean the same."""
    return bytes(Encoder().encode(NeverIndexedHeaderTuple(*header) for header in headers))


_BEGINNING = (
    (":status", "200"),
    ("content-type", _GRPC),
    ("grpc-accept-encoding", "identity,deflate,gzip"),
)
BEGINNING = _block(*_BEGINNING)
"""Goes before the first message to a caller."""

NO_TABLE = b"\x20"
"""Goes before the next block to a peer that has set the size of its table: we use none, some insist on hearing it."""

ALL_WELL = _block(("grpc-status", "0"))
"""Goes behind the last one."""


@lru_cache(256)
def trailers(status: Status | None, *, begun: bool) -> bytes:
    """The block that a call ends with; without a message before it, it is all that the caller gets."""
    if status is None and begun:
        return ALL_WELL
    headers = [] if begun else list(_BEGINNING)
    headers.append(("grpc-status", str(status.code.value[0] if status else 0)))
    if status:
        headers.append(("grpc-message", quote(status.details, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"\\")))
    return _block(*headers)
