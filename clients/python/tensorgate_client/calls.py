"""Every call that both clients offer, without its I/O: what is sent, and what becomes of the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from google.protobuf.message import Message
from grpc import StatusCode
from numpy.typing import ArrayLike

from tensorgate_client.errors import InferenceError
from tensorgate_client.session import Deadline, Rpc, Session, Steps
from tensorgate_client.signature import Signature
from tensorgate_client.tensors import Array, TensorError, decode_infer_response, encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.model_config_pb2 import ModelConfig

Inputs: TypeAlias = Mapping[str, ArrayLike]
Outputs: TypeAlias = dict[str, Array]
Parameters: TypeAlias = Mapping[str, bool | int | float | str]
Version: TypeAlias = str | int
"""Of a model: a decimal number, as text or not; empty lets the server choose."""

_GONE_OR_CHANGED = (StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT)
_NO_ANSWER = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.NOT_FOUND)
_MOMENT_MS = 200


@dataclass(frozen=True, slots=True)
class Target:
    """Which model is asked for what, in every request of a call."""

    model: str
    version: str
    outputs: tuple[str, ...]
    parameters: Parameters

    @classmethod
    def of(cls, model: str, version: Version, outputs: Iterable[str], parameters: Parameters | None) -> Self:
        """The target that a caller names."""
        return cls(model, _text(version), tuple(outputs), parameters or {})


def infer(  # noqa: PLR0913, D417  # what the protocol lets a caller say; the client fills in `session`
    session: Session,
    model: str,
    inputs: Inputs,
    *,
    version: Version = "",
    outputs: Iterable[str] = (),
    parameters: Parameters | None = None,
    deadline_ms: float | None = None,
) -> Steps[Outputs]:
    """Run a model once.

    Names, datatypes and shapes are checked against the model's metadata before anything is sent. Metadata is asked for
    once, and again when something does not fit. Dtypes are never converted.

    Args:
        model: its name.
        inputs: an array for each input by name, the batch dimension included. BYTES inputs take arrays of `bytes` or
            `str`, BF16 ones `ml_dtypes.bfloat16`.
        version: of the model, a decimal number; empty lets the server choose.
        outputs: names of those to return; none means all.
        parameters: of the request, such as `priority` (1 is the most urgent) and `timeout` (microseconds to queue).
        deadline_ms: milliseconds until the caller stops waiting; by default the client's.

    Returns:
        The outputs by name, read-only; BYTES are object arrays of `bytes`.

    Raises:
        InferenceError: an input does not fit, or the server did not answer well; its code says which.
    """
    target = Target.of(model, version, outputs, parameters)
    deadline = session.deadline(deadline_ms)
    request = yield from fitting_request(session, target, inputs, deadline)
    try:
        response: pb.ModelInferResponse = yield Rpc("ModelInfer", request, deadline)
    except InferenceError as error:
        if error.code in _GONE_OR_CHANGED:
            session.signatures.pop((model, target.version), None)
        raise
    return decoded(response)


def metadata(
    session: Session, model: str, *, version: Version = "", deadline_ms: float | None = None
) -> Steps[pb.ModelMetadataResponse]:
    """Names, datatypes and shapes of a model's inputs and outputs, and its versions; -1 in a shape is any size.

    Raises:
        InferenceError: NOT_FOUND, there is no such model; UNAVAILABLE, it is not ready.
    """
    return (yield from read_metadata(session, model, _text(version), session.deadline(deadline_ms)))


def config(
    session: Session, model: str, *, version: Version = "", deadline_ms: float | None = None
) -> Steps[ModelConfig]:
    """The configuration that a model is served with, what its server has completed included.

    Raises:
        InferenceError: NOT_FOUND, there is no such model; UNIMPLEMENTED, the server does not tell.
    """
    request = pb.ModelConfigRequest(name=model, version=_text(version))
    response: pb.ModelConfigResponse = yield Rpc("ModelConfig", request, session.deadline(deadline_ms))
    return response.config


def statistics(
    session: Session, model: str = "", *, version: Version = "", deadline_ms: float | None = None
) -> Steps[list[pb.ModelStatistics]]:
    """Counters and times of every version of a model since it was loaded; of all models if none is named.

    Raises:
        InferenceError: NOT_FOUND, there is no such model.
    """
    request = pb.ModelStatisticsRequest(name=model, version=_text(version))
    response: pb.ModelStatisticsResponse = yield Rpc("ModelStatistics", request, session.deadline(deadline_ms))
    return list(response.model_stats)


def index(
    session: Session, *, ready: bool = False, deadline_ms: float | None = None
) -> Steps[list[pb.RepositoryIndexResponse.ModelIndex]]:
    """Name, version, state and reason of every model in the repository, or of those that are ready."""
    request = pb.RepositoryIndexRequest(ready=ready)
    response: pb.RepositoryIndexResponse = yield Rpc("RepositoryIndex", request, session.deadline(deadline_ms))
    return list(response.models)


def load(  # noqa: D417  # the client fills in `session`
    session: Session,  # noqa: ARG001  # as all calls have
    model: str,
    config: Mapping[str, Any] | None = None,
    *,
    deadline_ms: float | None = None,
) -> Steps[None]:
    """Load a model, or reload it; returns when it is ready.

    Args:
        model: its name.
        config: what to use in the place of its config.pbtxt: a ModelConfig message in JSON's terms.
        deadline_ms: milliseconds that it may take; no limit by default.

    Raises:
        InferenceError: FAILED_PRECONDITION, the server does not let it be loaded, or it does not load.
    """
    request = pb.RepositoryModelLoadRequest(model_name=model)
    if config is not None:
        request.parameters["config"].string_param = json.dumps(config)
    yield Rpc("RepositoryModelLoad", request, Deadline.after(deadline_ms))


def unload(
    session: Session,  # noqa: ARG001  # as all calls have
    model: str,
    *,
    deadline_ms: float | None = None,
) -> Steps[None]:
    """Stop serving a model; requests that it has are still answered.

    Raises:
        InferenceError: FAILED_PRECONDITION, the server does not let it be unloaded; NOT_FOUND, there is no such model.
    """
    yield Rpc("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=model), Deadline.after(deadline_ms))


def is_live(session: Session, *, deadline_ms: float | None = None) -> Steps[bool]:
    """Whether the server answers at all; one that cannot be reached is given 0.2 s, as with the other questions."""
    response = yield from _probed(session, "ServerLive", pb.ServerLiveRequest(), deadline_ms)
    return response is not None and response.live


def is_ready(session: Session, *, deadline_ms: float | None = None) -> Steps[bool]:
    """Whether the server takes inference requests."""
    response = yield from _probed(session, "ServerReady", pb.ServerReadyRequest(), deadline_ms)
    return response is not None and response.ready


def model_ready(
    session: Session, model: str, *, version: Version = "", deadline_ms: float | None = None
) -> Steps[bool]:
    """Whether a model takes inference requests."""
    request = pb.ModelReadyRequest(name=model, version=_text(version))
    response = yield from _probed(session, "ModelReady", request, deadline_ms)
    return response is not None and response.ready


def read_metadata(
    session: Session, model: str, version: str, deadline: Deadline | None
) -> Steps[pb.ModelMetadataResponse]:
    """A model's metadata, its signature kept for later requests."""
    request = pb.ModelMetadataRequest(name=model, version=version)
    response: pb.ModelMetadataResponse = yield Rpc("ModelMetadata", request, deadline)
    session.signatures[model, version] = Signature.of(response)
    return response


def fitting_request(
    session: Session, target: Target, inputs: Inputs, deadline: Deadline | None
) -> Steps[pb.ModelInferRequest]:
    """A request that fits the model's signature.

    Raises:
        InferenceError: INVALID_ARGUMENT, it does not; or the signature cannot be had.
    """
    request = _encoded(target, inputs)
    known = session.signatures.get((target.model, target.version))
    if known is None or known.fault(request):  # the model may have been reloaded since
        response = yield from read_metadata(session, target.model, target.version, deadline)
        if fault := Signature.of(response).fault(request):
            raise InferenceError(StatusCode.INVALID_ARGUMENT, fault)
    return request


def decoded(response: pb.ModelInferResponse) -> Outputs:
    """The outputs by name.

    Raises:
        InferenceError: INTERNAL, the response contradicts itself.
    """
    try:
        return decode_infer_response(response)
    except TensorError as error:
        message = f"model '{response.model_name}' answered with what is no tensor: {error}"
        raise InferenceError(StatusCode.INTERNAL, message) from None


def _text(version: Version) -> str:
    return version if isinstance(version, str) else str(version)


def _encoded(target: Target, inputs: Inputs) -> pb.ModelInferRequest:
    try:
        arrays = _arrays(target.model, inputs)
        request = encode_infer_request(target.model, arrays, version=target.version, outputs=target.outputs)
    except TensorError as error:
        raise InferenceError(StatusCode.INVALID_ARGUMENT, str(error)) from None
    for key, value in target.parameters.items():
        _set(request.parameters[key], value)
    return request


def _arrays(model: str, inputs: Inputs) -> dict[str, Array]:
    if not isinstance(inputs, Mapping):
        raise TensorError(f"inputs of model '{model}': expected arrays by name, got {type(inputs).__name__}")
    for name, value in inputs.items():
        if np.ma.is_masked(value):
            raise TensorError(f"input '{name}' of model '{model}': expected all of it, got a masked array: fill it")
    return {name: np.asarray(value) for name, value in inputs.items()}


def _set(parameter: pb.InferParameter, value: bool | int | float | str) -> None:  # noqa: FBT001  # a value, not a switch
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value


def _probed(session: Session, rpc: str, request: Message, deadline_ms: float | None) -> Steps[Any]:
    """The answer to a question that "no answer" answers as well: None."""
    deadline = session.deadline(deadline_ms)
    try:
        return (yield Rpc(rpc, request, deadline))
    except InferenceError as error:
        if error.code is StatusCode.UNAVAILABLE:
            return (yield from _reached(rpc, request, deadline))
        if error.code in _NO_ANSWER:
            return None
        raise


def _reached(rpc: str, request: Message, deadline: Deadline | None) -> Steps[Any]:
    """The answer if the server can be reached within a moment.

    A blocking channel that nobody waits for goes on connecting every 5 s alone: who asks again and again, and never
    waits, would see a server that is there long after everybody else.
    """
    left_ms = deadline.left_s * 1000 if deadline else _MOMENT_MS
    try:
        return (yield Rpc(rpc, request, Deadline.after(min(left_ms, _MOMENT_MS)), waits=True))
    except InferenceError as error:
        if error.code in _NO_ANSWER:
            return None
        raise
