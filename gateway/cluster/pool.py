"""A model's actors together: which is least busy, and what to do when one is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from functools import partial

from backends.base import Array
from gateway.batch import Batch, Outputs
from gateway.cluster.actor import Actor, ActorLost, Handle, Task
from gateway.errors import DeadlineExceeded, ModelNotReady
from gateway.instances import ThreadInstance, Worker

PATIENCE_S = 30.0
"""How long batches wait for an actor while all of them are away. Ray itself takes 15 s to notice that a node is."""


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
        """End all actors that are left."""
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
