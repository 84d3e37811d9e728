"""Fetches the files of a model from its storage into a folder, each one verified."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.layout import Mark
from gateway.source import StorageFailed
from gateway.storage import Listing, Storage

_log = logging.getLogger(__name__)

_FILES_AT_ONCE = 4
_REPORT_S = 10.0
_TRIES = 3
_CHUNK = 1 << 20


class Fetch:
    """Of one model, in one state. Nobody else may touch the folder meanwhile.

    Args:
        storage: where the files come from.
        folder: where they go; named after the model.
        listing: the model's state.
        sound: names of files that this process has verified; grows.
        offline: whether the storage is away, so that what is not there cannot be had.
    """

    def __init__(self, storage: Storage, folder: Path, listing: Listing, sound: set[str], *, offline: bool) -> None:
        self._storage = storage
        self._folder = folder
        self.listing = listing
        self._sound = sound
        self._offline = offline
        self.fetched: list[Path] = []
        for part in folder.glob(".*.part"):  # of a server that was killed
            part.unlink()

    def bring(self, marks: Iterable[Mark]) -> dict[str, Path]:
        """The files that hold what the marks stand for, by path; what is missing is fetched. Folders have this one.

        Raises:
            StorageFailed: a file cannot be had, or comes damaged.
        """
        wanted = {mark[0].removesuffix("/"): mark for mark in marks}
        kept = {file.name.partition("-")[0]: file for file in self._folder.iterdir()}
        files = {path: self._folder for path, mark in wanted.items() if mark[0].endswith("/")}
        missing: list[Mark] = []
        for path, mark in wanted.items():
            if path not in files:
                file = kept.get(_key(mark))
                if file and self._verified(file, mark):
                    files[path] = file
                else:
                    missing.append(mark)
        return files | self._fetch(missing) if missing else files

    def keep_only(self, files: Mapping[str, Path]) -> None:
        """Remove what other states of the model have left."""
        for file in set(self._folder.glob("*-*")) - set(files.values()):
            file.unlink()

    def undo(self) -> None:
        """Remove what was fetched."""
        for file in self.fetched:
            file.unlink(missing_ok=True)

    def _verified(self, file: Path, mark: Mark) -> bool:
        """Whether a file is what was fetched once; a damaged one is removed."""
        if file.name not in self._sound:
            sha256 = file.name.partition("-")[2]
            if file.stat().st_size != mark[2] or _digests(file)[0] != sha256:
                _log.warning("model %s: %s is damaged in the cache: fetching it again", self._folder.name, mark[0])
                file.unlink()
                return False
            self._sound.add(file.name)
        return True

    def _fetch(self, missing: list[Mark]) -> dict[str, Path]:
        model, storage = self._folder.name, self._storage.name
        if self._offline:
            raise StorageFailed(f"{missing[0][0]} was not fetched before, and the storage cannot be reached")
        progress = _Progress(model, sum(size for _, _, size in missing))
        _log.info("model %s: fetching %s of %s from %s", model, _files(missing), progress.size, storage)
        try:
            with ThreadPoolExecutor(_FILES_AT_ONCE, "storage-file") as threads:
                files = list(threads.map(lambda mark: self._fetch_file(mark, progress), missing))
        except OSError as error:
            _log.warning("model %s: %s", model, error)
            self.undo()
            raise StorageFailed("its files cannot be fetched from storage: the server's log has the reason") from error
        _log.info("model %s: fetched in %.1f s", model, progress.seconds)
        return {mark[0]: file for mark, file in zip(missing, files, strict=True)}

    def _fetch_file(self, mark: Mark, progress: _Progress) -> Path:
        """Fetch a file; what holds it.

        Raises:
            StorageFailed: it cannot be had, or comes damaged time and again.
        """
        path, _, size = mark
        part = self._folder / f".{_key(mark)}.part"
        claimed = self.listing.md5.get(path)
        came = set()
        for attempt in range(1, _TRIES + 1):
            try:
                self._storage.download(f"{self._folder.name}/{path}", part, lambda done: progress.note(path, done))
            except StorageFailed:  # a broken connection, or a checksum that the storage's own client looks at
                if attempt == _TRIES:
                    raise
                continue
            sha256, md5 = _digests(part)
            # An ETag that looks like an MD5 is none where KMS encrypts: what comes the same twice is what lies there.
            if part.stat().st_size == size and (claimed in (None, md5) or sha256 in came):
                part.chmod(0o444)
                file = part.rename(self._folder / f"{_key(mark)}-{sha256}")
                self._sound.add(file.name)
                self.fetched.append(file)
                return file
            came.add(sha256)
        raise StorageFailed(f"{path}: {size:,} bytes were listed; what comes is of another length, or other each time")


class _Progress:
    """Says in the log how far a long fetch has come."""

    def __init__(self, model: str, total: int) -> None:
        self._model = model
        self._total = total
        self.size = _size(total)
        self._done: dict[str, int] = {}
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def note(self, path: str, done: int) -> None:
        """So many bytes of a file are there."""
        with self._lock:
            self._done[path] = done
            if time.monotonic() - self._said < _REPORT_S:
                return
            self._said = time.monotonic()
            share = sum(self._done.values()) / max(self._total, 1)
        _log.info("model %s: %.0f %% of %s fetched", self._model, 100 * share, self.size)


def _key(mark: Mark) -> str:
    return hashlib.sha256(repr(mark).encode()).hexdigest()[:32]


def _digests(file: Path) -> tuple[str, str]:
    """SHA-256 and MD5, in hexadecimal."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def _files(marks: list[Mark]) -> str:
    return f"{len(marks)} file{'s' * (len(marks) != 1)}"


def _size(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
