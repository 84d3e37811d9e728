"""How the catalogue of served models changes: load, reload, unload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from backends.base import LoadError, NotReachable
from gateway import layout
from gateway.catalogue import UNLOADED, Catalogue, Entry, IndexRow, State, Version
from gateway.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, ModelNotReady, without_folders
from gateway.loader import Loader
from gateway.model_config import check, parse_json
from gateway.source import Source, StorageFailed

_log = logging.getLogger(__name__)

_LOADS_AT_ONCE = 4
_PATIENCE_S = 10.0


ReadyListener = Callable[[str, bool], Awaitable[None]]


class Repository:
    """All models of one source.

    Args:
        source: where they come from.
        loader: of versions.
        on_ready: told a model's name whenever it becomes ready or ceases to be.
    """

    def __init__(self, source: Source, loader: Loader, on_ready: ReadyListener) -> None:
        self._source = source
        self._loader = loader
        self._on_ready = on_ready
        self.catalogue = Catalogue()
        self._entries = self.catalogue.entries
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._load_slots = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._changing: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Repository {self.catalogue!r} changing={len(self._changing)} retiring={len(self._retiring)}>"

    async def index(self) -> list[IndexRow]:
        """Every version with its state and reason; models never loaded have only a name."""
        try:
            folders = await self._source.names()
        except OSError as error:  # a network mount or storage, away for a moment: what is loaded serves on
            _log.warning("cannot look through the model repository: %s", error)
            folders = []
        return self.catalogue.index(folders)

    async def announce(self, names: Iterable[str]) -> list[str]:
        """The models to load at start, '*' for all; from now on an early caller learns that they are loading."""
        wanted = set(names)
        if "*" in wanted:
            wanted |= set(await self._source.names())
        chosen = []
        for name in sorted(wanted - {"*"}):
            try:
                layout.check_name(name)
            except InvalidRequest as error:
                _log.error("%s", error)
                continue
            chosen.append(name)
            self._entries.setdefault(name, Entry())
            await self._on_ready(name, False)  # noqa: FBT003
        return chosen

    async def load_each(self, names: Iterable[str]) -> None:
        """Load several models; what fails is listed with its reason."""

        async def one(name: str) -> None:
            try:
                await self.load(name)
            except (ModelLoadFailed, ModelNotReady):  # logged, and listed by `index`
                pass
            except ModelNotFound:
                _log.error("model %s: no such folder in the model repository", name)

        await asyncio.gather(*(one(name) for name in names))

    async def load(self, name: str, config_override: str = "") -> None:
        """Load a model, or what has changed of it. Whatever served before serves until its successor is ready.

        A caller who leaves early does not stop it.

        Args:
            name: a folder of the repository.
            config_override: a configuration in JSON to use instead of config.pbtxt.

        Raises:
            ModelNotFound: there is no such folder.
            InvalidRequest: the name cannot be a folder's, or the configuration does not hold.
            ModelLoadFailed: the model or one of its versions does not load; the message has the reason.
            ModelNotReady: the server is going down.
        """
        layout.check_name(name)
        if config_override:
            _check_override(config_override, name)
        if name not in self._entries and not await self._source.has(name):
            raise ModelNotFound(name)
        await self._change(self._load_or_reload(name, config_override))

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Carry out a change to its end, also when the caller does not wait for it."""
        task = asyncio.create_task(change)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        if self._closed:
            task.cancel()
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ModelNotReady("the server is shutting down") from None
            raise

    async def _load_or_reload(self, name: str, config_override: str) -> None:
        async with self._locks[name], self._slot(name):
            entry = self._entries.setdefault(name, Entry())
            entry.reason = await self._load(entry, name, config_override)
            if entry.latest is None and not await self._source.has(name):
                del self._entries[name]
            await self._on_ready(name, entry.latest is not None)
        if name not in self._entries:
            raise ModelNotFound(name)
        if entry.reason:
            raise ModelLoadFailed(f"failed to load '{name}': {entry.reason}")

    @asynccontextmanager
    async def _slot(self, name: str) -> AsyncIterator[None]:
        """One of the loads at a time; a load that takes long no longer counts, lest a hanging one hold up the rest."""
        await self._load_slots.acquire()
        held = True

        def let_others_pass() -> None:
            nonlocal held
            held = False
            self._load_slots.release()
            _log.warning("model %s: still loading after %g s; others no longer wait for it", name, _PATIENCE_S)

        timer = asyncio.get_running_loop().call_later(_PATIENCE_S, let_others_pass)
        try:
            yield
        finally:
            timer.cancel()
            if held:
                self._load_slots.release()

    async def _load(self, entry: Entry, name: str, config_override: str) -> str:
        """Bring `entry` up to date with its folder; what went wrong, or ""."""
        entry.waits = False
        try:
            entry.fingerprint = await self._source.fingerprint(name)
            folder = await self._source.read(name, entry.fingerprint, config_override)
        except Exception as error:  # whatever one model brings about, the others are served
            if isinstance(error, StorageFailed):  # it may pass: whoever follows the source tries again
                entry.fingerprint = ()
            reason = _reason(error, self._source.root)
            for version in entry.versions.values():
                version.fail(reason)
            _log.error("model %s: %s", name, reason, exc_info=_unforeseen(error))
            return reason
        failures = [await self._load_version(entry, folder, number) for number in folder.versions]
        failed = any(failures)
        for number in set(entry.versions) - set(folder.versions):
            if not (failed and entry.versions[number].model):  # a broken new version does not end the old one's service
                self._replace(entry, number, None)
        return "; ".join(filter(None, failures))

    async def _load_version(self, entry: Entry, folder: layout.ModelFolder, number: int) -> str:
        """Load a version unless its files are what it was loaded from already; the reason if that fails, or ""."""
        fingerprint = folder.version_fingerprint(number)
        current = entry.versions.setdefault(number, Version())
        if current.model and not current.reason and current.fingerprint == fingerprint:
            return ""
        before = current.reason
        if not current.model:
            current.state, current.reason = State.LOADING, ""
        started = time.monotonic()
        try:
            model = await self._loader.load(folder, number)
        except Exception as error:
            current.fail(reason := _reason(error, self._source.root))
            entry.waits |= isinstance(error, NotReachable)
            if current.reason != before:  # said already: it is tried again and again
                _log.error("model %s version %d: %s", folder.name, number, current.reason, exc_info=_unforeseen(error))
            return f"version {number}: {reason}"
        model.stats.load_s = seconds = time.monotonic() - started
        _log.info("model %s version %d ready in %.1f s on %s", folder.name, number, seconds, model.config.backend)
        self._replace(entry, number, Version(State.READY, model=model, fingerprint=fingerprint))
        return ""

    def _replace(self, entry: Entry, number: int, successor: Version | None) -> asyncio.Task[None] | None:
        """Put `successor` in a version's place, or nothing; the former closes once its requests are through."""
        former = entry.replace(number, successor)
        if former is None:
            return None
        task = asyncio.create_task(former.aclose())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def unload(self, name: str) -> None:
        """Take a model out of service; requests under way finish, and this returns when they have.

        Raises:
            ModelNotFound: it was never loaded.
            ModelNotReady: the server is going down.
        """
        if name not in self._entries:
            raise ModelNotFound(name)
        await self._change(self._unload(name))

    async def _unload(self, name: str) -> None:
        async with self._locks[name]:
            entry = self._entries.get(name)
            if entry is None:
                raise ModelNotFound(name)
            retired = self._retire(name, entry)
            await self._on_ready(name, False)  # noqa: FBT003
        if retired:
            await asyncio.wait(retired)
            _log.info("model %s unloaded", name)
        for version in entry.versions.values():
            if version.state is State.UNLOADING:  # and not loaded again meanwhile
                version.state = State.UNAVAILABLE

    def _retire(self, name: str, entry: Entry) -> list[asyncio.Task[None]]:
        """Take every version out of service; the tasks that let their last requests finish."""
        entry.reason = ""
        if not entry.versions:
            del self._entries[name]
        retiring = [self._replace(entry, number, Version(State.UNLOADING, UNLOADED)) for number in list(entry.versions)]
        return [task for task in retiring if task]

    def loaded_from(self) -> dict[str, layout.Fingerprint]:
        """The fingerprint of every known model's folder when it was last loaded, or tried."""
        return {name: entry.fingerprint for name, entry in self._entries.items()}

    def waiting(self) -> list[str]:
        """The models that did not load for want of something elsewhere, which may be there later."""
        return [name for name, entry in self._entries.items() if entry.waits]

    async def forget(self, name: str) -> None:
        """Unload a model whose folder is gone, without waiting for its last requests."""
        if self._retire(name, self._entries[name]):
            _log.info("model %s unloaded: its folder is gone", name)
        self._entries.pop(name, None)
        await self._on_ready(name, False)  # noqa: FBT003

    def stop(self) -> None:
        """Give up loads under way and refuse further ones; hold no request back: the server is going down."""
        self._closed = True
        for task in self._changing:
            task.cancel()
        for model in self.catalogue.ready("", ""):
            model.flush()

    async def aclose(self) -> None:
        """Unload everything; returns when the last request is through."""
        self.stop()
        await asyncio.gather(*self._changing, return_exceptions=True)
        for name, entry in list(self._entries.items()):
            self._retire(name, entry)
        await asyncio.gather(*self._retiring)


def _reason(error: Exception, root: Path) -> str:
    return without_folders(str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}", root)


def _check_override(text: str, name: str) -> None:
    """Refuse a faulty configuration before it counts as a failure of the model."""
    try:
        check(parse_json(text), name)
    except LoadError as error:
        raise InvalidRequest(f"model '{name}': {error}") from error


def _unforeseen(error: Exception) -> Exception | None:
    """The error, if the log had better show where it came from."""
    return None if isinstance(error, LoadError) else error
