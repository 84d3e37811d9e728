"""One server for all that does not need its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import Ended, Here, add_models
from support.models import RepositoryBuilder
from support.profiling import add_profiled
from support.server import Gateway, serving


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves the models of `support.commands`."""
    repository = add_models(RepositoryBuilder(tmp_path_factory.mktemp("commands") / "models"))
    with serving(repository.root) as running:
        yield running


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Runs `tensorgate ...` within this process."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")  # as a command sets it for its own process
    return Here(capsys)


@pytest.fixture
def predict(gateway: Gateway, here: Here) -> Callable[..., Ended]:
    """Runs `tensorgate predict MODEL --input FILE --output FILE ...` to its end."""

    def run(model: str, source: Path, target: Path, *options: str | Path) -> Ended:
        files = ("--input", source, "--output", target)
        return here("predict", model, *files, "--address", gateway.address, *options)

    return run


@pytest.fixture(scope="package")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the models of `support.profiling`."""
    return add_profiled(RepositoryBuilder(tmp_path_factory.mktemp("profiled") / "models")).root


@pytest.fixture
def profile(here: Here, profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs `tensorgate profile ...` over that repository, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return lambda *arguments: here("profile", *arguments, "--model-repository", profiled)
