"""A model's servers: which of them are well, and which one gets the next batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from math import inf
from threading import Condition, Event, Thread

from backends.base import LoadError, NotReachable, Signature
from gateway.errors import ModelNotReady
from gateway.remote.options import Options
from gateway.remote.reading import ServerReading
from gateway.remote.server import Server

_log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
"""Between two questions to a server whether it is ready."""

_GRACE_S = 1.0
"""How long after the last server was lost batches wait for one to come back; later they fail at once."""


class Fleet:
    """All servers of a model. Each is watched by a thread of its own, which ends when the fleet is closed.

    Args:
        name: the model's, for the log.
        options: which servers, and how they are asked.
    """

    def __init__(self, name: str, options: Options) -> None:
        self._name = name
        self._options = options
        self._servers = [Server(address, options.channel(address)) for address in options.addresses]
        self._changed = Condition()
        self._turns = count(1)
        self._lost_at = -inf
        self._signature: Signature | None = None
        self._looks = {server: Event() for server in self._servers}  # to look at it at once
        self._closed = False
        for server in self._servers:
            Thread(target=self._watch, args=(server,), name=f"{name} {server.address}", daemon=True).start()

    def __repr__(self) -> str:
        well = sum(not server.problem for server in self._servers)
        return f"<Fleet {self._name} servers={len(self._servers)} healthy={well}>"

    def signature(self) -> Signature:
        """What the first server to answer says that the model takes and gives.

        Raises:
            NotReachable: none is ready; the message says of each why.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._signature or all(server.probed for server in self._servers))
            if self._signature:
                return self._signature
            tried = "; ".join(f"{server.address}: {server.problem}" for server in self._servers)
        raise NotReachable(f"none of its servers can be used: {tried}")

    @contextmanager
    def chosen(self, avoid: Collection[Server], deadline: float) -> Iterator[Server]:
        """The server that is well and has the least to do, for one batch.

        Args:
            avoid: those that have failed on it, taken only if there is no other.
            deadline: until when one is waited for, if all have just been lost (`time.monotonic`).

        Raises:
            ModelNotReady: none is well.
        """
        server = self._choose(avoid, deadline)
        try:
            yield server
        finally:
            with self._changed:
                server.in_flight -= 1

    def _choose(self, avoid: Collection[Server], deadline: float) -> Server:
        with self._changed:
            while not (well := [server for server in self._servers if not server.problem]):
                left = min(deadline, self._lost_at + _GRACE_S) - time.monotonic()
                if left <= 0 or self._closed:
                    raise ModelNotReady("none of the servers that it runs on is ready: try again shortly")
                self._changed.wait(left)
            now = time.monotonic()
            best = min(well, key=lambda s: (s in avoid, s.rests_until > now, s.in_flight, s.turn))
            best.in_flight += 1
            best.calls += 1
            best.turn = next(self._turns)
            return best

    def answered(self, server: Server) -> None:
        """It has answered well, or as well as the request allowed."""
        with self._changed:
            server.in_a_row = 0
            server.answered = time.monotonic()

    def failed(self, server: Server, lost: str = "", *, rests: bool = True) -> None:
        """It has failed on a batch.

        Args:
            server: which.
            lost: why it is of no use until it says otherwise, if that is so.
            rests: whether it is passed over for a moment.
        """
        with self._changed:
            server.failures += 1
            if rests:
                server.rest(time.monotonic())
            if lost:
                server.failed = time.monotonic()
                self._note(server, lost)
                self._looks[server].set()

    @property
    def readings(self) -> list[ServerReading]:
        """Every server at this moment."""
        with self._changed:
            return [server.reading for server in self._servers]

    def close(self) -> None:
        """Ask nobody any more, and close the connections."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for server in self._servers:
            self._looks[server].set()
            server.channel.close()

    def _watch(self, server: Server) -> None:
        while not self._closed:
            began = time.monotonic()
            try:
                problem = server.probe(self._options) or self._admit(server)
            except Exception as error:  # the channel was closed meanwhile, or the server's answer is no message
                problem = f"{type(error).__name__}: {error}"
            with self._changed:
                server.probed = True
                if server.failed < began and not self._closed:  # else it has failed since it was asked
                    self._note(server, problem)
                self._changed.notify_all()
            if problem:
                server.connect(_INTERVAL_S)
            self._looks[server].wait(max(_INTERVAL_S + began - time.monotonic(), _INTERVAL_S / 10))
            self._looks[server].clear()

    def _admit(self, server: Server) -> str:
        """Why a server that says it is ready cannot be used, asked of one that was not in use."""
        if not server.problem:
            return ""
        try:
            signature = server.signature(self._options)
        except LoadError as error:
            return str(error)
        with self._changed:
            known = self._signature = self._signature or signature
        return "" if signature == known else f"its model differs from the others': {signature}, {known}"

    def _note(self, server: Server, problem: str) -> None:
        """Take over what is known of a server."""
        former, server.problem = server.problem, problem
        if problem and not former and all(other.problem for other in self._servers):
            self._lost_at = time.monotonic()
        if self._signature:  # else the model does not load, and that says it all
            for each in self._servers:
                self._tell(each)
        self._changed.notify_all()

    def _tell(self, server: Server) -> None:
        """Say in the log what has changed."""
        used = not server.problem
        if server.probed and server.told is not used:
            server.told = used
            level, how = (logging.INFO, "used") if used else (logging.WARNING, f"not used: {server.problem}")
            _log.log(level, "model %s: server %s is %s", self._name, server.address, how)
