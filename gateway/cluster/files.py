"""A model's files on their way to a cluster's nodes: through Ray's object store, into a folder that actors share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from backends.base import LoadError

_PIECE = 64 << 20
"""Bytes of a file that travel as one object: neither side has a large file in memory as a whole."""

_TURN_S = 0.01


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file in the object store.

    Attributes:
        path: relative to the model's folder.
        sha256: of its content, in hex.
        pieces: references to arrays of its bytes, in order.
    """

    path: str
    sha256: str
    pieces: Sequence[ray.ObjectRef[Any]]


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A version's files, and those beside the version folders that all versions share.

    Attributes:
        digest: of all paths and contents, in hex.
        files: they last as long as somebody has their references.
    """

    digest: str
    files: Sequence[PackedFile]


def packed(version: Path) -> PackedModel:
    """A version folder's files put into the object store, with what lies in the model's folder around it.

    Links are followed, as the repository allows none that leads out of it. Hidden files stay behind.

    Raises:
        OSError: a file cannot be read.
    """
    model = version.parent
    files = [_pack(model, path) for path in sorted(_files(model, version.name))]
    listed = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return PackedModel(hashlib.sha256(listed.encode()).hexdigest(), files)


def _files(model: Path, version: str) -> Iterator[Path]:
    """Files below a model's folder, without other versions'; a link to a folder that it lies in is not followed."""
    around: dict[str, tuple[Path, ...]] = {str(model): ()}
    for folder, folders, names in os.walk(model, followlinks=True):
        real = Path(folder).resolve()
        above = around.pop(folder)
        if real in above:
            folders.clear()
            continue
        top = folder == str(model)
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__pycache__")) and not (top and name.isdecimal() and name != version)
        ]
        around |= {os.path.join(folder, name): (*above, real) for name in folders}  # noqa: PTH118  # as os.walk has it
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _pack(model: Path, path: Path) -> PackedFile:
    digest, pieces = hashlib.sha256(), []
    with path.open("rb") as file:
        while True:
            piece = np.fromfile(file, np.uint8, _PIECE)
            digest.update(piece.data)
            if len(piece):
                pieces.append(ray.put(piece))
            if len(piece) < _PIECE:
                return PackedFile(str(path.relative_to(model)), digest.hexdigest(), pieces)


class Unpacked:
    """The files of a model in a folder of this node, shared by every process that has the same ones open.

    The folder is locked while a process has it open, whatever way that process ends: what nobody has open any more is
    removed by whoever comes next.

    Args:
        model: what to unpack, unless it is there already.

    Attributes:
        folder: in the place of the model's folder.

    Raises:
        LoadError: the files cannot be kept here, or are not those that were packed.
    """

    def __init__(self, model: PackedModel) -> None:
        root = _root()
        _sweep(root)
        self.folder = root / model.digest
        try:
            self._lock = self._open(model)
        except OSError as error:
            raise LoadError(f"the model's files cannot be kept in {root} of this node: {error.strerror}") from error

    def _open(self, model: PackedModel) -> int:
        """The folder's lock, shared, once everything is in it."""
        done = self.folder / ".complete"
        while True:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)  # waits for who is unpacking
                if _is(lock, self.folder) and done.exists():
                    return lock
                with suppress(BlockingIOError):  # another one is as far as this
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is(lock, self.folder) and not done.exists():
                        _unpack(model, self.folder)
                        done.touch()
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
            time.sleep(_TURN_S)

    def close(self) -> None:
        """Let go of the files; the last one removes them."""
        os.close(self._lock)
        _remove_unused(self.folder)


def _root() -> Path:
    """A folder of this user's alone: the files in it are code to those who load them."""
    root = Path(tempfile.gettempdir()) / f"tensorgate-models-{os.getuid()}"
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise LoadError(f"{root} of this node is not this user's alone: remove it, or set TMPDIR")
    return root


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):  # gone, or open elsewhere
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(lock, folder):
                shutil.rmtree(folder)
        finally:
            os.close(lock)


def _is(lock: int, folder: Path) -> bool:
    """Whether what was locked is still what has the folder's name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), folder.stat())
    return False


def _unpack(model: PackedModel, folder: Path) -> None:
    for packed_file in model.files:
        path = folder / packed_file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for reference in packed_file.pieces:
                piece = ray.get(reference)
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != packed_file.sha256:
            raise LoadError(f"{packed_file.path} did not reach the node whole: load the model again")
