"""Stage `encode`: a model's outputs become a serialized ModelInferResponse."""

from __future__ import annotations

from collections.abc import Mapping

from backends.base import Array
from gateway.request import InferenceRequest
from tensorgate_client import framing
from tensorgate_client.tensors import Raw, datatype_of, to_raw, to_typed
from tensorgate_client.wire import inference_pb2 as pb

_STATUS = "tensorgate_status"
"""Parameter of a failed request's response in a stream: the name of the gRPC status that it would have had."""


def encode(
    name: str, version: int, request: InferenceRequest, outputs: Mapping[str, Array], request_id: str = ""
) -> bytes:
    """A serialized ModelInferResponse with the requested outputs.

    Args:
        name: of the model.
        version: of the model.
        request: what was asked for.
        outputs: by name, at least the requested ones.
        request_id: to send back; it can also be appended later, with `framing.append_id`.

    Raises:
        ValueError: the model gave BYTES elements that are neither bytes nor text.
    """
    response = pb.ModelInferResponse(model_name=name, model_version=str(version), id=request_id)
    raw: list[Raw] = []
    for output in request.outputs:
        array = outputs[output]
        tensor = response.outputs.add(name=output, datatype=datatype_of(array.dtype), shape=array.shape)
        if request.typed:
            tensor.contents.CopyFrom(to_typed(array))
        else:
            raw.append(to_raw(array))
    return framing.serialize_infer_response(response, raw)


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
