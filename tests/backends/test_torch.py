"""What holds for every model file of PyTorch: which files are served, devices, threads."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from support.models import linear, save_exported

from backends.base import LoadError

MODEL = """
import torch

class Model:
    inputs, outputs = [("x", "float32", (-1, 4))], [("y", "float32", (-1, 3))]
    def load(self, source):
        self.network = torch.load(source.directory / "network.pt", weights_only=False)
    def execute(self, inputs):
        with torch.inference_mode():
            return {"y": self.network(torch.tensor(inputs["x"]))}
"""


def export(path: Any) -> None:
    """Write a linear layer as a torch.export archive."""
    save_exported(linear(), path, torch.zeros(2, 4))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator would see in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("what", ["module", "state_dict"])
def test_pickles_are_not_served(what: str, load: Any) -> None:
    """Whoever puts a pickled module or bare weights there is told what to write instead."""

    def write(path: Any) -> None:
        torch.save(linear() if what == "module" else linear().state_dict(), path)

    with pytest.raises(LoadError) as caught:
        load("model.pt", write)
    assert str(caught.value) == (
        "model.pt is neither a torch.export archive nor TorchScript; a pickled module or a bare state_dict is not "
        "served: write one with torch.export.save(torch.export.export(model, example), 'model.pt2')"
    )


def test_an_archive_by_another_name(load: Any, execute: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A torch.export archive called model.pt is served like one called model.pt2, without a word in the log."""
    x = np.ones((1, 4), np.float32)
    with torch.inference_mode():
        expected = linear()(torch.ones(1, 4)).numpy()
    file = load.file("model.pt2", export)
    caplog.clear()
    np.testing.assert_allclose(execute(load("model.pt", file), input=x)["OUTPUT__0"], expected, rtol=0, atol=1e-5)
    assert not warned(caplog)


def test_damaged_inside(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An archive of which a part is missing is refused with that part's name, not with a traceback in the log."""

    def write(path: Any) -> None:
        export(path)
        records = torch._C.PyTorchFileReader(str(path))
        parts = {name: records.get_record(name) for name in records.get_all_records()}
        writer = torch._C.PyTorchFileWriter(str(path))
        for name, data in parts.items():
            if name not in ("data/weights/weight_0", ".data/version", ".data/serialization_id", "byteorder"):
                writer.write_record(name, data, len(data))
        writer.write_end_of_file()

    with pytest.raises(LoadError, match=r"^model\.pt2: .*data/weights/weight_0") as caught:
        load("model.pt2", write)
    assert "\n" not in str(caught.value)
    assert not warned(caplog)


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_wrong_device(device: str, load: Any) -> None:
    """A device that this machine or torch lacks is refused in a line that names it."""
    with pytest.raises(LoadError, match=f"^no device '{device}': .+") as caught:
        load("model.pt2", export, device=device)
    assert "\n" not in str(caught.value)


def test_the_former_parameter(load: Any) -> None:
    """Whoever still names the device in a parameter is told what says it now."""
    with pytest.raises(LoadError, match=r"^parameter 'device' is now instance_group \{ kind: KIND_GPU gpus: \[0\] \}"):
        load("model.pt2", export, {"device": "cuda"})


def test_wrong_thread_count(load: Any) -> None:
    """A thread count that is no number is refused."""
    with pytest.raises(LoadError, match="'intra_op_thread_count': expected a whole number of at least 0, got 'all'"):
        load("model.pt2", export, {"intra_op_thread_count": "all"})


def test_threads_per_instance(load: Any) -> None:
    """The thread count holds for the model that asks for it, and not for those loaded after it."""
    usual = torch.get_num_threads()
    wanted = usual + 1
    counts = []
    for parameters in ({"intra_op_thread_count": str(wanted)}, {}, {"intra_op_thread_count": "0"}):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(load("model.pt2", export, parameters).instance).result()
            counts.append(thread.submit(torch.get_num_threads).result())
    assert counts == [wanted, usual, usual]


def test_python_models_load_what_they_like(load: Any, execute: Any) -> None:
    """A `python` model of the owner's own reads its pickles with torch.load, whatever was loaded before it."""
    load("model.pt2", export)
    file = load.file("model.py", MODEL)
    torch.save(linear(), file.parent / "network.pt")
    assert execute(load.reload(file), x=np.ones((1, 4), np.float32))["y"].shape == (1, 3)
