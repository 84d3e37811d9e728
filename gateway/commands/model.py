"""What a model takes and gives, a row at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.commands.failure import CommandFailed
from tensorgate_client import InferenceClient, InferenceError
from tensorgate_client.tensors import DTYPES, shown
from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire.model_config_pb2 import ModelConfig


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes:
        shape: as the model's metadata has it; -1 stands for any size.
        dims: the shape of a row.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    optional: bool = False

    def __str__(self) -> str:
        return f"'{self.name}' ({self.datatype} {shown(self.shape)})"

    @property
    def dtype(self) -> np.dtype[Any]:
        """What numpy holds it in."""
        return DTYPES[self.datatype]

    @property
    def width(self) -> int | None:
        """Elements in a row; None if rows differ."""
        return None if min(self.dims, default=0) < 0 else math.prod(self.dims)

    @property
    def row_bytes(self) -> int:
        """About so much memory a row takes."""
        width = 1024 if self.width is None else self.width
        return width * (64 if self.datatype == "BYTES" else self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Model:
    """A version of a model, as it is served.

    Attributes:
        version: the one that every row goes to, though a newer one may be loaded meanwhile.
        max_rows: of a request.
        batches: whether requests have rows at all. A model that does not batch takes a row as its whole input.
        digest: of what its server tells of it; another one is another model, though its name and version be the same.
    """

    name: str
    version: str
    max_rows: int
    batches: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    digest: str = ""

    def select(self, names: Sequence[str]) -> tuple[Tensor, ...]:
        """The outputs of these names in this order, or all of them.

        Raises:
            CommandFailed: there is no such output.
        """
        outputs = {output.name: output for output in self.outputs}
        for name in names:
            if name not in outputs:
                expected = ", ".join(outputs)
                raise CommandFailed(f"--select: model '{self.name}' has no output '{name}': expected {expected}")
        return tuple(outputs[name] for name in names or outputs)


def read_model(client: InferenceClient, name: str, version: str) -> Model:
    """What the server says of a model.

    Raises:
        InferenceError: there is no such model, or no server.
    """
    metadata = client.metadata(name, version=version)
    version = version or max(metadata.versions, key=_number, default="")
    try:
        config = client.config(name, version=version)
    except InferenceError as error:
        if error.code.name != "UNIMPLEMENTED":
            raise
        shapes = [tensor.shape for tensor in (*metadata.inputs, *metadata.outputs)]
        batches, max_rows, optional = all(shape and shape[0] == -1 for shape in shapes), 1, set()
        config = ModelConfig()
    else:
        batches, max_rows = config.max_batch_size > 0, max(config.max_batch_size, 1)
        optional = {tensor.name for tensor in config.input if tensor.optional}

    def tensors(described: Any) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(t.name, t.datatype, tuple(t.shape), tuple(t.shape)[batches:], t.name in optional) for t in described
        )

    digest = _digest(metadata, config)
    return Model(name, version, max_rows, batches, tensors(metadata.inputs), tensors(metadata.outputs), digest)


def _digest(metadata: pb.ModelMetadataResponse, config: ModelConfig) -> str:
    """Of what results may depend on: not of instances and queues, which may be others on another machine."""
    same = ModelConfig(
        backend=config.backend,
        platform=config.platform,
        max_batch_size=config.max_batch_size,
        input=config.input,
        output=config.output,
        default_model_filename=config.default_model_filename,
        parameters=config.parameters,
    )
    parts = [*metadata.inputs, *metadata.outputs, same]
    return hashlib.sha256(b"".join(part.SerializeToString(deterministic=True) for part in parts)).hexdigest()


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else -1
