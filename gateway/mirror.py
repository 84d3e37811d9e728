"""Models of object storage on this machine's disk: those that are served, verified, kept from start to start.

A cache folder has for each repository

    objects/NAME/KEY-SHA256     the files of model NAME, read-only: KEY is of the path and the state that the storage
                                lists it in, SHA256 of the content
    objects/NAME/listing.json   the state that they were last fetched in, for a start without the storage
    servers/N/NAME/...          what a running server sees: hard links to those files, at their paths in the storage

Servers share `objects`, a lock for each model lets one of them fetch it. Each has a tree N of its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

from gateway import layout
from gateway.fetching import Fetch
from gateway.layout import Fingerprint, Mark, ModelFolder
from gateway.settings import InvalidSettings
from gateway.source import StorageFailed
from gateway.storage import Listing, Storage

_log = logging.getLogger(__name__)

_THREADS = 32
"""More than models are fetched at a time: one that takes long holds up no look at the storage."""

_FRESH_S = 5.0
"""How old a listing may be that answers RepositoryIndex: each request of a client must not cost one of ours."""

_PATIENCE_S = 30.0
"""How long a storage that was away at start is not asked for single models."""

_ROUNDS = 3
"""How often a model is looked at again that changes while it is fetched."""

_LISTING = "listing.json"

_T = TypeVar("_T")


class Mirror:
    """A `Source` of the models in a storage.

    Args:
        storage: where they are.
        cache: the folder to keep them in; None for the user's own.

    Raises:
        InvalidSettings: that folder cannot be written, or its disk knows no hard links or locks.
    """

    def __init__(self, storage: Storage, cache: Path | None) -> None:
        self._storage = storage
        self.place = storage.name
        words = re.sub(r"\W+", "-", storage.name).strip("-")[:60]
        digest = hashlib.sha256(storage.name.encode()).hexdigest()[:16]
        try:
            home = (cache or _users_cache()).expanduser().resolve() / f"{words}-{digest}"
            self._objects = home / "objects"
            self._objects.mkdir(parents=True, exist_ok=True)
            self.root, self._lock = _own_tree(home / "servers")
        except (OSError, RuntimeError) as error:
            raise InvalidSettings(f"--model-cache: {error}: name a folder that this user can write") from error
        # Threads of its own: asyncio waits for those of its default executor, and a download would hold up the exit.
        self._threads = ThreadPoolExecutor(_THREADS, "storage")
        self._known: dict[str, Listing] | None = None
        self._looked = 0.0
        self._away = False
        self._sound: set[str] = set()

    def __repr__(self) -> str:
        return f"<Mirror {self._storage.name} models={len(self._known or ())} away={self._away}>"

    async def _thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))

    async def names(self) -> list[str]:
        """See `Source`."""
        return sorted(await self._thread(self._models))

    async def has(self, name: str) -> bool:
        """See `Source`."""
        try:
            return name in await self._thread(self._model, name)
        except StorageFailed:
            return name in (self._known or {})

    async def fingerprint(self, name: str) -> Fingerprint:
        """See `Source`."""
        found = await self._thread(self._model, name)
        return found[name].fingerprint if name in found else _missing(name)

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """See `Source`."""
        return {name: listing.fingerprint for name, listing in (await self._thread(self._look)).items()}

    async def read(self, name: str, mark: Fingerprint, config_override: str = "") -> ModelFolder:
        """See `Source`."""
        return await self._thread(self._read, name, mark, config_override)

    async def hint(self) -> str:
        """See `Source`."""
        names = self._known or ()
        if not names:
            return f"nothing lies below {self._storage.name}, expected NAME/VERSION/model.onnx and the like"
        if any(layout.version_number(name) for name in names):
            return f"{self._storage.name} looks like one model; a repository is the folder around it"
        return ""

    def _models(self) -> dict[str, Listing]:
        """All models, as they were a moment ago."""
        if self._known is not None and time.monotonic() - self._looked < _FRESH_S:
            return self._known
        return self._look()

    def _look(self) -> dict[str, Listing]:
        """All models, as they are now. What a first look that fails finds instead are those of an earlier start."""
        if self._known is None:
            _log.info("looking through %s", self._storage.name)
        try:
            found = self._storage.look()
        except StorageFailed as error:
            if self._known is not None:
                raise
            self._known = {path.parent.name: _kept(path) for path in self._objects.glob(f"*/{_LISTING}")}
            if not self._known:
                self._known = None
                raise
            self._away, self._looked = True, time.monotonic()
            _log.warning("%s; serving what was fetched before: %s", error, ", ".join(sorted(self._known)))
            return self._known
        if self._away:
            _log.info("%s can be reached again", self._storage.name)
        self._known, self._away, self._looked = found, False, time.monotonic()
        self._prune(found)
        return found

    def _model(self, name: str) -> Mapping[str, Listing]:
        """One model, as it is now, by its name."""
        known = self._known or {}
        if self._away and time.monotonic() - self._looked < _PATIENCE_S:
            return known
        found = self._storage.look(name)
        if self._known is not None:
            self._known = {key: listing for key, listing in known.items() if key != name} | found
        return found

    def _read(self, name: str, mark: Fingerprint, config_override: str) -> ModelFolder:
        listing = Listing(mark, (self._known or {}).get(name, Listing(())).md5)
        layout.refuse_problems(mark)
        with self._alone(name):
            for _ in range(_ROUNDS):
                layout.refuse_problems(listing.fingerprint)
                fetch = Fetch(self._storage, self._objects / name, listing, self._sound, offline=self._away)
                wanted = self._bring(name, fetch, config_override)
                # A file that was replaced after it had been listed must not pass for the one that was.
                try:
                    now = self._model(name).get(name) if fetch.fetched else listing
                except StorageFailed:
                    fetch.undo()
                    raise
                if now is None or now.fingerprint == listing.fingerprint:
                    break
                fetch.undo()
                listing = now
            else:
                raise StorageFailed(f"{name} changes all the time: it cannot be fetched in one state")
            fetch.keep_only(wanted)
            _write(self._objects / name / _LISTING, json.dumps(listing.fingerprint))
        return layout.read(self.root, name, listing.fingerprint, config_override)

    def _bring(self, name: str, fetch: Fetch, config_override: str) -> dict[str, Path]:
        """Fetch what is missing of a model and lay it out in this server's tree; its files by their paths."""
        marks = fetch.listing.fingerprint
        tops = {path.partition("/")[0] for path, _, _ in marks if "/" in path}
        available = sorted(filter(None, map(layout.version_number, tops)))
        files = fetch.bring(mark for mark in marks if not layout.version_number(mark[0].partition("/")[0]))
        config = files.get(layout.CONFIG, self.root / name / "none")
        chosen = set(map(str, layout.choose(layout.declaration(name, config, config_override), available)))
        files |= fetch.bring(mark for mark in marks if mark[0].partition("/")[0] in chosen)
        self._lay_out(name, files)
        return files

    def _lay_out(self, name: str, files: Mapping[str, Path]) -> None:
        """Give a model's folder these files alone, and what backends have added to versions that stay."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        tops = {path.partition("/")[0] for path in files}
        for entry in os.scandir(folder):
            if entry.name not in tops:
                _remove(Path(entry.path))
        for top, _, names in os.walk(folder):
            for path in (Path(top, filename) for filename in names):
                ours = not path.stat().st_mode & 0o200
                if ours and str(path.relative_to(folder)) not in files:
                    path.unlink()
        for place, kept in files.items():
            _link(kept, folder / place)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """No other server touches the model's files meanwhile."""
        with (self._objects / f"{name}.lock").open("w") as lock:
            if not _locked(lock):
                _log.info("model %s: another server on this machine fetches it: waiting", name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            (self._objects / name).mkdir(exist_ok=True)
            yield

    def _prune(self, found: Iterable[str]) -> None:
        """Remove the models that the storage no longer has."""
        there = set(found)
        for folder in (*self._objects.iterdir(), *self.root.iterdir()):
            if folder.is_dir() and folder.name not in there:
                with (self._objects / f"{folder.name}.lock").open("w") as lock:
                    if _locked(lock):
                        _remove(folder)


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tensorgate"


def _own_tree(servers: Path) -> tuple[Path, IO[str]]:
    """The first tree that no running server has, and the lock that says so; those of servers that are gone go."""
    servers.mkdir(exist_ok=True)
    for number in count():
        lock = (servers / f"{number}.lock").open("w")
        if _locked(lock):
            break
        lock.close()
    for tree in servers.iterdir():
        if tree.is_dir() and tree.name != str(number):
            with (servers / f"{tree.name}.lock").open("w") as others:
                if _locked(others):
                    _remove(tree)
    own = servers / str(number)
    own.mkdir(exist_ok=True)
    return own, lock


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _missing(name: str) -> tuple[Mark]:
    return (layout.problem(f"{name}: no such folder in the model repository"),)


def _kept(path: Path) -> Listing:
    """The listing of an earlier start."""
    try:
        return Listing(tuple((str(file), int(state), int(size)) for file, state, size in json.loads(path.read_text())))
    except (OSError, ValueError) as error:
        return Listing((layout.problem(f"what was kept of it is damaged: {error}"),))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _link(kept: Path, path: Path) -> None:
    """Let `path` be `kept`, at once whatever it was before. A path of a folder makes that folder."""
    if kept.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.samefile(kept):
        return
    if path.is_dir():
        _remove(path)
    part = path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.part")
    part.unlink(missing_ok=True)
    part.hardlink_to(kept)
    part.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
