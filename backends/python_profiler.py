"""cProfile from the standard library: how long each function that a `model.py` calls took."""

from __future__ import annotations

import cProfile
from collections.abc import Callable, Mapping
from pathlib import Path

from backends.base import Array, Instance, Operation

_OURS = "<method 'disable' of '_lsprof.Profiler' objects>"


class PythonProfiler:
    """Profiles objects of the class `Model`.

    Args:
        make: a new instance.
    """

    name = "cProfile"
    traces = False  # it keeps sums

    def __init__(self, make: Callable[[], Instance]) -> None:
        self._make = make

    def instance(self, *, by_node: bool) -> ProfiledObject:  # noqa: ARG002  # a function is told by its line anyway
        """An instance with an object of its own."""
        return ProfiledObject(self._make())


class ProfiledObject:
    """An instance whose calls are counted while it executes, and not while it waits for the next batch."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._profile: cProfile.Profile | None = None

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """As the model's own instances do."""
        if self._profile is None:
            return self._instance.execute(inputs)
        self._profile.enable()
        try:
            return self._instance.execute(inputs)
        finally:
            self._profile.disable()

    def start(self) -> None:
        """Record."""
        self._profile = cProfile.Profile()

    def stop(self, trace: Path | None) -> list[Operation]:  # noqa: ARG002  # never asked for
        """Functions by file, line and name; those written in C by what they are called."""
        assert self._profile is not None  # noqa: S101  # `start` comes first
        self._profile.create_stats()
        return [
            Operation(_label(*place), calls, total * 1e6, own * 1e6)
            for place, (_, calls, own, total, _) in self._profile.stats.items()
            if place[2] != _OURS
        ]

    def close(self) -> None:
        """Close the object."""
        self._instance.close()


def _label(file: str, line: int, function: str) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {function}" if line else function.strip("<>")
