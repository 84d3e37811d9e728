"""What a backend states of a model, checked: anybody may have written it."""

from __future__ import annotations

from typing import Any

from backends import base
from backends.base import LoadError


def signature_of(model: base.Model) -> base.Signature:
    """The model's signature in our own types: a foreign backend may give plain tuples.

    Raises:
        LoadError: it does not follow the contract.
    """
    stated: Any = model.signature
    deterministic = getattr(stated, "deterministic", True)  # a foreign one need not have it
    if not isinstance(deterministic, bool):
        raise LoadError(f"deterministic is {deterministic!r}, expected True or False")
    try:
        return base.Signature(
            tuple(base.TensorSpec.of(*spec) for spec in stated.inputs),
            tuple(base.TensorSpec.of(*spec) for spec in stated.outputs),
            stated.max_batch_size,
            deterministic,
            tuple(map(int, getattr(stated, "batch_sizes", ()))),  # nor this
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadError(f"the backend's signature does not follow the contract: {error}") from error


def memory_of(model: base.Model) -> dict[tuple[str, int], int]:
    """Bytes that the model says its weights take, by kind of device and its number; empty if it says nothing.

    Raises:
        LoadError: what it says does not follow the contract; statistics are to come to no harm by it.
    """
    try:
        stated = dict(getattr(model, "memory", {}))  # optional in the contract
        devices = {device: device.partition(":") for device in stated}
        return {(kind, int(number or 0)): int(stated[device]) for device, (kind, _, number) in devices.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadError(f"the backend's `memory` is not as {{'CPU:0': bytes}}: {error}") from error
