"""The models that the traffic calls: each multiplies by a factor, which grows with every reload."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from support.models import RepositoryBuilder, onnx_model

POISON = 666
"""A value that models fail on."""

UNFIT = 404
"""A value that models refuse as the caller's fault."""

_CACHED = "response_cache { enable: true }\n"
_PYTHON = f"""
import time
from backends.base import InvalidInput

class Model:
    inputs = [("x", "float32", (-1, -1))]
    outputs = [("y", "float32", (-1, -1))]

    def execute(self, inputs):
        x = inputs["x"]
        time.sleep(MILLISECONDS / 1000)
        if len(x) not in SIZES or (x == {POISON}).any():
            raise RuntimeError("poison, or a batch of a size that was ruled out")
        if (x == {UNFIT}).any():
            raise InvalidInput("x: unfit")
        return {{"y": x * FACTOR}}
"""


@dataclass(frozen=True)
class Kind:
    """A model of the soak.

    Attributes:
        config: its config.pbtxt.
        ms: how long an execution takes; none for ONNX, which does not mind poison either.
        sizes: numbers of rows that an execution may have.
        crowded: whether its queue is so short that it may be full.
        change: "reload" while it serves, "unload" for a while, or neither.
    """

    config: str
    ms: int | None = 1
    sizes: tuple[int, ...] = tuple(range(1, 9))
    crowded: bool = False
    change: str = ""

    def write(self, repository: RepositoryBuilder, name: str, factor: int) -> None:
        """Put the model into the repository, or its next state over the former."""
        config = "max_batch_size: 8\n" + self.config
        if self.ms is None:
            repository.add(name, {"model.onnx": _onnx(factor)}, config)
            return
        values = {"MILLISECONDS": self.ms, "SIZES": self.sizes, "FACTOR": factor}
        text = _PYTHON
        for key, value in values.items():
            text = text.replace(key, repr(value))
        repository.add(name, {"model.py": text}, config)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def _onnx(factor: int) -> bytes:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "width"]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.float32([factor]), "factor")
    return onnx_model([helper.make_node("Mul", ["x", "factor"], ["y"])], tensors[:1], tensors[1:], [weight])


_LEVELS = "priority_levels: 3 default_priority_level: 2 default_queue_policy { max_queue_size: 4 }"
KINDS: dict[str, Kind] = {
    "plain": Kind("", change="reload"),
    "cached": Kind(_CACHED, ms=3, change="reload"),
    "short_lived": Kind(_CACHED + _parameter("response_cache_ttl_s", "0.2")),
    "ranked": Kind(f"dynamic_batching {{ {_LEVELS} }}\n", ms=4, crowded=True),
    "padded": Kind(_parameter("pad", "x[1] y[1]: 4 8") + _CACHED),
    "sized": Kind(_parameter("batch_sizes", "2 4 8"), sizes=(2, 4, 8)),
    "patient": Kind(
        "dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 3000 }\n"
        "instance_group { count: 2 }\n",
        change="reload",
    ),
    "onnx": Kind(_CACHED, ms=None, change="reload"),
    "flicker": Kind(_CACHED, change="unload"),
}


class Factors:
    """What each model multiplies by, shared by all processes through a file.

    Args:
        file: of two numbers per model: the lowest factor that a request sent now may be answered with, the highest.
    """

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(np.ones(2 * len(KINDS), np.int64).tobytes())
        with file.open("r+b") as opened:
            self._numbers = np.frombuffer(mmap.mmap(opened.fileno(), 0), np.int64).reshape(-1, 2)
        self._rows = {name: row for row, name in enumerate(KINDS)}

    def lowest(self, name: str) -> int:
        """Of the load that has returned last."""
        return int(self._numbers[self._rows[name], 0])

    def highest(self, name: str) -> int:
        """Of the load that began last."""
        return int(self._numbers[self._rows[name], 1])

    def begin(self, name: str) -> int:
        """The next factor, which answers may have from now on."""
        self._numbers[self._rows[name], 1] += 1
        return self.highest(name)

    def complete(self, name: str) -> None:
        """No former factor may come any more in answer to what is sent from now on."""
        self._numbers[self._rows[name], 0] = self.highest(name)


def build(root: Path) -> RepositoryBuilder:
    """The repository, all factors being 1."""
    repository = RepositoryBuilder(root)
    for name, kind in KINDS.items():
        kind.write(repository, name, 1)
    return repository
