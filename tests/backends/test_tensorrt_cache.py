"""Engines kept beside the files they were built from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.engines import ABOUT, perceptron, source

from backends.base import LoadError
from backends.tensorrt_cache import EngineCache
from gateway import layout

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for x86-64 alone")

from backends.tensorrt_build import Recipe, build
from backends.tensorrt_profile import Sizes

LOADING = """
import logging, sys
from functools import partial
from pathlib import Path
from backends.base import ModelSource
from backends.tensorrt_build import Recipe, build
from backends.tensorrt_cache import EngineCache
from backends.tensorrt_profile import Sizes

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
file = Path(sys.argv[1])
print("started", flush=True)
sys.stdin.readline()
recipe = Recipe(Sizes.of(ModelSource("m", 1, file.parent, file)))
plan = EngineCache(file, recipe).engine(partial(build, file, recipe, "m"), bytes, "m")
print("engine of", len(plan))
"""


class Builder:
    """Builds plans, and counts them."""

    def __init__(self, plan: bytes = b"the engine") -> None:
        self.plan = plan
        self.count = 0

    def __call__(self) -> bytes:
        """Another plan."""
        self.count += 1
        return self.plan


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model's file in a version folder of a repository."""
    folder = tmp_path / "models" / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"the model")
    return folder / "model.onnx"


def kept(file: Path) -> list[str]:
    """The engines that lie beside a file."""
    return sorted(path.name for path in file.parent.glob(".*.plan"))


def test_the_second_start_builds_nothing(file: Path) -> None:
    """A server that starts again has the engine at once."""
    build = Builder()
    assert [EngineCache(file, "GPU").engine(build, bytes, ABOUT) for _ in range(2)] == [b"the engine"] * 2
    assert build.count == 1


def _model(file: Path) -> None:
    file.write_bytes(b"another model")


def _weights(file: Path) -> None:
    (file.parent / "weights").write_bytes(b"retrained")


@pytest.mark.parametrize("change", [_model, _weights])
def test_another_model(change: Callable[[Path], None], file: Path) -> None:
    """A model that changes, in its own file or its weights, gets a new engine, and the old one does not stay."""
    (file.parent / "weights").write_bytes(b"trained")
    build = Builder()
    EngineCache(file, "GPU").engine(build, bytes, ABOUT)
    before = kept(file)
    change(file)
    EngineCache(file, "GPU").engine(build, bytes, ABOUT)
    assert build.count == 2
    assert len(kept(file)) == 1
    assert kept(file) != before


RECIPE = Recipe(Sizes.of(source(Path("m/1/model.onnx"), 8)))
OTHERS = {
    "library": ("tensorrt 11.4.1", "H100", RECIPE),
    "GPU": ("tensorrt 10.9", "H200", RECIPE),
    "sizes": ("tensorrt 10.9", "H100", Recipe(Sizes.of(source(Path("m/1/model.onnx"), 16)))),
    "preferred": (
        "tensorrt 10.9",
        "H100",
        Recipe(Sizes.of(source(Path("m/1/model.onnx"), 8, preferred_batch_sizes=(4,)))),
    ),
    "shapes": (
        "tensorrt 10.9",
        "H100",
        Recipe(Sizes.of(source(Path("m/1/model.onnx"), 8, parameters={"max_shapes": "x:8x9"}))),
    ),
    "precision": ("tensorrt 10.9", "H100", Recipe(RECIPE.sizes, tf32=False)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_one_engine_for_each_purpose(other: str, file: Path) -> None:
    """Servers with another GPU, library, sizes or precision share a folder without using each other's engines."""
    EngineCache(file, "tensorrt 10.9", "H100", RECIPE).engine(Builder(b"one"), bytes, ABOUT)
    assert EngineCache(file, *OTHERS[other]).engine(Builder(b"other"), bytes, ABOUT) == b"other"
    build = Builder()
    assert EngineCache(file, "tensorrt 10.9", "H100", RECIPE).engine(build, bytes, ABOUT) == b"one"
    assert build.count == 0


def test_an_engine_is_no_change_of_the_model(file: Path) -> None:
    """A server that polls its repository does not load a model again because it kept its engine."""
    root = file.parents[2]
    before = layout.fingerprint(root, "m")
    EngineCache(file).engine(Builder(), bytes, ABOUT)
    assert kept(file)
    assert layout.fingerprint(root, "m") == before


def test_an_engine_that_does_not_load(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged engine is built again, and the log says so."""
    EngineCache(file).engine(Builder(b"whole"), bytes, ABOUT)
    EngineCache(file).path.write_bytes(b"who")

    def opened(plan: Any) -> bytes:
        if bytes(plan) != b"whole":
            raise LoadError("magic tag missing")
        return bytes(plan)

    assert EngineCache(file).engine(Builder(b"whole"), opened, ABOUT) == b"whole"
    assert EngineCache(file).path.read_bytes() == b"whole"
    (message,) = caplog.messages
    assert message == "model m/1: the kept engine does not load and is built again: magic tag missing"


def test_a_failure_leaves_nothing(file: Path) -> None:
    """After a build that failed, or gave an engine that does not load here, the next start builds again."""

    def fail(*_: Any) -> bytes:
        raise LoadError("no")

    for building, opened in ((fail, bytes), (Builder(), fail)):
        with pytest.raises(LoadError, match=r"^no$"):
            EngineCache(file).engine(building, opened, ABOUT)
        assert kept(file) == []
    assert EngineCache(file).engine(Builder(), bytes, ABOUT) == b"the engine"


def test_a_folder_that_cannot_be_written_to(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model in a read-only folder is served all the same, and the log says what that costs."""
    cache = EngineCache(file)
    for name in (f".{file.name}.lock", cache.path.with_suffix(".tmp").name):
        (file.parent / name).mkdir()  # what refuses a write also to root
    assert cache.engine(Builder(), bytes, ABOUT) == b"the engine"
    (message,) = caplog.messages
    assert message.startswith("model m/1: the engine cannot be kept, each start will build it: ")


def test_threads_build_once(file: Path) -> None:
    """Two loads of a model at once, as for two GPUs of a kind, build its engine once."""
    file.write_bytes(perceptron())
    recipe = Recipe(Sizes.of(source(file)))
    count = 0

    def counted() -> Any:
        nonlocal count
        count += 1
        return build(file, recipe, ABOUT)

    with ThreadPoolExecutor(4) as threads:
        plans = list(threads.map(lambda _: EngineCache(file).engine(counted, bytes, ABOUT), range(4)))
    assert count == 1
    assert len(set(plans)) == 1


def test_processes_build_once(file: Path) -> None:
    """Servers that start together over one repository build an engine once."""
    file.write_bytes(perceptron(hidden=100_000))
    command = [sys.executable, "-c", LOADING, str(file)]
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        servers = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(3)]
        assert [server.stdout.readline() for server in servers] == ["started\n"] * 3
        for server in servers:
            server.stdin.write("\n")
            server.stdin.flush()
        logs = [server.communicate(timeout=120)[0] for server in servers]
    assert "".join(logs).count("engine built in") == 1
    assert len({log.splitlines()[-1] for log in logs}) == 1
    assert all(server.returncode == 0 for server in servers)
