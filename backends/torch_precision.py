"""Computing in another floating-point type than a model file has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from backends.base import LoadError, ModelSource, Signature, TensorSpec
from backends.torch_program import DTYPES, Program

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FLOATS = {numpy: dtype for dtype, numpy in DTYPES.items() if dtype.is_floating_point}


def precision(source: ModelSource) -> torch.dtype | None:
    """The parameter `dtype`; None without it.

    Raises:
        LoadError: it is something else.
    """
    text = source.parameters.get("dtype")
    if text is None:
        return None
    if (dtype := _PRECISIONS.get(text.strip().lower())) is None:
        raise LoadError(f"parameter 'dtype': expected one of {', '.join(_PRECISIONS)}, got '{text}'")
    return dtype


def cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Turn the weights of a module into `dtype`.

    Raises:
        LoadError: `dtype` is float32, and they are less: what was lost does not come back.
    """
    tensors = (*module.parameters(), *module.buffers())
    if dtype is torch.float32 and (lower := {t.dtype for t in tensors} & {torch.float16, torch.bfloat16}):
        raise LoadError(f"parameter 'dtype' is fp32, the file's weights are {lower.pop()}: export it in float32")
    module.to(dtype)


def computing_in(dtype: torch.dtype, program: Program, device: torch.device, declared: Signature) -> Program:
    """A program that computes in `dtype`, to which its weights have been cast.

    Products, convolutions and the like take `dtype` whatever they are given; what would suffer by it (sums, norms,
    softmax) stays in float32: torch.autocast knows which is which. The outputs come in the signature's datatypes, which
    are those that config.pbtxt declares where these are floating-point as well.
    """
    if dtype is torch.float32:
        return program
    signature = replace(
        program.signature,
        inputs=_as_declared(program.signature.inputs, declared.inputs),
        outputs=_as_declared(program.signature.outputs, declared.outputs),
    )
    wanted = [_FLOATS.get(spec.dtype) for spec in signature.outputs]

    def run(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.autocast(device.type, dtype=dtype):
            results = program.run(tensors)
        return [result.to(to) if to else result for result, to in zip(results, wanted, strict=True)]

    return replace(program, signature=signature, run=run)


def _as_declared(specs: Sequence[TensorSpec], declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    dtypes = {spec.name: spec.dtype for spec in declared if spec.dtype in _FLOATS}
    return tuple(
        spec._replace(dtype=dtypes.get(spec.name, spec.dtype)) if spec.dtype in _FLOATS else spec for spec in specs
    )
