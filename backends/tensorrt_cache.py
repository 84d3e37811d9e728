"""Engines kept beside the ONNX files they were built from: for the next start, and for other servers' instances."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from backends.base import LoadError

_log = logging.getLogger(__name__)

T = TypeVar("T")


class EngineCache:
    """Where the engine of one model file is kept, in a hidden file: others would count as a change of the model.

    Args:
        file: the model's; all that lies in its folder counts for what it is, as weights in files of their own do.
        made_with: what else an engine depends on, each with a `repr` that says all of it.
    """

    def __init__(self, file: Path, *made_with: object) -> None:
        content = _digest(file.parent)
        key = hashlib.sha256(repr(made_with).encode()).hexdigest()
        self._file = file
        self._prefix = f".{file.name}.{content[:16]}-"
        self.path = file.with_name(f"{self._prefix}{key[:16]}.plan")

    def engine(self, build: Callable[[], Any], opened: Callable[[Any], T], about: str) -> T:
        """The engine, opened: the kept one, or a new one, which is then kept.

        Nobody else builds an engine of this file meanwhile, in this process or another.

        Args:
            build: makes the engine's plan, a buffer.
            opened: makes of a plan what is wanted.
            about: the model, for the log.

        Raises:
            LoadError: whatever `build` raises, or `opened` on a new plan.
        """
        with self._alone(about):
            if (plan := self._read()) is not None:
                try:
                    return opened(plan)
                except LoadError as error:
                    _log.warning("%s: the kept engine does not load and is built again: %s", about, error)
            plan = build()
            engine = opened(plan)
            self._keep(plan, about)
            return engine

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except OSError:
            return None

    def _keep(self, plan: Any, about: str) -> None:
        """Write the plan under another name first: a file of its own name is always whole."""
        written = self.path.with_suffix(".tmp")
        try:
            written.write_bytes(plan)
            written.replace(self.path)
            for old in self._file.parent.glob(f".{self._file.name}.*.plan"):
                if not old.name.startswith(self._prefix):  # of a file that is no longer there
                    old.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: the engine cannot be kept, each start will build it: %s", about, error)

    @contextmanager
    def _alone(self, about: str) -> Iterator[None]:
        try:
            lock = self._file.with_name(f".{self._file.name}.lock").open("w")
        except OSError:  # a folder that cannot be written to: nothing will be kept there either
            yield
            return
        with lock:  # closing it lets the next one in, and so does the end of the process
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("%s: waits for somebody else who builds its engine", about)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _digest(folder: Path) -> str:
    """Of all that lies in the folder, hidden files apart."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder)}\0{content}\n".encode())
    return digest.hexdigest()
