"""What a model elsewhere takes and gives, as its server tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import grpc

from backends.base import LoadError, Signature, TensorSpec
from gateway import parameters
from gateway.remote.options import Options
from tensorgate_client.tensors import DTYPES
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import model_config_pb2
from tensorgate_client.wire.inference_pb2_grpc import GRPCInferenceServiceStub


def signature_of(stub: GRPCInferenceServiceStub, options: Options, timeout_s: float) -> Signature:
    """The signature that ModelMetadata and ModelConfig tell; the latter is an extension that not every server has.

    Raises:
        LoadError: the protocol has no such datatype, or the model answers otherwise than a request at a time.
        grpc.RpcError: the server does not answer.
    """
    metadata = stub.ModelMetadata(
        pb.ModelMetadataRequest(name=options.model, version=options.version), timeout=timeout_s
    )
    signature = Signature.of(_specs(metadata.inputs), _specs(metadata.outputs))
    if not signature.inputs or not signature.outputs:
        raise LoadError(f"its server does not tell what model '{options.model}' takes and gives")
    try:
        asked = pb.ModelConfigRequest(name=options.model, version=options.version)
        config = stub.ModelConfig(asked, timeout=timeout_s).config
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return signature
        raise
    _check(config)
    return replace(signature, max_batch_size=config.max_batch_size, deterministic=parameters.deterministic(config))


def _check(config: model_config_pb2.ModelConfig) -> None:
    if config.model_transaction_policy.decoupled:
        raise LoadError("the model is decoupled: it may answer a request more than once, which is not supported")
    if config.HasField("sequence_batching"):
        raise LoadError("the model has sequence_batching, which is not supported: ask its server without a gateway")


def _specs(tensors: Iterable[pb.ModelMetadataResponse.TensorMetadata]) -> list[TensorSpec]:
    return [_spec(tensor) for tensor in tensors]


def _spec(tensor: pb.ModelMetadataResponse.TensorMetadata) -> TensorSpec:
    if tensor.datatype not in DTYPES:
        raise LoadError(f"'{tensor.name}' is {tensor.datatype}, which is no datatype of the protocol")
    return TensorSpec(tensor.name, DTYPES[tensor.datatype], tuple(tensor.shape))
