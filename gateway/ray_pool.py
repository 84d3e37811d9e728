"""A model's actors, as the gateway sees them: which are there, which is least busy, what to do when one is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from backends.base import Array, InvalidInput, LoadError
from gateway import VERSION
from gateway.batch import Batch, Outputs
from gateway.errors import DeadlineExceeded, ModelNotReady
from gateway.instances import ThreadInstance, Worker
from gateway.ray_actor import Fault, Loaded, Place

_log = logging.getLogger(__name__)

Handle: TypeAlias = Any
"""Of a `ModelActor`; what Ray makes of a class has no useful type."""

PATIENCE_S = 30.0
"""How long batches wait for an actor while all of them are away. Ray itself takes 15 s to notice that a node is."""

_PLACING_S, _TELLING_S = 60.0, 10.0
"""How long a new actor waits for a node with room for it, and how often the log says so."""

_LOOK_S = 1.0
_AGAIN_S, _RELOAD_S = 0.1, 5.0
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
        except RayActorError as error:
            self._away(life)
            raise ActorLost(f"{self.name} on {node}: {_first_line(error)}") from error
        if outputs is None:
            self._away(life)
            raise ActorLost(f"{self.name} on {node} has started again")
        if isinstance(outputs, Fault):
            raise InvalidInput(outputs.text) if outputs.refused else ActorFailed(f"on {node}\n{outputs.trace}")
        return outputs

    def close(self) -> None:
        """Let the model free what it holds, and end the process."""
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
            place, loaded = self._first()
        except Exception as error:  # whatever is wrong, somebody waits for it
            self.loaded.set_exception(error)
            return
        self._come(place)
        self.loaded.set_result(loaded)
        while self._stay():
            _log.warning("%s is away: Ray starts it again where there is room", self.name)
            if not (back := self._again()):
                return
            self._come(back)
            _log.info("%s is back after %.1f s, on %s", self.name, time.perf_counter() - self.left, back.node)

    def _first(self) -> tuple[Place, Loaded]:
        try:
            place = self._placed()
            if place.version != VERSION:
                raise LoadError(
                    f"{place.node} has tensorgate {place.version}, this gateway {VERSION}: install one version"
                )
            loaded = ray.get(self._task.load(self._handle))
        except RayError as error:
            raise LoadError(f"no actor: {_explained(error)}") from error
        if isinstance(loaded, Fault):
            if not loaded.refused:
                _log.error("%s does not load on %s\n%s", self.name, place.node, loaded.trace)
            raise LoadError(loaded.text)
        for level, message in loaded.log:
            _log.log(level, "%s", message)
        return place, loaded

    def _placed(self) -> Place:
        """Where Ray has found room for it."""
        answer = self._handle.place.remote()
        began = time.monotonic()
        while not ray.wait([answer], timeout=_TELLING_S)[0]:
            free = resources(ray.available_resources())
            wanted = (
                f"no node of the cluster has {self._task.needs} free for {self.name}: all of them together have {free}"
            )
            if self._closed.is_set() or time.monotonic() - began > _PLACING_S:
                raise LoadError(wanted)
            _log.warning("%s; waiting for one", wanted)
        place: Place = ray.get(answer)
        return place

    def _again(self) -> Place | None:
        """Where it is, loaded, after it was away; None if it is closed meanwhile."""
        while not self._closed.is_set():
            try:
                loaded = ray.get(self._task.load(self._handle))
                place: Place = ray.get(self._handle.place.remote())
                if isinstance(loaded, Loaded):
                    return place
                _log.error("%s does not load on %s and is moved: %s\n%s", self.name, place.node, *_told(loaded))
                self._closed.wait(_RELOAD_S)
                ray.kill(self._handle, no_restart=False)
            except RayError:  # not there yet
                self._closed.wait(_AGAIN_S)
        return None

    def _stay(self) -> bool:
        """Wait until the process is lost; whether it is to be waited for."""
        watch = self._handle.watch.options(concurrency_group="watch").remote()
        while self.node and not self._closed.is_set() and not ray.wait([watch], timeout=_LOOK_S)[0]:
            pass
        self._away(self.life)
        return not self._closed.is_set()

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


class Pool:
    """A model's actors on one kind of device.

    Args:
        name: the model's, with its version.
        handles: Ray's, of actors that have just been made.
        task: what they are for.

    Attributes:
        repeatable: whether a batch whose actor was lost may be executed again.
    """

    def __init__(self, name: str, handles: Iterable[Handle], task: Task) -> None:
        self._changed = threading.Condition()
        self.repeatable = False
        self.actors = [Actor(f"{name}#{index}", handle, task, self._changed) for index, handle in enumerate(handles)]

    def __repr__(self) -> str:
        return f"<Pool {self.actors}>"

    def close(self) -> None:
        """End all actors, for a model that nobody serves."""
        for actor in self.actors:
            actor.close()

    def execute(self, batch: Batch, own: Actor, inputs: dict[str, Array]) -> Outputs:
        """Execute on the least busy actor, `own` if there is a choice.

        Raises:
            ActorLost: it ended meanwhile. A batch of several is then up to the batcher, which tries them apart: one of
                them may be what ends processes. So may a request that was alone, and lost two.
            ModelNotReady: the same, for a model whose batches must not be repeated; or no actor came back in time.
            DeadlineExceeded: nor before the last caller's deadline.
            Exception: as `Actor.execute`.
        """
        deadline = max(request.deadline for request in batch.requests)
        again = self.repeatable and len(batch.requests) == 1
        while True:
            actor = self._take(own, deadline)
            batch.execution.instance = f"{actor.name} on {actor.node}"
            try:
                return actor.execute(inputs)
            except ActorLost as error:
                if not self.repeatable:
                    raise ModelNotReady(
                        "the process that executed the request ended: it may or may not have been executed"
                    ) from error
                if not again:
                    raise
                again = False
            finally:
                with self._changed:
                    actor.in_flight -= 1

    def _take(self, own: Actor, deadline: float) -> Actor:
        with self._changed:
            while not (there := [actor for actor in self.actors if actor.node]):
                now, patience = time.perf_counter(), max(actor.left for actor in self.actors) + PATIENCE_S
                if now >= deadline:
                    raise DeadlineExceeded("not executed in time: all actors of the model are away")
                if now >= patience:
                    raise ModelNotReady(f"all actors of the model have been away for {PATIENCE_S:g} s")
                self._changed.wait(min(deadline, patience) - now)
            actor = min(there, key=lambda actor: (actor.in_flight, actor is not own))
            actor.in_flight += 1
            return actor


class RayInstance(ThreadInstance):
    """An actor's place in the batcher: a thread that sends whole batches to the least busy actor of the pool."""

    def __init__(self, worker: Worker, actor: Actor, pool: Pool) -> None:
        super().__init__(worker, actor)
        self._actor = actor
        self._pool = pool

    @property
    def available(self) -> bool:
        """Whether the actor is there."""
        return bool(self._actor.node)

    def run_here(self, batch: Batch) -> list[Outputs]:
        """As `Instance.run_here`."""
        return batch.run(partial(self._pool.execute, batch, self._actor), self._workspace, self.worker.name)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _told(fault: Fault) -> tuple[str, str]:
    return fault.text, "" if fault.refused else fault.trace


def resources(amounts: Mapping[str, float]) -> str:
    """Processors and GPUs in words: "4 CPU, 0 GPU"."""
    return ", ".join(f"{amounts.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))


def _explained(error: Exception) -> str:
    """What Ray says of an actor that cannot be made, in a line."""
    text = str(error)
    if "No module named 'gateway" in text or "No module named 'backends" in text:
        return f"a node has no tensorgate: install version {VERSION} on every node, for the Python that Ray runs on"
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
