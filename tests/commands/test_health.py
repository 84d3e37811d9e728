"""`tensorgate health`: what Docker asks a container with."""

from __future__ import annotations

from pathlib import Path

from support.calls import Gate
from support.commands import Here
from support.models import RepositoryBuilder
from support.server import free_port, launch


def test_a_server_is_healthy_once_it_has_loaded(repository: RepositoryBuilder, here: Here, tmp_path: Path) -> None:
    """While models load the command fails and says so; then it ends with 0."""
    gate = Gate(tmp_path / "gate", "load")
    repository.add("slow", gate.files, gate.config)
    with launch("--model-repository", repository.root, "--port", "0") as server:
        address = server.wait_for_log(r"listening on (\S+)")[1]
        early = here("health", "--address", address)
        assert (early.returncode, early.stdout) == (1, "")
        assert early.stderr == (f"tensorgate: the server at {address} is not ready: it is loading models, or ending\n")
        gate.open()
        server.wait_until_ready()
        ready = here("health", "--address", address)
        assert (ready.returncode, ready.stdout) == (0, "ready\n")


def test_no_server_is_not_healthy(here: Here) -> None:
    """Where nothing answers the command fails with 1, the code that Docker takes for it, and names the address."""
    address = f"localhost:{free_port()}"
    answer = here("health", "--address", address)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith(f"tensorgate: no server answers at {address} ")
