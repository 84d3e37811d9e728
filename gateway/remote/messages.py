"""What a server is sent: a batch as a ModelInferRequest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backends.base import Array
from gateway.remote.options import Options
from tensorgate_client import framing
from tensorgate_client.tensors import Raw, datatype_of, to_raw
from tensorgate_client.wire import inference_pb2 as pb


def encode_request(options: Options, inputs: Mapping[str, Array], outputs: Iterable[str]) -> bytes:
    """A serialized ModelInferRequest with raw contents, each copied once; no `outputs` means all of them."""
    request = pb.ModelInferRequest(model_name=options.model, model_version=options.version)
    contents: list[Raw] = []
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        raw = to_raw(array)
        contents += (framing.raw_input_head(len(raw)), raw)
    for name in outputs:
        request.outputs.add(name=name)
    return b"".join((request.SerializeToString(), *contents))
