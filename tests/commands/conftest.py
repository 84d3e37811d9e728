"""One server for all that does not need its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.commands import add_models, tensorgate
from support.models import RepositoryBuilder
from support.server import Gateway, serving

Predict = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves the models of `support.commands`."""
    repository = add_models(RepositoryBuilder(tmp_path_factory.mktemp("commands") / "models"))
    with serving(repository.root) as running:
        yield running


@pytest.fixture
def predict(gateway: Gateway) -> Predict:
    """Runs `tensorgate predict MODEL --input FILE --output FILE ...` to its end."""

    def run(model: str, source: Path, target: Path, *options: str | Path) -> CompletedProcess[str]:
        return tensorgate(
            "predict", model, "--input", source, "--output", target, "--address", gateway.address, *options
        )

    return run
