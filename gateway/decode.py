"""Stage `decode`: a ModelInferRequest becomes a request that fits its model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from backends.base import Array
from gateway.errors import InvalidRequest, NotOffered
from gateway.message import Message
from gateway.request import InferenceRequest, Stages
from gateway.tensor_rules import TensorRule
from tensorgate_client.tensors import (
    TYPED_FIELDS,
    Raw,
    TensorError,
    from_raw,
    from_typed,
    shown,
)
from tensorgate_client.wire import inference_pb2 as pb

if TYPE_CHECKING:
    from gateway.model import ServedModel

_BINARY = "binary_data_output"
"""The binary data extension's parameter: false asks for typed contents instead of raw ones."""

_PRIORITY, _TIMEOUT = "priority", "timeout"
"""The schedule policy extension's parameters: a level, 1 being the most urgent; microseconds to wait at most."""

_UNORDERED = "tensorgate_unordered"
"""Parameter of a stream's request: true lets its response overtake those to requests before it."""

_NOT_OFFERED = {
    "shared_memory_region": "shared memory without --allow-shared-memory",
    "classification": "the classification extension",
}


def decode_head(model: ServedModel, message: Message, stages: Stages, deadline: float = inf) -> InferenceRequest:
    """What a message says about itself: a request still without tensors.

    Args:
        model: that it is for.
        message: as it came.
        stages: began when the message arrived.
        deadline: when the caller stops waiting (`time.perf_counter`).

    Raises:
        InvalidRequest: it is no ModelInferRequest, or a parameter is of a wrong kind.
    """
    proto = message.parsed.proto
    request = InferenceRequest(proto.id, {}, 1, (), stages, deadline=deadline)
    if proto.parameters:
        request.typed = not _flag(model, proto, _BINARY, default=True)
        request.unordered = _flag(model, proto, _UNORDERED)
        request.priority = _number(model, proto, _PRIORITY)
        request.timeout_s = _number(model, proto, _TIMEOUT) / 1e6 or inf
    return request


def is_unordered(message: Message) -> bool:
    """Whether a stream may answer a message before those that came earlier; no matter what else is wrong with it."""
    try:
        parameters = message.parsed.proto.parameters
    except InvalidRequest:
        return False
    return _UNORDERED in parameters and bool(parameters[_UNORDERED].bool_param)


def decode_tensors(model: ServedModel, message: Message, request: InferenceRequest) -> None:
    """Complete a request with its tensors; arrays stay views of the message where the layout allows.

    Raises:
        InvalidRequest: a tensor does not fit the model.
        InvalidInput: tensors do not fit each other.
        NotOffered: the request wants an extension this server lacks.
    """
    proto, raw = message.parsed
    request.inputs = _decode_inputs(model, proto, raw)
    request.rows = _rows(model, proto) if model.max_batch_size else 1
    request.outputs = _requested(model, proto)
    if request.typed:
        _check_typed(model, request.outputs)
    request.shape = model.layout.shape_of(request)
    request.stages.decode = time.perf_counter_ns()


def _decode_inputs(model: ServedModel, proto: pb.ModelInferRequest, raw: Sequence[Raw]) -> dict[str, Array]:
    if raw and len(raw) != len(proto.inputs):
        for tensor in proto.inputs:  # one that lies in shared memory has no raw contents: say that first
            _refuse_extensions(_input(model, tensor.name), tensor.parameters)
        raise InvalidRequest(
            f"model '{model.name}': {len(proto.inputs)} inputs but {len(raw)} raw_input_contents: expected one each"
        )
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(proto.inputs):
        if raw and tensor.HasField("contents"):
            raise InvalidRequest(f"{_input(model, tensor.name)} has typed contents beside raw_input_contents: send one")
        rule = _input_rule(model, tensor, inputs)
        try:
            if raw:
                array = from_raw(raw[index], tensor.datatype, tensor.shape)
            else:
                array = from_typed(tensor.contents, tensor.datatype, tensor.shape)
        except TensorError as error:
            raise InvalidRequest(f"{_input(model, tensor.name)}: {error}") from error
        inputs[tensor.name] = rule.to_runtime(array)
    if len(inputs) != len(model.inputs):
        _check_complete(model, inputs)
    return inputs


def _input_rule(
    model: ServedModel, tensor: pb.ModelInferRequest.InferInputTensor, known: Mapping[str, Array]
) -> TensorRule:
    """The rule for an input, once its name, datatype and shape are known to follow it."""
    name = tensor.name
    rule = model.inputs.get(name)
    if rule is None:
        expected = ", ".join(f"'{n}'" for n in model.inputs)
        raise InvalidRequest(f"unknown {_input(model, name)}: expected {expected}")
    if name in known:
        raise InvalidRequest(f"{_input(model, name)} came twice")
    if tensor.parameters:
        _refuse_extensions(_input(model, name), tensor.parameters)
    if not rule.admits(tensor.datatype, tensor.shape):
        got = f"{tensor.datatype or 'no datatype'} {shown(tensor.shape)}"
        raise InvalidRequest(f"{_input(model, name)}: expected {rule}, got {got}")
    return rule


def _input(model: ServedModel, name: str) -> str:
    return f"input '{name}' of model '{model.name}'"


def _check_complete(model: ServedModel, inputs: Mapping[str, Array]) -> None:
    missing = [f"'{n}' ({rule})" for n, rule in model.inputs.items() if n not in inputs and not rule.optional]
    if missing:
        got = ", ".join(f"'{name}'" for name in inputs) or "none"
        raise InvalidRequest(f"model '{model.name}' needs input {', '.join(missing)}; got {got}")


def _rows(model: ServedModel, proto: pb.ModelInferRequest) -> int:
    """How many rows every input has."""
    rows = {tensor.shape[0] for tensor in proto.inputs}
    if len(rows) > 1:
        listed = ", ".join(f"'{tensor.name}' {tensor.shape[0]}" for tensor in proto.inputs)
        raise InvalidRequest(f"model '{model.name}': inputs differ in their number of rows: {listed}")
    count = rows.pop() if rows else 1
    if not 1 <= count <= model.max_batch_size:
        raise InvalidRequest(
            f"model '{model.name}': expected 1 to {model.max_batch_size} rows (max_batch_size), got {count}"
            + ("; send them in several requests" if count else "")
        )
    return count


def _requested(model: ServedModel, proto: pb.ModelInferRequest) -> tuple[str, ...]:
    """The outputs to send; all of them if none is named."""
    names: list[str] = []
    for output in proto.outputs:
        subject = f"output '{output.name}' of model '{model.name}'"
        if output.name not in model.outputs:
            expected = ", ".join(f"'{name}'" for name in model.outputs)
            raise InvalidRequest(f"unknown {subject}: expected {expected}")
        if output.name in names:
            raise InvalidRequest(f"{subject} is requested twice")
        if output.parameters:
            _refuse_extensions(subject, output.parameters)
        names.append(output.name)
    return tuple(names) or tuple(model.outputs)


def _check_typed(model: ServedModel, outputs: Sequence[str]) -> None:
    for name in outputs:
        datatype = model.outputs[name].datatype
        if datatype not in TYPED_FIELDS:
            raise InvalidRequest(
                f"output '{name}' of model '{model.name}': {datatype} has no typed contents in the protocol: "
                f"leave out the parameter '{_BINARY}'"
            )


def _flag(model: ServedModel, proto: pb.ModelInferRequest, key: str, *, default: bool = False) -> bool:
    """A parameter that is yes or no."""
    if key not in proto.parameters:
        return default
    parameter = proto.parameters[key]
    kind = parameter.WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidRequest(f"model '{model.name}': parameter '{key}': expected bool_param, got {kind}")
    return bool(parameter.bool_param)


def _number(model: ServedModel, proto: pb.ModelInferRequest, key: str) -> int:
    """A parameter that is a whole number; 0 if it is not there."""
    if key not in proto.parameters:
        return 0
    parameter = proto.parameters[key]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param") or (value := int(getattr(parameter, kind))) < 0:
        got = str(parameter).strip() or "nothing"
        raise InvalidRequest(
            f"model '{model.name}': parameter '{key}': expected int64_param or uint64_param, at least 0, got {got}"
        )
    return value


def _refuse_extensions(subject: str, parameters: Mapping[str, pb.InferParameter]) -> None:
    for key, extension in _NOT_OFFERED.items():
        if key in parameters:
            raise NotOffered(f"{subject}: this server does not offer {extension} (parameter '{key}')")
