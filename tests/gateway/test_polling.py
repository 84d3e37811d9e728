"""Control mode `poll`: the served models follow the folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import ECHO, Gate, eventually, index, infer, ready, refusal, request
from support.models import RepositoryBuilder, onnx_identity
from support.server import Gateway, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's folder."""
    return tmp_path_factory.mktemp("polled") / "models"


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[Gateway]:
    """A server that looks five times a second, with one model from the start."""
    RepositoryBuilder(root).add("first", config=ECHO)
    with serving(root, "--model-control", "poll", "--poll-interval-s", "0.2") as running:
        yield running


@pytest.fixture
def builder(root: Path) -> RepositoryBuilder:
    """The repository, while the server follows it."""
    return RepositoryBuilder(root)


def test_models_come_and_go_with_their_folders(gateway, builder):
    """A new folder is served and a removed one is unknown, without a word to the server."""
    folder = builder.add("passing", config=ECHO)
    eventually(lambda: ready(gateway, "passing"))
    shutil.rmtree(folder)
    eventually(lambda: not ready(gateway, "passing"))
    eventually(lambda: refusal(lambda: infer(gateway, "passing"))[0] is grpc.StatusCode.NOT_FOUND)
    assert "passing/1" not in index(gateway)
    assert infer(gateway, "first").shape == (1, 4)


def test_versions_come_and_go_with_their_folders(gateway, builder):
    """A new version folder takes over by itself, and its removal brings the older one back."""
    builder.add("versions", config=ECHO)
    eventually(lambda: ready(gateway, "versions"))
    folder = builder.add("versions", version=2)
    eventually(lambda: ready(gateway, "versions", "2"))
    eventually(lambda: not ready(gateway, "versions", "1"))
    shutil.rmtree(folder / "2")
    eventually(lambda: ready(gateway, "versions", "1"))


def test_broken_new_version_leaves_the_old_one_serving(gateway, builder):
    """A new version that does not load is listed with its reason, and the old one answers until it does."""
    model = (
        "class Model:\n    inputs = outputs = [('x', 'float32', (-1,))]\n    def execute(self, inputs): return inputs\n"
    )
    builder.add("renewed", {"model.py": model})
    eventually(lambda: ready(gateway, "renewed"))
    builder.add("renewed", {"model.py": "nonsense"}, version=2)
    reason = eventually(lambda: index(gateway).get("renewed/2", ("", ""))[1])
    assert "NameError" in reason
    assert index(gateway)["renewed/1"] == ("READY", "")
    assert infer(gateway, "renewed", np.ones(1, np.float32), "x").tolist() == [1]
    builder.add("renewed", {"model.py": model}, version=2)
    eventually(lambda: ready(gateway, "renewed", "2"))
    eventually(lambda: "renewed/1" not in index(gateway))


def test_only_what_changed_is_loaded_again(gateway, builder, tmp_path):
    """A change to one version leaves the others as they are; a change of config.pbtxt concerns them all."""
    gate = Gate(tmp_path / "gate", stage="none")
    config = gate.config + "version_policy { all {} }"
    builder.add("partly", gate.files, config)
    folder = builder.add("partly", gate.files, version=2)
    eventually(lambda: ready(gateway, "partly", "1") and ready(gateway, "partly", "2"))
    before = len(gate.begun("load"))
    os.utime(folder / "2" / "model.py", (1, 1))
    assert eventually(lambda: gate.begun("load")[before:]) == ["2"]
    (folder / "config.pbtxt").write_text(config + "max_batch_size: 3\n")
    eventually(lambda: len(gate.begun("load")) == before + 3)
    assert sorted(gate.begun("load")[-2:]) == ["1", "2"]


def test_broken_change_keeps_the_former_serving(gateway, builder):
    """A broken change is reported once and tried once; the former model answers until the change is mended."""
    folder = builder.add("mended", config=ECHO + "max_batch_size: 2")
    eventually(lambda: ready(gateway, "mended"))
    (folder / "config.pbtxt").write_text("no such thing")
    state, reason = eventually(lambda: index(gateway)["mended/1"][1] and index(gateway)["mended/1"])
    assert state == "READY"
    assert reason.startswith("reload failed, the former one serves on: config.pbtxt: ")
    assert infer(gateway, "mended").shape == (1, 4)
    # Other changes come and go, so the server has looked several times; it has not tried again.
    for name in ("probe1", "probe2"):
        builder.add(name, config=ECHO)
        eventually(lambda name=name: ready(gateway, name))
    assert gateway.server.log.count("ERROR   model mended") == 1
    (folder / "config.pbtxt").write_text(ECHO + "max_batch_size: 3")
    eventually(lambda: index(gateway)["mended/1"] == ("READY", ""))
    assert infer(gateway, "mended", np.ones((3, 4), np.float32)).shape == (3, 4)


def test_busy_model_does_not_hold_up_the_others(gateway, builder, tmp_path):
    """A removed model that still works on a request does not keep the server from following other changes."""
    gate = Gate(tmp_path / "gate")
    folder = builder.add("stuck", gate.files, gate.config)
    eventually(lambda: ready(gateway, "stuck"))
    x = np.ones(1, np.float32)
    call = gateway.stub.ModelInfer.future(request("stuck", {"x": x}), timeout=60)
    eventually(gate.begun)
    shutil.rmtree(folder)
    eventually(lambda: not ready(gateway, "stuck"))
    builder.add("after_stuck", config=ECHO)
    eventually(lambda: ready(gateway, "after_stuck"))
    gate.open()
    assert call.result().raw_output_contents[0] == x.tobytes()
    eventually(lambda: gate.closed)


def test_slow_load_does_not_hold_up_the_others(gateway, builder, tmp_path):
    """A model that takes long to load does not keep the server from following other changes."""
    gate = Gate(tmp_path / "gate", stage="load")
    builder.add("ponderous", gate.files, gate.config)
    eventually(lambda: gate.begun("load"))
    folder = builder.add("quick", config=ECHO)
    eventually(lambda: ready(gateway, "quick"))
    shutil.rmtree(folder)
    eventually(lambda: not ready(gateway, "quick"))
    gate.open()
    eventually(lambda: ready(gateway, "ponderous"))
    assert gate.begun("load") == ["1"]


def test_copy_under_way_is_not_loaded(gateway, builder):
    """A model file that is still being copied is left alone until it is whole: no error, no half a model."""
    whole = onnx_identity()
    with (builder.add("copied") / "1" / "model.onnx").open("wb") as file:
        for byte in whole[:40]:  # over two seconds, in which the server looks ten times
            file.write(bytes([byte]))
            file.flush()
            time.sleep(0.05)
        file.write(whole[40:])
    eventually(lambda: ready(gateway, "copied"))
    assert "ERROR   model copied" not in gateway.server.log


def test_editors_leave_the_model_alone(gateway, builder, tmp_path):
    """An editor's swap file and lock in a model's folder do not make it load again."""
    gate = Gate(tmp_path / "gate", stage="none")
    folder = builder.add("edited", gate.files, gate.config)
    eventually(lambda: ready(gateway, "edited"))
    (folder / ".config.pbtxt.swp").write_text("...")
    (folder / ".#config.pbtxt").symlink_to("user@host.1234:5")
    for name in ("look1", "look2"):
        builder.add(name, config=ECHO)
        eventually(lambda name=name: ready(gateway, name))
    assert gate.begun("load") == ["1"]
