"""What both clients know of a stream, without its I/O: what is on its way, which answer is whose, what comes next."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from grpc import StatusCode

from tensorgate_client.calls import (
    Inputs,
    Outputs,
    Parameters,
    Target,
    Version,
    decoded,
    fitting_request,
    read_metadata,
)
from tensorgate_client.errors import InferenceError
from tensorgate_client.session import Deadline, Session, Steps
from tensorgate_client.wire import inference_pb2 as pb

_UNORDERED = "tensorgate_unordered"
"""tensorgate's request parameter: answer this stream's requests as they are ready. Other servers pass over it."""

_STATUS = "tensorgate_status"
"""tensorgate's response parameter: the name of the gRPC status that a failed request of a stream would have had."""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The answer to one batch of a stream.

    Attributes:
        index: of the batch among those that were given, from 0.
    """

    index: int
    _answer: Outputs | InferenceError

    @property
    def error(self) -> InferenceError | None:
        """Why this batch was not answered well; None if it was."""
        return self._answer if isinstance(self._answer, InferenceError) else None

    @property
    def outputs(self) -> Outputs:
        """The outputs by name, as `infer` returns them.

        Raises:
            InferenceError: this batch was not answered well.
        """
        if isinstance(self._answer, InferenceError):
            raise self._answer
        return self._answer


Arrival: TypeAlias = pb.ModelStreamInferResponse | StreamResult | BaseException | None
"""What reaches the caller's side of a stream: an answer, a batch that was not sent, what broke the stream, its end."""


def stream(  # noqa: PLR0913, D417  # what the protocol lets a caller say; the client fills in `session`
    session: Session,
    model: str,
    batches: Iterable[Inputs] | AsyncIterable[Inputs],
    *,
    window: int = 32,
    ordered: bool = True,
    version: Version = "",
    outputs: Iterable[str] = (),
    parameters: Parameters | None = None,
    deadline_ms: float | None = None,
) -> BatchStream:
    """Run a model on many batches over one stream; results come while batches are sent.

    A batch that fails does not end the stream: its result raises when its outputs are read. Leaving the loop early, or
    closing what this returns, cancels the stream; in the aio client `contextlib.aclosing` does it there and then, and
    otherwise Python does when it finalizes the generator. Streams are not retried.

    Args:
        model: its name; each request must have one answer.
        batches: inputs as `infer` takes them; the aio client takes an async iterable, too. They are taken as there is
            room for them, in another thread (aio: a task), which ends when this next returns if the caller left early.
            What this raises ends the stream and reaches the caller.
        window: most batches that are taken and not yet handed back as results.
        ordered: results in the order of the batches. False gives them as they are ready, where the server can.
        version: of the model, a decimal number; empty lets the server choose.
        outputs: names of those to return; none means all.
        parameters: of every request.
        deadline_ms: milliseconds that the whole stream may take; no limit by default.

    Returns:
        An iterator over the results, one for each batch.

    Raises:
        InferenceError: (while iterating) there is no such model, or the stream broke.
    """
    target = Target.of(model, version, outputs, parameters)
    deadline = Deadline.after(deadline_ms)
    return BatchStream(session, target, batches, window=window, ordered=ordered, deadline=deadline)


class BatchStream:
    """One stream's books.

    Args:
        session: of the client.
        target: the model, and what is wanted of it.
        batches: of the caller.
        window: most batches that may be under way.
        ordered: whether results come in the order of the batches, or as they are ready.
        deadline: of the whole stream.

    Attributes:
        batches: of the caller, to be taken one by one.
        over: whether everything is handed out.
    """

    def __init__(  # noqa: PLR0913  # what a caller may say, once it is understood
        self,
        session: Session,
        target: Target,
        batches: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        window: int,
        ordered: bool,
        deadline: Deadline | None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, expected 1 or more")
        self.batches = batches
        self.window = window
        self.deadline = deadline
        self.over = False
        self._session = session
        self._target = target if ordered else replace(target, parameters={**target.parameters, _UNORDERED: True})
        self._ordered = ordered
        self._taken = 0
        self._exhausted = False
        self._unanswered: set[int] = set()
        self._waiting: dict[int, StreamResult] = {}
        self._next = 0

    @property
    def timeout(self) -> float | None:
        """Seconds that are left of the deadline."""
        return self.deadline.left_s if self.deadline else None

    def check_model(self) -> Steps[None]:
        """Read the model's signature, so that a model that is not there fails the stream and not its batches."""
        yield from read_metadata(self._session, self._target.model, self._target.version, self.deadline)

    def take(self, inputs: Inputs) -> Steps[pb.ModelInferRequest | StreamResult]:
        """The request for the next batch; or its result, if it does not fit the model and need not be sent."""
        index = self._taken
        self._taken += 1
        try:
            request = yield from fitting_request(self._session, self._target, inputs, self.deadline)
        except InferenceError as error:
            if error.code is not StatusCode.INVALID_ARGUMENT:
                raise
            return StreamResult(index, error)
        request.id = str(index)
        self._unanswered.add(index)
        return request

    def finish(self) -> None:
        """There are no more batches."""
        self._exhausted = True

    def settle(self, arrival: Arrival) -> Iterator[StreamResult]:
        """What can be handed out now that this is there.

        Raises:
            InferenceError: the stream broke, or ended before everything was answered.
            BaseException: whatever the batches' iterator raised.
        """
        if isinstance(arrival, BaseException):
            raise arrival
        if arrival is None:
            self._end()
            return
        result = arrival if isinstance(arrival, StreamResult) else self._result(arrival)
        if not self._ordered:
            yield result
            return
        self._waiting[result.index] = result
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            yield ready

    def _end(self) -> None:
        if self._unanswered or not self._exhausted:
            message = f"the server ended the stream with {len(self._unanswered)} batches unanswered"
            raise self._session.failure(StatusCode.UNAVAILABLE, message, None)
        self.over = True

    def _result(self, response: pb.ModelStreamInferResponse) -> StreamResult:
        inferred = response.infer_response
        index = int(inferred.id) if inferred.id.isdecimal() else -1
        if index not in self._unanswered:
            message = (
                f"the server answered a batch with id '{inferred.id}', which is none of those it owes an answer; "
                "models that answer a request more than once are not supported"
            )
            raise InferenceError(StatusCode.INTERNAL, message)
        self._unanswered.discard(index)
        if response.error_message:
            return StreamResult(index, InferenceError(_code(inferred), response.error_message))
        try:
            return StreamResult(index, decoded(inferred))
        except InferenceError as error:
            return StreamResult(index, error)


def _code(failed: pb.ModelInferResponse) -> StatusCode:
    """The status of a request that failed, where the server tells it: the protocol has no field for it in a stream."""
    told = failed.parameters[_STATUS].string_param if _STATUS in failed.parameters else ""
    return StatusCode.__members__.get(told, StatusCode.UNKNOWN)
