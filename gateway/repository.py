"""The models being served: load, reload, unload, and what became of each version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from backends.base import LoadError
from backends.registry import Registry
from gateway import layout
from gateway.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, ModelNotReady
from gateway.model import ServedModel, load

_log = logging.getLogger(__name__)

_LOADS_AT_ONCE = 4


class State(StrEnum):
    """What RepositoryIndex says of a version; Triton's words."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True)
class Version:
    """A version's state; `model` is what serves it, also while its successor loads or has failed to."""

    state: State = State.LOADING
    reason: str = ""
    model: ServedModel | None = None
    fingerprint: layout.Fingerprint = ()


@dataclass(slots=True)
class Entry:
    """A model's versions, the files they were last loaded from, and what is wrong with the model as a whole."""

    versions: dict[int, Version] = field(default_factory=dict)
    fingerprint: layout.Fingerprint = ()
    reason: str = ""
    latest: ServedModel | None = None


ReadyListener = Callable[[str, bool], Awaitable[None]]


class Repository:
    """All models of one folder.

    Args:
        root: the folder.
        registry: the backends.
        default_max_batch_size: rows, for a batching model that names no limit.
        on_ready: told a model's name whenever it becomes ready or ceases to be.
    """

    def __init__(self, root: Path, registry: Registry, default_max_batch_size: int, on_ready: ReadyListener) -> None:
        self._root = root
        self._registry = registry
        self._default_max_batch_size = default_max_batch_size
        self._on_ready = on_ready
        self._entries: dict[str, Entry] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._load_slots = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._retiring: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        ready = sum(entry.latest is not None for entry in self._entries.values())
        return f"<Repository models={len(self._entries)} ready={ready} retiring={len(self._retiring)}>"

    def summary(self) -> str:
        """How many models serve and which do not, in a line."""
        failed = [name for name, entry in sorted(self._entries.items()) if entry.reason]
        ready = sum(entry.latest is not None for entry in self._entries.values())
        return f"{ready} models ready" + (f", {len(failed)} with errors: {', '.join(failed)}" if failed else "")

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model that answers for a name and version; the latest ready version if none is given.

        Raises:
            ModelNotFound: there is none.
            ModelNotReady: there is, but it is loading, failed to load or was unloaded just now.
            InvalidRequest: the name is empty or the version is no number.
        """
        entry = self._entries.get(name)
        if entry is None:
            if not name:
                raise InvalidRequest("model_name is empty: name the model to call")
            raise ModelNotFound(name, version)
        if not version:
            if entry.latest is None:
                raise self._unavailable(name, "", list(entry.versions.values()))
            return entry.latest
        if not (version.isdecimal() and version.isascii()):
            raise InvalidRequest(f"model '{name}': version '{version}' is not a number; leave it empty for the latest")
        known = entry.versions.get(int(version)) if len(version) < 19 else None
        if known is None:
            raise ModelNotFound(name, version)
        if known.model is None:
            raise self._unavailable(name, version, [known])
        return known.model

    def _unavailable(self, name: str, number: str, versions: list[Version]) -> ModelNotFound | ModelNotReady:
        if versions and all(version.reason == _UNLOADED for version in versions):
            return ModelNotFound(name, number)
        subject = f"model '{name}'" + (f" version {number}" if number else "")
        if self._entries[name].reason or any(version.state is State.UNAVAILABLE for version in versions):
            return ModelNotReady(f"{subject} failed to load: RepositoryIndex and the server's log have the reason")
        return ModelNotReady(f"{subject} is loading: try again shortly")

    def ready_versions(self, name: str) -> list[str]:
        """The versions of a model that answer requests, ascending."""
        versions = self._entries[name].versions
        return [str(number) for number, version in sorted(versions.items()) if version.model]

    def index(self) -> list[tuple[str, str, str, str]]:
        """Name, version, state and reason of every version; models never loaded have only a name."""
        rows = []
        for name in sorted({*self._entries, *layout.model_names(self._root)}):
            entry = self._entries.get(name, Entry())
            if not entry.versions:
                known = State.UNAVAILABLE if entry.reason else State.LOADING
                rows.append((name, "", known if name in self._entries else "", entry.reason))
            for number, version in sorted(entry.versions.items()):
                rows.append((name, str(number), version.state, version.reason))
        return rows

    async def load_all(self) -> None:
        """Load every model of the folder; what fails is listed with its reason."""
        await self._load_each(layout.model_names(self._root))

    async def load_named(self, names: Iterable[str]) -> None:
        """Load some models at start, '*' for all of them; what fails is listed with its reason."""
        wanted = set(names)
        if "*" in wanted:
            wanted |= set(layout.model_names(self._root))
        await self._load_each(sorted(wanted - {"*"}))

    async def _load_each(self, names: Iterable[str]) -> None:
        async def one(name: str) -> None:
            with suppress(ModelLoadFailed, ModelNotFound, InvalidRequest):  # logged, and listed by `index`
                await self.load(name)

        names = list(names)
        for name in names:  # known from here on: a caller who is early learns that it loads
            self._entries.setdefault(name, Entry())
        await asyncio.gather(*(one(name) for name in names))

    async def load(self, name: str, config_override: str = "") -> None:
        """Load a model, or what has changed of it. Whatever served before serves until its successor is ready.

        Args:
            name: a folder of the repository.
            config_override: a configuration in JSON to use instead of config.pbtxt.

        Raises:
            ModelNotFound: there is no such folder.
            InvalidRequest: the name cannot be a folder's.
            ModelLoadFailed: the model or one of its versions does not load; the message has the reason.
        """
        layout.check_name(name)
        async with self._locks[name], self._load_slots:
            if not (self._root / name).is_dir():
                self._entries.pop(name, None)
                _log.error("model %s: no such folder in the model repository", name)
                raise ModelNotFound(name)
            entry = self._entries.setdefault(name, Entry())
            try:
                entry.reason = await self._load(entry, name, config_override)
            except Exception as error:  # whatever one model brings about, the others are served
                _log.exception("model %s", name)
                entry.reason = f"{type(error).__name__}: {error}"
            await self._on_ready(name, entry.latest is not None)
        if entry.reason:
            raise ModelLoadFailed(f"failed to load '{name}': {entry.reason}")

    async def _load(self, entry: Entry, name: str, config_override: str) -> str:
        """Bring `entry` up to date with its folder; what went wrong, or ""."""
        entry.fingerprint = await asyncio.to_thread(layout.fingerprint, self._root, name)
        try:
            folder = await asyncio.to_thread(layout.read, self._root, name, entry.fingerprint, config_override)
        except (LoadError, OSError) as error:
            _log.error("model %s: %s", name, error)
            return str(error)
        failures = [await self._load_version(entry, folder, number) for number in folder.versions]
        for number in set(entry.versions) - set(folder.versions):
            self._replace(entry, number, None)
        return "; ".join(filter(None, failures))

    async def _load_version(self, entry: Entry, folder: layout.ModelFolder, number: int) -> str:
        """Load a version unless its files are what it was loaded from already; the reason if that fails, or ""."""
        fingerprint = folder.version_fingerprint(number)
        current = entry.versions.setdefault(number, Version())
        if current.model and not current.reason and current.fingerprint == fingerprint:
            return ""
        current.state = State.READY if current.model else State.LOADING
        started = time.monotonic()
        try:
            model = await load(folder, number, self._registry, self._default_max_batch_size)
        except LoadError as error:
            current.reason = f"reload failed, the former one serves on: {error}" if current.model else str(error)
            current.state = State.READY if current.model else State.UNAVAILABLE
            _log.error("model %s version %d: %s", folder.name, number, current.reason)
            return f"version {number}: {error}"
        seconds = time.monotonic() - started
        _log.info("model %s version %d ready in %.1f s on %s", folder.name, number, seconds, model.config.backend)
        self._replace(entry, number, Version(State.READY, model=model, fingerprint=fingerprint))
        return ""

    def _replace(self, entry: Entry, number: int, successor: Version | None) -> asyncio.Task[None] | None:
        """Put `successor` in a version's place, or nothing; the former closes once its requests are through."""
        former = entry.versions.pop(number, Version())
        if successor is not None:
            entry.versions[number] = successor
        ready = [number for number, version in entry.versions.items() if version.model]
        entry.latest = entry.versions[max(ready)].model if ready else None
        if former.model is None:
            return None
        task = asyncio.create_task(former.model.aclose())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def unload(self, name: str) -> None:
        """Take a model out of service; requests under way finish, and this returns when they have.

        Raises:
            ModelNotFound: it was never loaded.
        """
        async with self._locks[name]:
            entry = self._entries.get(name)
            if entry is None:
                raise ModelNotFound(name)
            retired = [
                self._replace(entry, number, Version(State.UNAVAILABLE, _UNLOADED)) for number in list(entry.versions)
            ]
            entry.reason = ""
            await self._on_ready(name, False)  # noqa: FBT003
        await asyncio.gather(*filter(None, retired))
        if any(retired):
            _log.info("model %s unloaded", name)

    async def poll(self, interval: float) -> None:
        """Follow the folder for ever: load what is new or changed, unload what is gone.

        A change counts once two looks `interval` seconds apart agree on it, so that a copy under way is not loaded.
        """
        seen: dict[str, layout.Fingerprint] = {}
        while True:
            await asyncio.sleep(interval)
            try:
                now = await asyncio.to_thread(layout.fingerprints, self._root)
            except OSError as error:  # the folder may be a network mount
                _log.warning("cannot look through the model repository: %s", error)
                continue
            for name in set(self._entries) - set(now):
                await self.unload(name)
                self._entries.pop(name, None)
            settled = [name for name, mark in now.items() if seen.get(name) == mark]
            await self._load_each(name for name in settled if self._changed(name, now[name]))
            seen = now

    def _changed(self, name: str, fingerprint: layout.Fingerprint) -> bool:
        entry = self._entries.get(name)
        return entry is None or entry.fingerprint != fingerprint

    async def aclose(self) -> None:
        """Unload everything; returns when the last request is through."""
        await asyncio.gather(*(self.unload(name) for name in list(self._entries)))
        await asyncio.gather(*self._retiring)


_UNLOADED = "unloaded"
