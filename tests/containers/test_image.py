"""The image, built by its Dockerfile and run by a real runtime."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.calls import ECHO, eventually
from support.concurrent import parameter
from support.models import RepositoryBuilder, onnx_identity
from support.podman import HARDENED, Container, build, podman, running

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
NEEDED = ("podman", "runc", "debootstrap")
IMAGE = "localhost/tensorgate-test"

pytestmark = [
    pytest.mark.skipif(
        os.getuid() != 0 or not all(map(shutil.which, NEEDED)),
        reason=f"needs root, and {', '.join(NEEDED)}: apt-get install --no-install-recommends {' '.join(NEEDED)}",
    ),
    pytest.mark.timeout(900),
]

ASK = """
import sys
import numpy as np
from tensorgate_client import InferenceClient
model, name = sys.argv[1:]
with InferenceClient("localhost:8001") as client:
    for output in client.infer(model, {name: np.float32([[1, 2, 3, 4]])}).values():
        print(output.tolist())
"""
ANSWER = "[[1.0, 2.0, 3.0, 4.0]]\n"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, on the base that the Dockerfile names or, where no registry is reached, one like it."""
    base = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE.read_text(), re.MULTILINE)[0]
    if podman("image", "exists", base, check=False).returncode and podman("pull", base, check=False).returncode:
        base = stand_in(base, tmp_path_factory.mktemp("base"))
    build(DOCKERFILE, ROOT, IMAGE, BASE=base)
    return IMAGE


def stand_in(base: str, folder: Path) -> str:
    """Debian's Python of the same version on the same release of Debian, where `python` is what it is in the base."""
    version, suite = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", base).groups()  # type: ignore[union-attr]
    name = f"localhost/python-of-{suite}"
    if podman("image", "exists", name, check=False).returncode:
        root = folder / "root"
        packages = "--include=python3,python3-pip,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, suite, root], check=True, capture_output=True)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        subprocess.run(["tar", "--create", "--file", folder / "base.tar", "--directory", root, "."], check=True)
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        podman("import", "--change", path, folder / "base.tar", name)
        shutil.rmtree(root)
    found = podman(
        "run",
        "--rm",
        "--network=none",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
        name,
        "python",
        "--version",
    ).stdout
    assert found.startswith(f"Python {version}.")
    return name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that the container's user may read."""
    folder = tmp_path_factory.mktemp("image")
    builder = RepositoryBuilder(folder / "models")
    builder.add("identity", {"model.onnx": onnx_identity()})
    builder.add("slow", config=ECHO + parameter("delay_ms", 3000))
    return builder.root


@pytest.fixture
def container(image: str, models: Path) -> Iterator[Container]:
    """A gateway as it should be run, ready."""
    with running(image, *HARDENED, f"--volume={models}:/models:ro") as started:
        eventually(lambda: "ready: gRPC" in started.log or not started.state["Running"])
        assert "ready: gRPC on 0.0.0.0:8001, 2 models ready" in started.log
        yield started


def test_it_serves_where_nothing_can_be_written(container: Container) -> None:
    """It answers a real inference as an ordinary user, on a root that is read-only, without any capability."""
    assert container.run("python", "-c", ASK, "identity", "x") == ANSWER
    status = container.run("cat", "/proc/1/status")
    assert re.findall(r"^(?:Uid|Gid):\t(\d+)", status, re.MULTILINE) == ["10001", "10001"]
    assert re.findall(r"^Cap(?:Prm|Eff|Bnd):\t(\w+)", status, re.MULTILINE) == ["0" * 16] * 3
    assert container.run("find", "/", "-xdev", "-type", "d", "-writable", check=False) == ""
    lines = [json.loads(line) for line in container.log.splitlines()]  # its log is for programs, all of it
    assert {line["level"] for line in lines} == {"INFO"}


def test_its_health_check(container: Container, image: str) -> None:
    """What the image has Docker run tells whether the gateway serves."""
    (inspected,) = json.loads(podman("image", "inspect", image).stdout)
    kind, *command = inspected["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert container.run(*command) == "ready\n"
    container.run("python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    eventually(lambda: not container.state["Running"])


def test_stopping_it_loses_nothing(container: Container) -> None:
    """As the first process of its container it takes SIGTERM, answers what it works on, and ends with 0."""
    with container.start("python", "-c", ASK, "slow", "INPUT0") as call:
        metrics = "from urllib.request import urlopen; print(urlopen('http://localhost:8002/metrics').read().decode())"
        working = "tensorgate_requests_in_flight 1.0"
        eventually(lambda: working in container.run("python", "-c", metrics))
        podman("kill", "--signal=TERM", container.name)
        assert call.communicate(timeout=60)[0] == ANSWER
    eventually(lambda: not container.state["Running"])
    assert container.state["ExitCode"] == 0


def test_a_start_without_models(image: str) -> None:
    """A container that was given no models says so and ends, and does not serve none."""
    with running(image, *HARDENED) as container:
        eventually(lambda: not container.state["Running"])
        assert container.state["ExitCode"] == 2
        assert container.log == "tensorgate: TENSORGATE_MODEL_REPOSITORY: no such directory: /models\n"


def test_what_is_in_it(image: str) -> None:
    """The installed program is compiled and root's; nothing of how it was built is left."""
    with running(image, "--entrypoint=sleep", command=("600",)) as container:
        assert container.run("find", "/opt/tensorgate", "-writable", "-not", "-type", "l") == ""
        assert container.run("find", "/opt/tensorgate", "-name", "settings.*.pyc", "-path", "*/gateway/*") != ""
        left = container.run("find", "/source", "/var/cache/pip", "/opt/tensorgate/bin/pip", check=False)
        assert left == ""
