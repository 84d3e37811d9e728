"""Models loaded the way the gateway loads them, without the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import loading
from support.loading import Loader
from support.models import install_third_party

from backends.base import Signature, TensorSpec


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loader]:
    """Loads models and closes them when the test ends."""
    with ExitStack() as closing:
        yield Loader(tmp_path / "versions", closing)


@pytest.fixture
def execute() -> Callable[..., Mapping[str, Any]]:
    """Executes one batch in an instance of its own, on a thread of its own."""
    return loading.execute


@pytest.fixture
def declare() -> Callable[..., Signature]:
    """A config.pbtxt's tensors: `declare({"x": ("float32", (-1, 4))}, {"y": ...}, 8)`."""

    def specs(tensors: Mapping[str, tuple[Any, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.of(name, dtype, shape) for name, (dtype, shape) in tensors.items())

    return lambda inputs, outputs, max_batch_size=8: Signature(specs(inputs), specs(outputs), max_batch_size)


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed a distribution with a backend named `scale`."""
    return install_third_party(tmp_path_factory.mktemp("third_party"))
