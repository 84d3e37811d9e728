"""How an HTTP/2 connection ends without losing a call (RFC 9113, 6.8)."""

from __future__ import annotations

from gateway.http2_frames import GOAWAY, MOST, NO_ERROR, PING, frame
from gateway.http2_outgoing import Outgoing

_LOOK_S = 0.01
"""How often to ask whether the last answer has left."""


class Departing(Outgoing):
    """The way out, to its end."""

    def __init__(self) -> None:
        super().__init__()
        self._latest = 0  # stream that the peer has opened
        self._leaving = False  # it has been told to go elsewhere
        self._left = False  # and with which stream it ends

    def close(self, number: int) -> None:
        """A stream is over."""
        self.streams.pop(number, None)
        self._waiting.pop(number, None)
        if self._left and not self.streams:
            self._finish_sent()

    def leave(self) -> None:
        """Have the peer open no further streams, and close when the last one is over.

        What it sends before it knows is served; then it is told which stream was the last (RFC 9113, 6.8).
        """
        if not self._leaving:
            self._leaving = True
            self._farewell(MOST, NO_ERROR)
            self.write(frame(PING, 0, 0, b"farewell"))  # its answer comes behind what the peer had already sent

    def _leave_now(self) -> None:
        """Say what the last stream was, now that no further one can come."""
        if not self._left:
            self._left = True
            self._farewell(self._latest, NO_ERROR)
            if not self.streams:
                self._finish_sent()

    def _farewell(self, latest: int, code: int, told: str = "") -> None:
        self.write(frame(GOAWAY, 0, 0, latest.to_bytes(4, "big") + code.to_bytes(4, "big") + told.encode()))

    def end(self) -> None:
        """Close as soon as what has been sent has left."""
        self._leave_now()
        self.finish()

    def finish(self) -> None:
        """Close behind what has been written."""
        self.flush()
        self._transport.close()

    def _finish_sent(self) -> None:
        """Close once everything has left; until then the peer is read, as it still grants windows."""
        self.flush()
        if self.unsent:
            self._loop.call_later(_LOOK_S, self._finish_sent)
        else:
            self.finish()
