"""Stage `encode`: a model's outputs become a serialized ModelInferResponse."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from backends.base import Array
from gateway.request import InferenceRequest
from tensorgate_client import framing
from tensorgate_client.tensors import Raw, datatype_of, to_raw, to_typed
from tensorgate_client.wire import inference_pb2 as pb

_MOST_HEADS = 1024

_STATUS = "tensorgate_status"
"""Parameter of a failed request's response in a stream: the name of the gRPC status that it would have had."""


class Encoder:
    """Makes the responses of a model version. What responses alike begin with is put together once.

    Args:
        name, version: of the model.
    """

    def __init__(self, name: str, version: int) -> None:
        self._name = name
        self._version = str(version)
        self._heads: dict[Hashable, tuple[bytes, ...]] = {}
        self._latest: tuple[Hashable, tuple[bytes, ...]] = ((), ())

    def encode(self, request: InferenceRequest, outputs: Mapping[str, Array], request_id: str = "") -> bytes:
        """A serialized ModelInferResponse with the requested outputs.

        Args:
            request: what was asked for.
            outputs: by name, at least the requested ones.
            request_id: to send back; it can also be appended later, with `framing.append_id`.

        Raises:
            ValueError: the model gave BYTES elements that are neither bytes nor text.
        """
        arrays = [outputs[output] for output in request.outputs]
        if request.typed:
            return framing.append_id(self._described(request, arrays).SerializeToString(), request_id)
        alike = request.outputs, *[(array.dtype, array.shape) for array in arrays]
        heads = self._latest[1] if alike == self._latest[0] else self._heads.get(alike)  # comparing beats hashing
        raw = [to_raw(array) for array in arrays]
        if heads is None:
            heads = self._describe(request, arrays, raw)
            if not any(array.dtype.hasobject for array in arrays):
                self._remember(alike, heads)
        else:
            self._latest = alike, heads
        parts: list[Raw] = [heads[0]]
        if request_id:
            parts.append(framing.id_field(request_id))
        for head, contents in zip(heads[1:], raw, strict=True):
            parts += (head, contents)
        return b"".join(parts)

    def _describe(self, request: InferenceRequest, arrays: Sequence[Array], raw: Sequence[Raw]) -> tuple[bytes, ...]:
        """What stands at the beginning, and before each output's raw contents."""
        described = self._described(request, arrays).SerializeToString()
        return described, *[framing.raw_output_head(len(contents)) for contents in raw]

    def _described(self, request: InferenceRequest, arrays: Sequence[Array]) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(model_name=self._name, model_version=self._version)
        for output, array in zip(request.outputs, arrays, strict=True):
            tensor = response.outputs.add(name=output, datatype=datatype_of(array.dtype), shape=array.shape)
            if request.typed:
                tensor.contents.CopyFrom(to_typed(array))
        return response

    def _remember(self, alike: Hashable, heads: tuple[bytes, ...]) -> None:
        if len(self._heads) >= _MOST_HEADS:  # of endlessly many different ones, none is worth more than another
            self._heads.clear()
        self._heads[alike] = heads


def encode_stream_error(head: pb.ModelInferResponse, code: str, message: str) -> bytes:
    """A serialized ModelStreamInferResponse that says what is wrong with one request of a stream.

    Args:
        head: the request's id, model and version; gets the code as a parameter.
        code: name of the gRPC status that a unary call would have ended with.
        message: of that status.
    """
    head.parameters[_STATUS].string_param = code
    head.parameters[framing.FINAL].bool_param = True
    return pb.ModelStreamInferResponse(error_message=message, infer_response=head).SerializeToString()
