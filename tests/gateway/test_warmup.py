"""`model_warmup`: what a model has executed before its first caller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import index, infer, ready, refusal
from support.models import RepositoryBuilder
from support.server import Gateway, serving

RECORDER = """
import json
import threading
from pathlib import Path

class Model:
    inputs = [("x", "float32", (-1, 2)), ("text", object, (-1, 1))]
    outputs = [("y", "float32", (-1, 2))]

    def load(self, source):
        self.file = source.directory / "seen"

    def execute(self, inputs):
        if inputs["x"].max() == 13:
            raise ArithmeticError("cannot take 13")
        texts = [text.decode() for text in inputs["text"].flat]
        with self.file.open("a") as file:
            print(json.dumps([inputs["x"].tolist(), texts, threading.get_ident()]), file=file)
        return {"y": inputs["x"]}
"""


def x(data: str, dims: str = "[2]", data_type: str = "TYPE_FP32") -> str:
    """The input `x` of a warm-up request."""
    return f'inputs {{ key: "x" value {{ data_type: {data_type} dims: {dims} {data} }} }}\n'


def text(data: str) -> str:
    """The input `text` of a warm-up request."""
    return f'inputs {{ key: "text" value {{ data_type: TYPE_STRING dims: [1] {data} }} }}\n'


def warmup(*parts: str, batch_size: int = 1) -> str:
    """A warm-up request."""
    return f'model_warmup {{ name: "w" batch_size: {batch_size}\n{"".join(parts)} }}\n'


ZERO = x("zero_data: true") + text("zero_data: true")

GOOD = {
    "zero": warmup(ZERO, batch_size=2),
    "random": warmup(x("random_data: true"), text("random_data: true")),
    "file": warmup(x('input_data_file: "x.raw"'), text('input_data_file: "text.raw"')),
    "counted": warmup(ZERO, "count: 3"),
    "two_requests": warmup(ZERO) + warmup(x('input_data_file: "x.raw"'), text("zero_data: true")),
    "two_instances": warmup(ZERO) + "instance_group { count: 2 }\n",
}

BAD = {
    "missing": (warmup(x("zero_data: true")), "model_warmup 'w': no input text"),
    "unknown": (
        warmup(ZERO, 'inputs { key: "z" value { data_type: TYPE_FP32 dims: [1] zero_data: true } }'),
        "model_warmup 'w': the model has no input 'z': expected x, text",
    ),
    "shape": (
        warmup(x("zero_data: true", "[3]"), text("zero_data: true")),
        "model_warmup 'w': input 'x': expected FP32 [-1,2], got FP32 [1,3]",
    ),
    "open_size": (
        warmup(x("zero_data: true", "[-1]"), text("zero_data: true")),
        "model_warmup 'w': input 'x': expected FP32 [-1,2], got FP32 [1,-1]",
    ),
    "datatype": (
        warmup(x("zero_data: true", data_type="TYPE_INT8"), text("zero_data: true")),
        "model_warmup 'w': input 'x': expected FP32 [-1,2], got INT8 [1,2]",
    ),
    "too_many_rows": (
        "max_batch_size: 4\n" + warmup(ZERO, batch_size=5),
        "model_warmup 'w': batch_size is 5, over max_batch_size 4",
    ),
    "no_such_file": (
        warmup(x('input_data_file: "nosuch"'), text("zero_data: true")),
        "model_warmup 'w': input_data_file 'nosuch': [Errno 2] No such file or directory: 'no_such_file/warmup/nosuch'",
    ),
    "short_file": (
        warmup(x('input_data_file: "short.raw"'), text("zero_data: true")),
        "model_warmup 'w': input_data_file 'short.raw': ",
    ),
    "failing": (
        warmup(x('input_data_file: "thirteen.raw"'), text("zero_data: true")),
        "model_warmup 'w': ArithmeticError: cannot take 13",
    ),
}

FILES = {
    "x.raw": np.float32([1.5, -2]).tobytes(),
    "text.raw": b"\x05\0\0\0hello",
    "short.raw": bytes(7),
    "thirteen.raw": np.float32([13, 13]).tobytes(),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's folder."""
    return tmp_path_factory.mktemp("warmup") / "models"


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[Gateway]:
    """A server over every good and bad warm-up."""
    builder = RepositoryBuilder(root)
    for name, config in {**GOOD, **{name: config for name, (config, _) in BAD.items()}}.items():
        folder = builder.add(name, {"model.py": RECORDER}, config)
        (folder / "warmup").mkdir()
        for filename, content in FILES.items():
            (folder / "warmup" / filename).write_bytes(content)
    with serving(root) as running:
        yield running


@pytest.mark.usefixtures("gateway")
class TestExecuted:
    """What the model has seen by the time the server is ready, before anyone called it."""

    @pytest.fixture
    def seen(self, root):
        """Inputs and thread of every execution of a model."""
        return lambda name: [json.loads(line) for line in (root / name / "1" / "seen").read_text().splitlines()]

    def test_zero_data(self, seen):
        """`zero_data` warms up with zeros and empty strings, in a batch of `batch_size` rows."""
        [(values, texts, _)] = seen("zero")
        assert (values, texts) == ([[0, 0], [0, 0]], ["", ""])

    def test_random_data(self, seen):
        """`random_data` warms up with numbers and texts that are not all zero."""
        [(values, texts, _)] = seen("random")
        assert np.shape(values) == (1, 2)
        assert np.any(values)
        assert texts[0].isdecimal()

    def test_input_data_file(self, seen):
        """`input_data_file` warms up with the raw contents of a file in the model's folder `warmup`."""
        [(values, texts, _)] = seen("file")
        assert (values, texts) == ([[1.5, -2]], ["hello"])

    def test_count(self, seen):
        """`count` repeats a warm-up request."""
        assert [values for values, _, _ in seen("counted")] == [[[0, 0]]] * 3

    def test_every_request(self, seen):
        """Several warm-up requests run in the order of the configuration."""
        assert [values for values, _, _ in seen("two_requests")] == [[[0, 0]], [[1.5, -2]]]

    def test_every_instance(self, seen):
        """Each instance is warmed up, on the thread that will serve."""
        threads = [thread for _, _, thread in seen("two_instances")]
        assert len(threads) == len(set(threads)) == 2


@pytest.mark.parametrize("name", GOOD)
def test_warmed_up_models_serve(gateway, name):
    """A model whose warm-up went well is ready."""
    assert ready(gateway, name)


@pytest.mark.parametrize("name", BAD)
def test_failed_warmup_is_a_failed_load(gateway, name):
    """A warm-up that does not fit the model, or that it fails on, leaves it unavailable with the reason."""
    state, reason = index(gateway)[f"{name}/1"]
    assert state == "UNAVAILABLE"
    assert reason.startswith(BAD[name][1]), reason
    assert refusal(lambda: infer(gateway, name))[0] is grpc.StatusCode.UNAVAILABLE
