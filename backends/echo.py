"""Backend `echo`: every output is the input of the same position. For trying the gateway without a runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from backends.base import (
    UNBOUNDED,
    Array,
    LoadError,
    ModelSource,
    Signature,
    TensorSpec,
    warn_of_unknown,
    whole_number,
)

_DEFAULT = Signature(
    (TensorSpec("INPUT0", np.dtype(np.float32), (-1, -1)),),
    (TensorSpec("OUTPUT0", np.dtype(np.float32), (-1, -1)),),
    UNBOUNDED,
)


class EchoBackend:
    """Loads identity models.

    Parameter `delay_ms`: how long an execution takes, to play a slow model.
    """

    def load(self, source: ModelSource) -> EchoModel:
        """An identity over the declared tensors; without any, one FP32 INPUT0 to OUTPUT0 of two dimensions.

        Raises:
            LoadError: inputs and outputs do not pair up.
        """
        warn_of_unknown(source, ["delay_ms"])
        signature = source.declared if source.declared.inputs else _DEFAULT
        if len(signature.inputs) != len(signature.outputs):
            raise LoadError(
                f"echo pairs inputs with outputs by position: config.pbtxt declares {len(signature.inputs)} "
                f"inputs and {len(signature.outputs)} outputs"
            )
        for given, taken in zip(signature.inputs, signature.outputs, strict=True):
            if given[1:] != taken[1:]:
                raise LoadError(
                    f"echo gives back what it gets: declare output '{taken.name}' like input '{given.name}'"
                )
        return EchoModel(signature, whole_number(source, "delay_ms", 0) / 1000)


class EchoModel:
    """An identity; it is its own instance, since it holds nothing."""

    def __init__(self, signature: Signature, delay: float) -> None:
        self.signature = signature
        self.inline = not delay
        self._delay = delay
        self._outputs = {i.name: o.name for i, o in zip(signature.inputs, signature.outputs, strict=True)}

    def instance(self) -> EchoModel:
        """The model itself."""
        return self

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """The inputs under their outputs' names."""
        if self._delay:
            time.sleep(self._delay)
        return {self._outputs[name]: array for name, array in inputs.items()}

    def close(self) -> None:
        """Nothing to free."""
