"""One actor, as the gateway sees it: kept loaded wherever Ray has it, and known to be away while it is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from backends.base import Array, InvalidInput, LoadError
from gateway import VERSION
from gateway.cluster.process import Fault, Loaded, Place

_log = logging.getLogger(__name__)

Handle: TypeAlias = Any
"""Of a `ModelActor`; what Ray makes of a class has no useful type."""

_LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""What Ray raises when a process or a node has ended, its outputs with it."""

_PLACING_S, _TELLING_S = 60.0, 10.0
"""How long a new actor waits for a node with room for it, and how often the log says so."""

_LOOK_S, _AGAIN_S, _ELSEWHERE_S = 1.0, 0.1, 5.0
_CLOSE_S = 5.0


class ActorLost(Exception):
    """The actor's process, or its node, ended while it executed a batch."""


class ActorFailed(Exception):
    """The model's exception, with where it happened and the traceback from there."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a model's actors are for.

    Attributes:
        load: has one of them load the model; what Ray gives for the call.
        needs: what a node must have for it, in words.
    """

    load: Callable[[Handle], Any]
    needs: str


class Actor:
    """One actor, wherever Ray has it; a thread here loads its model, and again whenever it comes back.

    Args:
        name: for logs and traces.
        handle: Ray's.
        task: what it is for.
        changed: notified whenever it comes or goes; its lock guards the attributes.

    Attributes:
        loaded: what its model is like, once it is known; a LoadError if it does not load.
        node: where it is; "" while it is away.
        in_flight: batches that it has been given.
        life: counts how often it has come.
        left: when it last went away, by `time.perf_counter`.
    """

    def __init__(self, name: str, handle: Handle, task: Task, changed: threading.Condition) -> None:
        self.name = name
        self.loaded: Future[Loaded] = Future()
        self.node = ""
        self.in_flight = 0
        self.life = 0
        self.left = 0.0
        self._handle = handle
        self._task = task
        self._changed = changed
        self._closed = threading.Event()
        threading.Thread(target=self._keep, name=f"{name} keeper", daemon=True).start()

    def __repr__(self) -> str:
        return f"<Actor {self.name!r} on {self.node or 'no node'} in_flight={self.in_flight}>"

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """As `backends.base.Instance.execute`.

        Raises:
            ActorLost: it ended meanwhile; it may have executed the batch.
            InvalidInput: the caller's data is at fault.
            ActorFailed: the model is.
        """
        life, node = self.life, self.node
        try:
            outputs: dict[str, Array] | Fault | None = ray.get(self._handle.execute.remote(inputs))
        except _LOST as error:
            self._away(life)
            raise ActorLost(f"{self.name} on {node}: {_first_line(error)}") from error
        if outputs is None:
            self._away(life)
            raise ActorLost(f"{self.name} on {node} has started again")
        if isinstance(outputs, Fault):
            raise InvalidInput(outputs.text) if outputs.refused else ActorFailed(f"on {node}\n{outputs.trace}")
        return outputs

    def close(self) -> None:
        """Let the model free what it holds, and end the process; once is enough."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        with suppress(RayError, GetTimeoutError):
            if self.node:
                ray.get(self._handle.close.remote(), timeout=_CLOSE_S)
        self.node = ""
        ray.kill(self._handle)

    def _keep(self) -> None:
        """Load the model and watch the process, over and over: Ray starts it anew whenever it ends."""
        try:
            self._wait_for_room()
            place, loaded = self._load()
        except Exception as error:  # whatever is wrong, somebody waits for it
            by_ray = isinstance(error, RayError)
            self.loaded.set_exception(LoadError(f"no actor: {_explained(error)}") if by_ray else error)
            return
        for level, message in loaded.log:
            _log.log(level, "%s", message)
        self._come(place)
        self.loaded.set_result(loaded)
        while self._stay():
            _log.warning("%s is away: Ray starts it again where there is room", self.name)
            if back := self._again():
                self._come(back)
                _log.info("%s is back after %.1f s, on %s", self.name, time.perf_counter() - self.left, back.node)

    def _wait_for_room(self) -> None:
        answer = self._handle.place.remote()
        began = time.monotonic()
        while not ray.wait([answer], timeout=_TELLING_S)[0]:
            free = resources(ray.available_resources())
            lack = f"no node of the cluster has {self._task.needs} free for {self.name}; all together have {free}"
            if self._closed.is_set() or time.monotonic() - began > _PLACING_S:
                raise LoadError(lack)
            _log.warning("%s; waiting for one", lack)

    def _load(self) -> tuple[Place, Loaded]:
        """Where it is, and what it has loaded there."""
        place: Place = ray.get(self._handle.place.remote())
        if place.version != VERSION:
            raise LoadError(
                f"{place.node} has tensorgate {place.version}, this gateway {VERSION}: install the same one"
            )
        loaded: Loaded | Fault = ray.get(self._task.load(self._handle))
        if isinstance(loaded, Loaded):
            return place, loaded
        if not loaded.refused:
            _log.error("%s does not load on %s\n%s", self.name, place.node, loaded.trace)
        raise LoadError(loaded.text)

    def _again(self) -> Place | None:
        """Where it is, loaded, after it was away; None if it is closed meanwhile."""
        while not self._closed.is_set():
            try:
                return self._load()[0]
            except LoadError as error:
                _log.error("%s came back where it does not load, and is moved on: %s", self.name, error)
                self._closed.wait(_ELSEWHERE_S)
                with suppress(RayError):
                    ray.kill(self._handle, no_restart=False)
            except Exception as error:  # not there yet
                _log.debug("%s is not there: %s", self.name, _first_line(error))
                self._closed.wait(_AGAIN_S)
        return None

    def _stay(self) -> bool:
        """Wait until the process is lost; whether it is to be waited for."""
        watch = self._handle.watch.options(concurrency_group="watch").remote()
        while self.node and not self._closed.is_set() and not ray.wait([watch], timeout=_LOOK_S)[0]:
            pass
        if self._closed.is_set():
            return False
        self._away(self.life)
        return True

    def _come(self, place: Place) -> None:
        with self._changed:
            self.node, self.life = place.node, self.life + 1
            self._changed.notify_all()

    def _away(self, life: int) -> None:
        """Note that it is gone, unless it has come back since."""
        with self._changed:
            if life == self.life and self.node:
                self.node, self.left = "", time.perf_counter()
                self._changed.notify_all()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def resources(amounts: Mapping[str, float]) -> str:
    """Processors and GPUs in words: "4 CPU, 0 GPU"."""
    return ", ".join(f"{amounts.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))


def _explained(error: Exception) -> str:
    """What Ray says of an actor that cannot be made, in a line."""
    text = str(error)
    if "No module named 'gateway" in text or "No module named 'backends" in text:
        return f"a node has no tensorgate: install version {VERSION} on every node, for the Python that Ray runs on"
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
