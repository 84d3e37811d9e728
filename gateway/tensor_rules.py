"""What a model's configuration demands of each tensor on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backends.base import Array
from gateway.model_config import Tensor, wire_datatype
from tensorgate_client.tensors import shown
from tensorgate_client.wire import model_config_pb2 as pb


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One input or output as clients see it.

    Attributes:
        name, datatype: as on the wire.
        shape: with the batch dimension first where the model batches; -1 where any size goes.
        reshape: the runtime's shape without the batch dimension, or None if it is the same.
        batches: whether the first dimension counts rows.
        optional: whether an input may be left out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    batches: bool = False
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.datatype} {shown(self.shape)}"

    def admits(self, datatype: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this datatype and shape fits."""
        if datatype != self.datatype or len(shape) != len(self.shape):
            return False
        for given, wanted in zip(shape, self.shape, strict=True):
            if given < 0 or wanted not in (given, -1):
                return False
        return True

    def to_runtime(self, array: Array) -> Array:
        """The array in the runtime's shape."""
        return array if self.reshape is None else self._reshaped(array, self.shape, self.reshape)

    def to_wire(self, array: Array) -> Array:
        """The array in the shape clients see.

        Raises:
            ValueError: it has other elements than that shape takes.
        """
        if self.reshape is None:
            return array
        outer = (-1, *self.reshape) if self.batches else self.reshape
        return self._reshaped(array, outer, self.shape[1:] if self.batches else self.shape)

    def _reshaped(self, array: Array, before: Sequence[int], after: Sequence[int]) -> Array:
        """Open sizes of `after` are those of `before`, in order (Triton's rule)."""
        skip = 1 if self.batches else 0
        sizes = zip(before[skip:], array.shape[skip:], strict=True)
        open_sizes = iter([size for wanted, size in sizes if wanted == -1])
        shape = [next(open_sizes) if size == -1 else size for size in after]
        return array.reshape((*array.shape[:skip], *shape))


def rules(tensors: Iterable[Tensor], *, batches: bool) -> dict[str, TensorRule]:
    """The rules of a completed configuration's inputs or outputs, by name."""
    return {tensor.name: _rule(tensor, batches) for tensor in tensors}


def _rule(tensor: Tensor, batches: bool) -> TensorRule:  # noqa: FBT001
    return TensorRule(
        tensor.name,
        wire_datatype(tensor.data_type),
        (*((-1,) if batches else ()), *tensor.dims),
        tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        batches,
        isinstance(tensor, pb.ModelInput) and tensor.optional,
    )
