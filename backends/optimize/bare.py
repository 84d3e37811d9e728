"""An artifact called through the backend that serves it, without the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from backends.base import UNBOUNDED, Array, Instance, Model, ModelSource, Signature, TensorSpec
from backends.optimize.variant import Artifact
from backends.registry import Registry

if TYPE_CHECKING:  # a process that times another runtime is not to hold PyTorch
    from torch import Tensor

    from backends.optimize.recipe import Recipe

Call = Callable[[Mapping[str, Array]], dict[str, Array]]
"""One batch: outputs by name for inputs by name."""


def declared(recipe: Recipe) -> Signature:
    """The recipe's tensors, every first dimension open: what config.pbtxt declares.

    TorchScript and AOTInductor packages cannot be served without it, and a .pt2 calls its outputs OUTPUT__0, ... then.
    """
    return Signature(_specs(arrays(recipe.sample)), _specs(recipe.run(recipe.model, recipe.sample)), UNBOUNDED)


def device_of(artifact: Artifact) -> str:
    """Where a file is executed: on the CPU, which is there everywhere, but for engines, which know GPUs alone."""
    return "cuda:0" if artifact.backend == "tensorrt" else "cpu"


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """The same numbers, in the same memory."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def opened(artifact: Artifact, recipe: Recipe) -> AbstractContextManager[Call]:
    """The artifact loaded for tensors as the recipe's: see `loaded`."""
    return loaded(artifact, declared(recipe))


@contextmanager
def loaded(artifact: Artifact, tensors: Signature) -> Iterator[Call]:
    """The artifact loaded as the gateway would load it; to be called on this thread alone, as an instance is.

    Args:
        artifact: the file.
        tensors: its inputs and outputs, as `declared` gives them.

    Raises:
        LoadError: the backend does not take the file.
    """
    source = ModelSource(
        artifact.file.stem,
        1,
        artifact.file.parent,
        artifact.file,
        artifact.parameters,
        tensors,
        device_of(artifact),
        artifact.batch_sizes,
    )
    registry = Registry()
    model = registry.backend(registry.info(artifact.backend)).load(source)
    try:
        instance = model.instance()
        try:
            yield partial(_execute, instance, model)
        finally:
            instance.close()
    finally:
        model.close()


def _execute(instance: Instance, model: Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    taken = {spec.name: inputs[spec.name] for spec in map(TensorSpec._make, model.signature.inputs)}
    return dict(instance.execute(taken))


def _specs(tensors: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.of(name, array.dtype, (-1, *np.shape(array)[1:])) for name, array in tensors.items())
