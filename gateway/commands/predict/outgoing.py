"""The requests of a run in the order of their rows, and those among them that are not answered yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Any

from gateway.commands.predict.rows import Block, Request

_UNANSWERED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that is on its way; without one, the end of a block."""

    block: Block
    request: Request | None


class Outgoing:
    """Taken by a stream's thread and struck off by ours; where a stream breaks, another one goes on.

    Args:
        blocks: with the rows.
        size: most rows of a request.
        most_bytes: of a request, unless a single row has more.
    """

    def __init__(self, blocks: Iterable[Block], size: int, most_bytes: int) -> None:
        self._source = _cut(blocks, size, most_bytes)
        self._sent: deque[Sent] = deque()
        self._reading = Lock()
        self._room = Condition()
        self._waiting = False
        self._taken_bytes = 0  # each of the two has one thread that writes it: they need no lock
        self._answered_bytes = 0
        self._stream = 0
        self.exhausted = False

    def __repr__(self) -> str:
        return f"<Outgoing unanswered={len(self._sent)} exhausted={self.exhausted}>"

    def requests(self) -> Iterator[Mapping[str, Any]]:
        """What to send on a new stream; if they are large, few at a time, whatever the stream's window."""
        with self._reading:
            self._stream += 1
        return self._follow(self._stream)

    def _follow(self, stream: int) -> Iterator[Mapping[str, Any]]:
        while (sent := self._next(stream)) and sent.request:
            yield sent.block.inputs(sent.request.rows)

    def _next(self, stream: int) -> Sent | None:
        if self._full():
            with self._room:
                self._waiting = True
                self._room.wait_for(lambda: not self._full() or stream != self._stream)
                self._waiting = False
        with self._reading:
            while stream == self._stream:
                sent = next(self._source, None)
                if sent is None:
                    self.exhausted = True
                    return None
                self._sent.append(sent)
                if sent.request:
                    self._taken_bytes += sent.request.bytes
                    return sent
        return None

    def _full(self) -> bool:
        return self._taken_bytes - self._answered_bytes >= _UNANSWERED_BYTES

    def stop(self) -> None:
        """The stream that took requests takes no more."""
        with self._reading, self._room:
            self._stream += 1
            self._room.notify_all()

    def strike(self) -> Sent | None:
        """The first that is not answered, now answered; None if there is none."""
        if not self._sent:
            return None
        sent = self._sent.popleft()
        if sent.request:
            self._answered_bytes += sent.request.bytes
            if self._waiting:
                with self._room:
                    self._room.notify_all()
        return sent


def _cut(blocks: Iterable[Block], size: int, most_bytes: int) -> Iterator[Sent]:
    for block in blocks:
        for request in block.requests(size, most_bytes):
            yield Sent(block, request)
        yield Sent(block, None)
