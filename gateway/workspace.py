"""Memory that large batches are put together in, one after the other.

What malloc maps anew for each costs more to touch for the first time than to fill: above 32 MiB it always does.
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import numpy as np

from backends.base import Array

_LARGE = 1 << 20
"""Bytes from which on it matters."""

_WASTE = 4
"""How many times as much memory as a batch needs is kept for it."""


def _unused() -> int:
    """What Python counts as references to memory that nobody else knows, asked as below: that differs by release."""
    kept = {"": np.empty(1, np.uint8)}
    memory = kept.get("")
    return sys.getrefcount(memory)


_UNUSED = _unused()


class Workspace:
    """Of one instance, and used by one batch at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Array] = {}

    def __repr__(self) -> str:
        return f"<Workspace bytes={sum(memory.nbytes for memory in self._kept.values())}>"

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of any contents, over the same memory as the last one of that name if nobody has kept that."""
        size = prod(shape) * dtype.itemsize
        if size < _LARGE or dtype.hasobject:
            return np.empty(shape, dtype)
        memory = self._kept.get(name)
        # A view holds on to the memory under it: a backend may have kept one, or given it back as an output.
        if memory is None or not size <= memory.nbytes <= _WASTE * size or sys.getrefcount(memory) > _UNUSED:
            memory = self._kept[name] = np.empty(size, np.uint8)
        return memory[:size].view(dtype).reshape(shape)
