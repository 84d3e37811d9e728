"""What a model takes and gives, and how a request may contradict it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tensorgate_client.tensors import shown
from tensorgate_client.wire import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Datatype and shape of an input or output; -1 stands for any size."""

    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} {shown(self.shape)}"

    def admits(self, datatype: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this datatype and shape fits."""
        if datatype != self.datatype or len(shape) != len(self.shape):
            return False
        return all(wanted in (given, -1) for given, wanted in zip(shape, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's inputs and outputs by name; empty where its server does not say."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, metadata: pb.ModelMetadataResponse) -> Signature:
        """The signature that ModelMetadata tells."""
        return cls(_specs(metadata.inputs), _specs(metadata.outputs))

    def fault(self, request: pb.ModelInferRequest) -> str | None:
        """What a server would refuse in `request`, in the words that tensorgate's uses; None if all of it fits.

        An input that is left out is for the server to judge: metadata does not say which ones are optional.
        """
        model = request.model_name
        if self.inputs:
            for tensor in request.inputs:
                subject = f"input '{tensor.name}' of model '{model}'"
                spec = self.inputs.get(tensor.name)
                if spec is None:
                    return f"unknown {subject}: expected {_quoted(self.inputs)}"
                if not spec.admits(tensor.datatype, tensor.shape):
                    return f"{subject}: expected {spec}, got {tensor.datatype} {shown(tensor.shape)}"
        if self.outputs:
            for output in request.outputs:
                if output.name not in self.outputs:
                    return f"unknown output '{output.name}' of model '{model}': expected {_quoted(self.outputs)}"
        return None


def _specs(tensors: Iterable[pb.ModelMetadataResponse.TensorMetadata]) -> dict[str, TensorSpec]:
    return {tensor.name: TensorSpec(tensor.datatype, tuple(tensor.shape)) for tensor in tensors}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
