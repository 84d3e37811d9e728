"""One ModelInfer call, from its bytes to its answer."""

from __future__ import annotations

import logging
from typing import Self

from gateway.errors import let_go
from gateway.inference import Inference
from gateway.logs import about
from gateway.message import UNREADABLE, read
from gateway.model import FindModel, ServedModel
from gateway.observing import Observer
from gateway.repeats import Repeats
from gateway.request import Stages
from gateway.state import ServerState
from gateway.status import CANCELLED, Status, status_of
from gateway.tracing import CallTrace
from gateway.transport import Answer

log = logging.getLogger(__name__)

RPC = "ModelInfer"


class UnaryCall:
    """A call of ModelInfer; its transport may cancel it.

    Args:
        state: of the server.
        observer: told of it, if there is a trace.
        answer: takes what the caller gets.
        repeats: told of what the cache has answered.

    Attributes:
        stages: begin now.
        trace: what is kept of it, if anybody wants to know.
    """

    __slots__ = ("_answer", "_inference", "_message", "_model", "_observer", "_repeats", "_state", "stages", "trace")

    def __init__(self, state: ServerState, observer: Observer, answer: Answer, repeats: Repeats) -> None:
        self._state = state
        self._observer = observer
        self._repeats = repeats
        self._answer: Answer | None = answer
        self._message = UNREADABLE
        self._model: ServedModel | None = None
        self._inference: Inference | None = None
        self.stages = Stages()
        self.trace: CallTrace | None = None

    def begin(self, data: bytes, deadline: float, find: FindModel) -> Self | None:
        """Take the call up; itself if it is not answered yet.

        Args:
            data: a serialized ModelInferRequest.
            deadline: when the caller stops waiting (`time.perf_counter`).
            find: model by name and version; may raise errors.
        """
        self._state.enter()
        try:
            message = self._message = read(data)
            if self.trace:
                self.trace.name(message.name, message.version, message.id)
                self._observer.begin(self.trace)
            model = self._model = find(message.name, message.version)
            if self.trace:
                self.trace.version, self.trace.backend = model.described
        except Exception as error:  # the table is total: nothing but a status reaches the caller
            self._told(error)
            return None
        self._inference = model.infer(message, self.stages, self._told, deadline)
        if self._answer:
            return self
        if self.stages.outcome == "hit" and self._inference.key:
            self._repeats.learn(message, model, self._inference.key)
        return None

    def _told(self, result: bytes | Exception) -> None:
        if isinstance(result, Exception):
            status = status_of(result, RPC, **self._about())
            let_go(result)
            self._end(status)
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", self.stages, extra=about(**self._about(), rpc=RPC))
        self._end(result)

    def cancel(self) -> None:
        """As `transport.Pending.cancel`."""
        if self._answer:
            self._answer = None
            if self._inference:
                self._inference.cancel()
            self._end(CANCELLED)

    def _end(self, result: bytes | Status) -> None:
        self._state.leave()
        answer, self._answer = self._answer, None
        self._inference = None
        if answer:
            answer(result)
        if self.trace:
            rows = self._model.rows(self._message) if self._model and self._observer.access else None
            self._observer.end(self.trace, result, rows)

    def _about(self) -> dict[str, object]:
        """Which call it is, for the log."""
        if self.trace:
            return self.trace.about()
        return dict(self._message.about(self._model.version if self._model else None))
