"""Messages whose responses are kept: one that comes again, byte for byte, is answered without being read.

That takes so little that a transport may do it on a thread of its own, before the event loop hears of the message.
"""

from __future__ import annotations

import time
from typing import TypeAlias

from gateway.errors import GatewayError
from gateway.message import Message
from gateway.model import FindModel, ServedModel

_Known: TypeAlias = tuple[str, str, bytes, int]
"""Model and version as the message names them, the response's key, and the load that it is of."""

_LONGEST = 4096
"""Bytes of a message: longer ones cost more to look up than to read."""

_MOST = 1024


class Repeats:
    """The latest messages that the cache has answered, of callers who give their requests no ids.

    Args:
        find: model by name and version.
    """

    def __init__(self, find: FindModel) -> None:
        self._find = find
        self._known: dict[bytes, _Known] = {}

    def __repr__(self) -> str:
        return f"<Repeats {len(self._known)}>"

    def answer(self, data: bytes) -> bytes | None:
        """The response to a message, if its model is still the one that gave it, and still keeps it.

        One thread at a time may ask, whichever it is; all else belongs to the event loop.
        """
        known = self._known.get(data) if self._known and len(data) <= _LONGEST else None
        if known is None:
            return None
        received = time.perf_counter_ns()
        name, version, key, generation = known
        try:
            model = self._find(name, version)
        except GatewayError:  # unloaded, or the server is going down: the usual way says so
            return None
        response = model.cache.kept(key) if model.cache and model.cache.generation == generation else None
        if response is None:
            self._known.pop(data, None)
            return None
        model.stats.repeats.add(time.perf_counter_ns() - received)
        return response

    def learn(self, message: Message, model: ServedModel, key: bytes) -> None:
        """Remember a message that the cache has answered."""
        if model.cache is None or message.id or len(message.data) > _LONGEST:
            return
        if len(self._known) >= _MOST:  # of endlessly many, none is worth more than another
            self._known.clear()
        self._known[message.data] = message.name, message.version, key, model.cache.generation
