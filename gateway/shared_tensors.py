"""Tensors that requests have in shared memory: inputs are copied from there first of all, outputs written there last.

In between such a request is one like any other. What it has in common with others, a batch or a cached response, is so
by its contents, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.errors import InvalidRequest, RequestTooLarge, restated
from gateway.message import Message
from gateway.shared_memory import Region, Regions
from tensorgate_client import framing
from tensorgate_client.tensors import Raw
from tensorgate_client.wire import inference_pb2 as pb

_REGION, _BYTE_SIZE, _OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
"""Parameters of a tensor: the name of a region; bytes, for an output at most; bytes from the region's beginning."""

_Parameters = MutableMapping[str, pb.InferParameter]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: within the bounds of its region."""

    subject: str
    region: Region
    offset: int
    byte_size: int

    def read(self) -> bytes:
        with _about(self.subject):
            return self.region.read(self.offset, self.byte_size)

    def check_holds(self, contents: Raw) -> None:
        if len(contents) > self.byte_size:
            raise InvalidRequest(f"{self.subject} takes {len(contents)} bytes, {_BYTE_SIZE} is {self.byte_size}")

    def write(self, contents: Raw, parameters: _Parameters) -> None:
        """Write an output, and say in its response's parameters where it is."""
        with _about(self.subject):
            self.region.write(self.offset, contents)
        parameters[_REGION].string_param = self.region.name
        parameters[_BYTE_SIZE].int64_param = len(contents)
        if self.offset:
            parameters[_OFFSET].int64_param = self.offset


@dataclass(frozen=True, slots=True)
class SharedOutputs:
    """Where a request wants its outputs, by name; those that are not here are sent."""

    _places: Mapping[str, _Place]

    def deliver(self, response: bytes) -> bytes:
        """Write the outputs into their regions, all or, if one does not fit, none; the response without them.

        Raises:
            InvalidRequest: an output is larger than its place, or its region has shrunk.
            RegionNotFound: a region has been unregistered.
        """
        if not self._places:
            return response
        proto, raw = framing.parse_infer_response(response)
        contents: list[Raw] = list(raw)
        proto.ClearField("raw_output_contents")
        placed = [(index, tensor) for index, tensor in enumerate(proto.outputs) if tensor.name in self._places]
        for index, tensor in placed:
            self._places[tensor.name].check_holds(contents[index])
        for index, tensor in placed:
            self._places[tensor.name].write(contents[index], tensor.parameters)
            contents[index] = b""  # not left out: contents belong to outputs by their order
        return framing.serialize_infer_response(proto, contents)


def fetch(regions: Regions, message: Message, *, typed: bool) -> SharedOutputs | None:
    """Give a message those of its inputs that lie in shared memory, as if they had been sent.

    Args:
        regions: the registered ones.
        message: with or without such tensors.
        typed: whether it asks for typed contents.

    Returns:
        Where to put the outputs; None if the message has nothing to do with shared memory.

    Raises:
        InvalidRequest: parameters contradict each other or the region, or it has shrunk.
        RegionNotFound: there is no such region.
        RequestTooLarge: the inputs are larger than a message may be.
    """
    proto = message.parsed.proto
    model = proto.model_name
    inputs = [_take(regions, f"input '{each.name}' of model '{model}'", each.parameters) for each in proto.inputs]
    outputs = {
        each.name: _take(regions, f"output '{each.name}' of model '{model}'", each.parameters) for each in proto.outputs
    }
    places = {name: place for name, place in outputs.items() if place}
    if places and typed:
        place = next(iter(places.values()))
        raise InvalidRequest(f"{place.subject}: what lies in shared memory is raw: leave out 'binary_data_output'")
    if any(inputs):
        _fetch_inputs(regions, message, inputs)
    elif not places:
        return None
    return SharedOutputs(places)


def _fetch_inputs(regions: Regions, message: Message, places: Sequence[_Place | None]) -> None:
    proto, raw = message.parsed
    total = sum(place.byte_size for place in places if place)
    if total > regions.max_request_bytes:
        raise RequestTooLarge(total, regions.max_request_bytes)
    if len(raw) != places.count(None):
        raise InvalidRequest(
            f"model '{proto.model_name}': {places.count(None)} inputs outside of shared memory but {len(raw)} "
            "raw_input_contents: expected one each"
        )
    sent = iter(raw)
    contents: list[Raw] = []
    for tensor, place in zip(proto.inputs, places, strict=True):
        if place and tensor.HasField("contents"):
            raise InvalidRequest(f"{place.subject} lies in shared memory and has typed contents: send one")
        contents.append(place.read() if place else next(sent))
    message.complete(contents)


def _take(regions: Regions, subject: str, parameters: _Parameters) -> _Place | None:
    """Where a tensor's parameters say that it lies, if they do; they say so no more."""
    if _REGION not in parameters:
        for key in (_BYTE_SIZE, _OFFSET):
            if key in parameters:
                raise InvalidRequest(f"{subject}: parameter '{key}' says nothing without '{_REGION}'")
        return None
    named = parameters.pop(_REGION)
    if (kind := named.WhichOneof("parameter_choice")) != "string_param":
        raise InvalidRequest(f"{subject}: parameter '{_REGION}': expected string_param, got {kind or 'nothing'}")
    if _BYTE_SIZE not in parameters:
        raise InvalidRequest(f"{subject}: parameter '{_REGION}' needs '{_BYTE_SIZE}' beside it")
    byte_size = _bytes(subject, _BYTE_SIZE, parameters.pop(_BYTE_SIZE))
    offset = _bytes(subject, _OFFSET, parameters.pop(_OFFSET)) if _OFFSET in parameters else 0
    with _about(subject):
        region = regions.find(named.string_param)
    if offset + byte_size > region.byte_size:
        raise InvalidRequest(
            f"{subject}: {region} has {region.byte_size} bytes, expected a part of them, got {byte_size} from {offset} "
            "on"
        )
    return _Place(subject, region, offset, byte_size)


@contextmanager
def _about(subject: str) -> Iterator[None]:
    """Errors of a region say which tensor they are about."""
    try:
        yield
    except InvalidRequest as error:
        raise restated(error, subject) from error


def _bytes(subject: str, key: str, parameter: pb.InferParameter) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param") or (value := int(getattr(parameter, kind))) < 0:
        got = str(parameter).strip() or "nothing"
        raise InvalidRequest(f"{subject}: parameter '{key}': expected int64_param, at least 0, got {got}")
    return value
