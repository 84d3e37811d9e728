"""A ModelInferRequest as it came, read no further than it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from gateway.errors import InvalidRequest, MalformedRequest
from tensorgate_client import framing
from tensorgate_client.framing import InferRequest
from tensorgate_client.tensors import Raw
from tensorgate_client.wire import inference_pb2 as pb

if TYPE_CHECKING:
    from gateway.heads import Head


LONGEST = 256
"""Characters of a name or id that a log or trace tells: callers may choose megabytes of them."""


def _tag(field: int) -> int:
    return field << 3 | 2  # length-delimited; protobuf's encoding guide


_NAME = _tag(pb.ModelInferRequest.MODEL_NAME_FIELD_NUMBER)
_VERSION = _tag(pb.ModelInferRequest.MODEL_VERSION_FIELD_NUMBER)
_ID = _tag(pb.ModelInferRequest.ID_FIELD_NUMBER)


@dataclass(slots=True)
class Message:
    """A serialized ModelInferRequest.

    Attributes:
        data: all of it.
        name, version: of the model that it is for.
        id: the caller's.
        rest: where in `data` all else begins, as clients write it; 0 if this one writes its fields in another order.
        head: what its model has recognised there.
    """

    data: bytes
    name: str
    version: str
    id: str
    rest: int
    head: Head | None = None
    _parsed: InferRequest | None = None

    def about(self, version: int | None = None) -> dict[str, str]:
        """Which request it is, for the log; `version` is the one that it went to, if it went to any."""
        return {
            "model": self.name[:LONGEST],
            "version": self.version[:LONGEST] if version is None else str(version),
            "request_id": self.id[:LONGEST],
        }

    @property
    def parsed(self) -> InferRequest:
        """The whole message.

        Raises:
            InvalidRequest: it is no ModelInferRequest, or names its model twice, differently. Protobuf would go by the
                last name.
        """
        if self._parsed is None:
            self._parsed = _parse(self.data)
            proto = self._parsed.proto
            if (proto.model_name, proto.model_version, proto.id) != (self.name, self.version, self.id):
                raise InvalidRequest("model_name, model_version or id came twice and differ: send each once")
        return self._parsed

    def complete(self, raw: Sequence[Raw]) -> None:
        """Let it have all of its raw contents, those too that did not come with it."""
        self._parsed = InferRequest(self.parsed.proto, raw)


UNREADABLE = Message(b"", "", "", "", 0)
"""Stands for one that could not be read."""


def read(data: bytes) -> Message:
    """A message, read as far as to whom it goes.

    Raises:
        InvalidRequest: it is no ModelInferRequest, as far as it was read.
    """
    try:
        return _addressed(data)
    except (IndexError, ValueError):
        parsed = _parse(data)
        proto = parsed.proto
        return Message(data, proto.model_name, proto.model_version, proto.id, 0, None, parsed)


def _parse(data: bytes) -> InferRequest:
    try:
        return framing.parse_infer_request(data)
    except DecodeError:
        raise MalformedRequest from None


def _addressed(data: bytes) -> Message:
    """A message that begins with its model, version and id in the order of their numbers, each below 128 bytes.

    Raises:
        IndexError, ValueError: this one does not.
    """
    if data[0] != _NAME:
        raise ValueError
    name, end = _text(data, 1)
    version = request_id = ""
    if data[end] == _VERSION:
        version, end = _text(data, end + 1)
    if data[end] == _ID:
        request_id, end = _text(data, end + 1)
    return Message(data, name, version, request_id, end)


def _text(data: bytes, offset: int) -> tuple[str, int]:
    length = data[offset]
    if length >= 0x80:  # a varint of several bytes
        raise ValueError
    end = offset + 1 + length
    return data[offset + 1 : end].decode(), end
