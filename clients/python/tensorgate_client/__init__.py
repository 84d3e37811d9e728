"""A client for servers of the Open Inference Protocol v2: tensorgate, Triton, KServe's runtimes.

`InferenceClient` waits for its answers, `aio.InferenceClient` is awaited; both have the same calls. Below them are the
numpy <-> wire conversion (`tensors`) and the generated stubs (`wire`).
"""

from tensorgate_client import aio
from tensorgate_client.channel import TLS
from tensorgate_client.client import InferenceClient
from tensorgate_client.errors import InferenceError
from tensorgate_client.streaming import StreamResult
from tensorgate_client.tensors import TensorError, decode_infer_response, encode_infer_request

__all__ = [
    "TLS",
    "InferenceClient",
    "InferenceError",
    "StreamResult",
    "TensorError",
    "aio",
    "decode_infer_response",
    "encode_infer_request",
]
