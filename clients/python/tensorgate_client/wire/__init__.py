# SPDX-License-Identifier: Apache-2.0
"""The wire contract in Python: messages and stubs generated from the files in `protos/`.

    from tensorgate_client.wire import inference_pb2, inference_pb2_grpc, model_config_pb2

The messages live in a descriptor pool of their own, `POOL`, so that a process may also import
`tritonclient.grpc`. Give it to what looks messages up by name, such as gRPC reflection.
"""

from . import inference_pb2, inference_pb2_grpc, model_config_pb2
from ._pool import POOL

__all__ = ["POOL", "inference_pb2", "inference_pb2_grpc", "model_config_pb2"]
