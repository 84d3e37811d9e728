"""Regions of the machine's shared memory that callers have registered, to have tensors in them.

They are read and written through file descriptors and never mapped. Whoever owns a shared memory object can shrink it
at any moment: touching a mapping then kills the process by SIGBUS, while a read comes back short and can be answered.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass

from gateway.errors import InvalidRequest, RegionExists, RegionNotFound, TooManyRegions
from tensorgate_client.tensors import Raw

_log = logging.getLogger(__name__)

_FOLDER = "/dev/shm"  # noqa: S108  # where Linux has what shm_open opens
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
"""As shm_open's, which follows no link either; it never waits, as opening a pipe would."""

_LONGEST_NAME = 255  # bytes
_MOST_REGIONS = 256  # each costs a file descriptor, which connections need, too


@dataclass(slots=True, eq=False)
class Region:
    """A part of a shared memory object.

    Attributes:
        name: that requests call it by.
        key: of the object, as its registrar wrote it.
        offset, byte_size: of the part, in bytes.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    _descriptor: int | None

    def __str__(self) -> str:
        return f"shared memory region '{self.name}'"

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes from `offset` on, both within the region.

        Raises:
            RegionNotFound: it has been unregistered.
            InvalidRequest: its object has been shrunk since.
        """
        start = self.offset + offset
        contents = os.pread(self._open(), length, start)
        if len(contents) != length:
            raise self._shrunk(start + len(contents), start + length)
        return contents

    def write(self, offset: int, contents: Raw) -> None:
        """Put `contents` at `offset`; they fit into the region.

        Raises:
            RegionNotFound: it has been unregistered.
            InvalidRequest: its object has been shrunk since, or the machine has no memory left for it.
        """
        start, view = self.offset + offset, memoryview(contents)
        descriptor, end = self._open(), start + len(view)
        if (size := os.fstat(descriptor).st_size) < end:  # writing would make it grow again
            raise self._shrunk(size, end)
        try:
            while view:
                view = view[os.pwrite(descriptor, view, end - len(view)) :]
        except OSError as error:
            raise InvalidRequest(f"{self} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Touch it no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            raise RegionNotFound(f"{self} was unregistered while the request was under way")
        return self._descriptor

    def _shrunk(self, size: int, needed: int) -> InvalidRequest:
        return InvalidRequest(f"{self} has shrunk: object '{self.key}' has {size} bytes, expected {needed} or more")


class Regions:
    """The registered regions.

    Args:
        max_request_bytes: of the inputs that one request may have in them.
    """

    def __init__(self, max_request_bytes: int) -> None:
        self.max_request_bytes = max_request_bytes
        self._regions: dict[str, Region] = {}

    def __repr__(self) -> str:
        return f"<Regions {len(self._regions)}>"

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Make `byte_size` bytes from `offset` on, of the object that `key` names, known as `name`.

        Raises:
            RegionExists: that name is taken.
            TooManyRegions: there are as many as there may be.
            InvalidRequest: the name or key is none, or there is no such part of such an object.
        """
        if not _is_name(name):
            raise InvalidRequest(f"region name {name[:100]!r}: expected 1 to {_LONGEST_NAME} printable bytes")
        if name in self._regions:  # existing clients look for this phrase, Triton's own
            raise RegionExists(f"shared memory region '{name}' already in manager: unregister it first")
        if len(self._regions) >= _MOST_REGIONS:
            raise TooManyRegions(f"{_MOST_REGIONS} shared memory regions are registered: unregister some first")
        descriptor = _open_object(key)
        try:
            _check_within(descriptor, key, offset, byte_size)
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = Region(name, key, offset, byte_size, descriptor)
        _log.info("shared memory region '%s' registered: %d bytes of '%s' from %d on", name, byte_size, key, offset)

    def unregister(self, name: str) -> None:
        """Touch a region no more, or none of them if `name` is empty; an unknown one is no error.

        Requests under way that would still write into it fail, so that its memory is free for something else.
        """
        for gone in [name] if name else list(self._regions):
            if region := self._regions.pop(gone, None):
                region.close()
                _log.info("shared memory region '%s' unregistered", gone)

    def find(self, name: str) -> Region:
        """A region.

        Raises:
            RegionNotFound: there is none of that name.
        """
        if region := self._regions.get(name):
            return region
        raise RegionNotFound(f"Unable to find shared memory region: '{name}'")  # Triton's own phrase, as above

    def listed(self, name: str) -> Collection[Region]:
        """A region, or all of them if `name` is empty.

        Raises:
            RegionNotFound: there is none of that name.
        """
        if not name:
            return self._regions.values()
        if name not in self._regions:
            raise RegionNotFound(f"Unable to find system shared memory region: '{name}'")  # likewise
        return (self._regions[name],)


def _is_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name.encode()) <= _LONGEST_NAME


def _open_object(key: str) -> int:
    """The descriptor of an object that is there already; leading slashes do not count, as for shm_open."""
    name = key.lstrip("/")
    if not _is_name(name) or "/" in name or name in {".", ".."}:
        raise InvalidRequest(f"key {key[:100]!r}: expected the name of a shared memory object, as '/name'")
    try:
        return os.open(f"{_FOLDER}/{name}", _FLAGS)
    except OSError as error:
        raise InvalidRequest(f"Unable to open shared memory region: '{key}': {error.strerror}") from error


def _check_within(descriptor: int, key: str, offset: int, byte_size: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"key '{key}': it is no shared memory object")
    if not byte_size or offset + byte_size > status.st_size:
        asked = f"{byte_size} from {offset} on"
        raise InvalidRequest(
            f"key '{key}': the object has {status.st_size} bytes, expected a part of them, got {asked}"
        )
