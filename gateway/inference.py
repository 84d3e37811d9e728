"""One request's way through a model: cache -> batcher -> backend, from its message to its serialized response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from gateway.batch import Outputs
from gateway.decode import decode_head, decode_tensors
from gateway.digest import question
from gateway.errors import InvalidRequest, NotOffered, RequestTooLarge, restated
from gateway.flight import Waiting
from gateway.job import Job
from gateway.message import Message
from gateway.request import Stages
from gateway.shared_tensors import SharedOutputs, fetch
from tensorgate_client import framing

if TYPE_CHECKING:
    from gateway.model import ServedModel

Told: TypeAlias = Callable[[bytes | Exception], None]
"""Takes a serialized ModelInferResponse, or what there is instead; called once, unless its caller has gone."""


class Inference:
    """A request that a model answers: its caller may cancel it, the batcher or the cache gives it the result.

    Args:
        model: that answers.
        stages: began when the message arrived.
        told: gets the answer, at once if it is known.

    Attributes:
        shared_bytes: of its inputs, if they came out of shared memory.
        key: of the response in the cache; empty where there is none that is all of the answer.
    """

    __slots__ = ("_job", "_model", "_request", "_shared", "_stages", "_told", "_waiting", "key", "shared_bytes")

    def __init__(self, model: ServedModel, stages: Stages, told: Told) -> None:
        self._model = model
        self._stages = stages
        self._told: Told | None = told
        self._job: Job | None = None
        self._waiting: Waiting | None = None
        self._shared: SharedOutputs | None = None
        self.key = b""
        self.shared_bytes = 0

    def begin(self, message: Message, deadline: float, *, windowed: bool) -> None:
        """Take a message up; whatever is wrong with it is its answer."""
        model = self._model
        try:
            head = model.heads.of(message)
            if head:
                request = head.decode_head(message, self._stages, deadline)
            else:
                request = decode_head(model, message, self._stages, deadline)
                if model.regions:
                    self._shared = fetch(model.regions, message, typed=request.typed)
                    self.shared_bytes = sum(map(len, message.parsed.raw)) if self._shared else 0
            request.windowed = windowed
            self._request = request
            if model.cache:
                asked = head.question(message) if head else question(message.parsed)
                key = model.cache.key(asked, typed=request.typed)
                self.key = b"" if self._shared else key
                self._waiting = model.cache.ask(key, request, partial(self._decode, message), self)
            else:
                self._decode(message)
                self._job = model.batcher.submit(request, self)
        except Exception as error:
            self.set_exception(error)

    def _decode(self, message: Message) -> None:
        if message.head:
            message.head.decode_tensors(message, self._request)
        else:
            decode_tensors(self._model, message, self._request)
            if not self._shared:  # its like would not be recognised: what it says of memory is resolved
                self._model.heads.learn(message, self._request)

    def done(self) -> bool:
        """Whether it has been answered, or nobody waits for it any more."""
        return self._told is None

    def set_result(self, outputs: Outputs) -> None:
        """Answer with what the model gave."""
        try:
            response = self._model.encoder.encode(self._request, outputs, self._request.id)
        except Exception as error:  # it cannot be sent
            self.set_exception(error)
            return
        self._stages.executed()
        self._answer(response)

    def set_response(self, response: bytes) -> None:
        """Answer with a response without an id, which the cache has kept."""
        if self._stages.outcome == "miss":
            self._stages.executed()
        self._answer(framing.append_id(response, self._request.id))

    def _answer(self, response: bytes) -> None:
        if self._shared:
            try:
                response = self._shared.deliver(response)
            except Exception as error:  # its memory is gone, or too small
                self.set_exception(error)
                return
        self._stages.encode = time.perf_counter_ns()
        self._model.stats.succeeded(self._stages)
        self._end(response)

    def set_exception(self, error: Exception) -> None:
        """Answer with what is wrong."""
        self._model.stats.failed(self._stages, error)
        if not isinstance(error, (InvalidRequest, NotOffered, RequestTooLarge)):  # these name the model themselves
            error = restated(error, f"model '{self._model.name}'")
        self._end(error)

    def cancel(self) -> None:
        """Its caller is gone: drop it if it waits, without disturbing anybody else."""
        if self._told is None:
            return
        self._model.stats.failed(self._stages, asyncio.CancelledError())
        if self._job:
            self._model.batcher.discard(self._job)
        elif self._waiting:
            self._waiting.leave()
        self._told = self._job = self._waiting = None

    def _end(self, answer: bytes | Exception) -> None:
        told, self._told = self._told, None
        self._job = self._waiting = None  # these know it, too: a cycle that would wait for the garbage collector
        if told:
            told(answer)
