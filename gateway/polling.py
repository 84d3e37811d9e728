"""What is loaded without being asked for: what changes in the repository, what waits for something elsewhere."""

from __future__ import annotations

import asyncio
import logging

from gateway.repository import Repository
from gateway.source import Source

_log = logging.getLogger(__name__)


_RETRY_S = 2.0
"""Between attempts to load what did not load for want of something elsewhere."""


async def retry(repository: Repository) -> None:
    """Load what waits for something elsewhere once that is there, for ever."""
    while True:
        await asyncio.sleep(_RETRY_S)
        await repository.load_each(repository.waiting())


async def follow(repository: Repository, source: Source, interval: float) -> None:
    """Load what is new or changed in `source`, unload what is gone, for ever.

    A change counts once two looks `interval` seconds apart agree on it, so that a copy under way is not loaded.
    """
    before = repository.loaded_from()
    loading: dict[str, asyncio.Task[None]] = {}
    away = False
    while True:
        await asyncio.sleep(interval)
        try:
            now = await source.fingerprints()
        except Exception as error:  # it may be a network mount or storage, away for a moment
            if not away:
                _log.warning("cannot follow the model repository: %s", error, exc_info=not isinstance(error, OSError))
            away = True
            continue
        if away:
            _log.info("the model repository can be followed again")
        away = False
        loading = {name: task for name, task in loading.items() if not task.done()}
        loaded = repository.loaded_from()
        for name in loaded.keys() - now.keys() - before.keys() - loading.keys():
            await repository.forget(name)
        for name, mark in now.items() - loaded.items():
            if before.get(name) == mark and name not in loading:  # one model's slow load holds up no other's
                loading[name] = asyncio.create_task(repository.load_each([name]))
        before = now
