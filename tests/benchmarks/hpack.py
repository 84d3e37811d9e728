"""HPACK (RFC 7541) without a dynamic table: headers out, `grpc-status` in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

_STATIC = {b":authority": 1, b":path": 4, b":method": 2, b":scheme": 6, b"content-type": 31}
_HUFFMAN = {  # of appendix B, the letters of "grpc-status" and its values
    **{"-": "010110", "a": "00011", "c": "00100", "g": "100110", "p": "101011", "r": "101100", "s": "01000"},
    **{"t": "01001", "u": "101101", "0": "00000", "1": "00001", "2": "00010", "3": "011001", "4": "011010"},
    **{"5": "011011", "6": "011100", "7": "011101", "8": "011110", "9": "011111"},
}


def encode(headers: Mapping[bytes, bytes]) -> bytes:
    """A header block that leaves no trace in the receiver's table, so that every request can send the same bytes."""
    block = b""
    for name, value in headers.items():
        index = _STATIC.get(name, 0)
        named = bytes([index]) if index < 15 else bytes([15, index - 15])
        block += (named if index else b"\0" + _plain(name)) + _plain(value)
    return block


@lru_cache(4096)  # a server's blocks are few: parsing them anew would be most of a call's cost
def grpc_status(block: bytes) -> int | None:
    """The value of `grpc-status`, or None if the block has none (or one that no specification knows)."""
    at = 0
    while at < len(block):
        first = block[at]
        if first >= 0x80:  # a whole field of the static table, none of which is ours
            _, at = _integer(block, at, 7)
        elif 0x20 <= first < 0x40:  # the sender notes that we asked for a table of size 0
            _, at = _integer(block, at, 5)
        else:
            index, at = _integer(block, at, 6 if first >= 0x40 else 4)
            name, at = (None, at) if index else _string(block, at)
            value, at = _string(block, at)
            if name in _NAMES:
                return _VALUES.get(value)
    return None


def _plain(text: bytes) -> bytes:
    assert len(text) < 127, "longer ones take a length of several bytes"
    return bytes([len(text)]) + text


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value, at, shift = block[at] & limit, at + 1, 0
    more = value == limit
    while more:
        more = block[at] >= 0x80
        value, at, shift = value + ((block[at] & 0x7F) << shift), at + 1, shift + 7
    return value, at


def _string(block: bytes, at: int) -> tuple[tuple[bool, bytes], int]:
    compressed = block[at] >= 0x80
    length, at = _integer(block, at, 7)
    return (compressed, block[at : at + length]), at + length


def _compressed(text: str) -> bytes:
    bits = "".join(_HUFFMAN[character] for character in text)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


_NAMES = {(False, b"grpc-status"), (True, _compressed("grpc-status"))}
_VALUES = {key: status for status in range(17) for key in ((False, b"%d" % status), (True, _compressed(str(status))))}
