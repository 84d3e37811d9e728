"""Which sizes an engine is built for: an optimisation profile, from `parameters` or from what config.pbtxt says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from backends.base import LoadError, ModelSource, TensorSpec

PARAMETERS = ("min_shapes", "opt_shapes", "max_shapes")

_DEFAULT_ROWS = 32

Shape = tuple[int, ...]


class Range(NamedTuple):
    """The shapes that one input may have: the smallest, the one to be fastest with, the largest."""

    low: Shape
    usual: Shape
    high: Shape


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model's owner says of the sizes of its inputs.

    Attributes:
        stated: the shapes in each of the `PARAMETERS`, by input.
        declared: shapes of config.pbtxt's inputs, whose sizes above 0 are the only ones that will come.
        rows: largest batch.
        usual_rows: the batch that an engine should be fastest with.
    """

    stated: Mapping[str, Mapping[str, Shape]]
    declared: Mapping[str, Shape]
    rows: int
    usual_rows: int

    @classmethod
    def of(cls, source: ModelSource) -> Sizes:
        """The sizes for a version.

        Raises:
            LoadError: a parameter does not hold.
        """
        preferred = source.preferred_batch_sizes
        rows = max(source.declared.max_batch_size or _DEFAULT_ROWS, *preferred, 1)  # batches are padded to those
        return cls(
            {key: _shapes(key, source.parameters.get(key, "")) for key in PARAMETERS},
            {spec.name: spec.shape for spec in source.declared.inputs},
            rows,
            max(preferred, default=rows),
        )

    def profile(self, inputs: Sequence[TensorSpec]) -> dict[str, Range]:
        """The range of every input that leaves a size open.

        Raises:
            LoadError: a parameter contradicts the model, or the model leaves open what nothing says.
        """
        known = {spec.name: spec for spec in inputs}
        for key, shapes in self.stated.items():
            for name, shape in shapes.items():
                _check(key, name, shape, known)
        batches = all(spec.shape[:1] == (-1,) for spec in inputs)
        return {spec.name: self._range(spec, batches=batches) for spec in inputs if -1 in spec.shape}

    def _range(self, spec: TensorSpec, *, batches: bool) -> Range:
        sizes = [self._size(spec, dim, batches=batches) for dim in range(len(spec.shape))]
        low, usual, high = Range(*zip(*sizes, strict=True))
        if not all(a <= b <= c for a, b, c in sizes):
            raise LoadError(
                f"input '{spec.name}': expected min_shapes <= opt_shapes <= max_shapes, got "
                f"{_shown(low)}, {_shown(usual)}, {_shown(high)}"
            )
        return Range(low, usual, high)

    def _size(self, spec: TensorSpec, dim: int, *, batches: bool) -> tuple[int, int, int]:
        """The smallest, the usual and the largest size of a dimension."""
        if spec.shape[dim] != -1:
            return (spec.shape[dim],) * 3
        stated = [shapes[spec.name][dim] if spec.name in shapes else 0 for shapes in self.stated.values()]
        is_batch = batches and dim == 0
        declared = self.declared.get(spec.name, ())
        fixed = declared[dim] if not is_batch and len(declared) == len(spec.shape) else -1
        high = stated[2] or (self.rows if is_batch else fixed)
        if high < 1:
            raise LoadError(self._unknown(spec, dim))
        low = stated[0] or (high if fixed == high else 1)
        return low, stated[1] or (min(self.usual_rows, high) if is_batch else high), high

    def _unknown(self, spec: TensorSpec, dim: int) -> str:
        rows = str(self.rows)
        example = "x".join(str(size) if size > 0 else "128" if index else rows for index, size in enumerate(spec.shape))
        line = f'parameters {{ key: "max_shapes" value {{ string_value: "{spec.name}:{example}" }} }}'
        return (
            f"input '{spec.name}' {_shown(spec.shape)}: an engine is built for sizes up to a limit, and nothing "
            f"states that of dimension {dim}: write into config.pbtxt, with the real sizes: {line}"
        )


def _shapes(key: str, text: str) -> dict[str, Shape]:
    """Shapes as trtexec spells them: "ids:1x16,mask:1x16"."""
    shapes = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, sizes = part.rpartition(":")
        words = sizes.split("x")
        if not name or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise LoadError(f"parameter '{key}': expected INPUT:SIZExSIZE,..., as 'ids:8x128,mask:8x128', got '{part}'")
        shapes[name] = tuple(map(int, words))
    return shapes


def _check(key: str, name: str, shape: Shape, known: Mapping[str, TensorSpec]) -> None:
    if name not in known:
        expected = ", ".join(f"'{name}'" for name in known)
        raise LoadError(f"parameter '{key}': the model has no input '{name}', only {expected}")
    model = known[name].shape
    if len(shape) != len(model) or any(m not in (-1, s) for m, s in zip(model, shape, strict=True)):
        raise LoadError(f"parameter '{key}': input '{name}' is {_shown(model)} in the model, got {_shown(shape)}")


def _shown(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
