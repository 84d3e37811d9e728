"""Control mode `poll`: the served models follow the repository's folder."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from gateway import layout
from gateway.repository import Repository

_log = logging.getLogger(__name__)


async def follow(repository: Repository, root: Path, interval: float) -> None:
    """Load what is new or changed in `root`, unload what is gone, for ever.

    A change counts once two looks `interval` seconds apart agree on it, so that a copy under way is not loaded.
    """
    before = repository.loaded_from()
    while True:
        await asyncio.sleep(interval)
        try:
            now = await asyncio.to_thread(layout.fingerprints, root)
            await _apply(repository, before, now)
            before = now
        except Exception as error:  # the folder may be a network mount, away for a moment
            _log.warning("cannot follow the model repository: %s", error, exc_info=not isinstance(error, OSError))


async def _apply(
    repository: Repository, before: dict[str, layout.Fingerprint], now: dict[str, layout.Fingerprint]
) -> None:
    loaded = repository.loaded_from()
    for name in loaded.keys() - now.keys() - before.keys():
        await repository.forget(name)
    settled = (name for name, mark in now.items() if before.get(name) == mark)
    await repository.load_each(name for name in settled if loaded.get(name) != now[name])
