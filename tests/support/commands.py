"""`tensorgate` sub-commands in processes of their own, the models they are tried on, and the files they are given."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from gateway import cli
from support.calls import eventually
from support.models import RepositoryBuilder
from support.server import TENSORGATE
from support.zoo import add_identities, onnx_classifier

MOODY = """
import time
from pathlib import Path
from backends.base import InvalidInput

class Model:
    inputs = [("x", "float32", (-1, 1))]
    outputs = [("y", "float32", (-1, 1024))]

    def load(self, source):
        self.gate = Path(source.parameters["gate"]) if "gate" in source.parameters else None

    def execute(self, inputs):
        x = inputs["x"]
        if (x == 666).any():
            raise RuntimeError("secret")
        if (x == 404).any():
            raise InvalidInput("x: expected anything but 404")
        while self.gate and (x >= 8000).any() and not self.gate.exists():
            time.sleep(0.005)
        return {"y": x.repeat(1024, axis=1) + 1}
"""
"""Fails on 666 and refuses 404; stops at 8000 until its gate is there. Its rows are wide, so segments are short."""

SEGMENT_ROWS = 2048
"""Of `moody`: 8 MiB of its results."""

TWO = """
class Model:
    inputs = [("a", "float32", (-1, 2)), ("b", "int64", (-1,))]
    outputs = [("total", "float64", (-1,))]

    def execute(self, inputs):
        return {"total": inputs["a"].sum(1) + inputs["b"].astype("float64")}
"""

SHOUT = """
import numpy as np

class Model:
    inputs = [("text", object, (-1, 1))]
    outputs = [("shouted", object, (-1, 1))]

    def execute(self, inputs):
        return {"shouted": np.array([[b"\\xff" if t == b"raw" else t.upper()] for t in inputs["text"][:, 0]], object)}
"""

TOKENS = """
import numpy as np

class Model:
    inputs = [("tokens", "int32", (-1, -1))]
    outputs = [("twice", "int32", (-1, -1)), ("count", "int64", (-1,))]

    def execute(self, inputs):
        tokens = inputs["tokens"]
        return {"twice": np.asarray(tokens) * 2, "count": np.full(len(tokens), tokens.shape[1])}
"""

IMAGES = """
class Model:
    inputs = [("image", "float32", (-1, 1, 2, 3))]
    outputs = [("flipped", "float32", (-1, 3, 2)), ("mean", "float16", (-1,))]

    def execute(self, inputs):
        image = inputs["image"]
        return {"flipped": image[:, 0].transpose(0, 2, 1), "mean": image.mean((1, 2, 3)).astype("float16")}
"""

OPEN = """
class Model:
    inputs = [("x", "float32", (-1, -1))]
    outputs = [("y", "float32", (-1, -1))]

    def execute(self, inputs):
        return {"y": inputs["x"]}
"""
"""Gives back rows of any size."""

WHOLE = """
class Model:
    inputs = [("x", "float32", (2, 2))]
    outputs = [("y", "float32", (2, 2))]

    def execute(self, inputs):
        return {"y": inputs["x"].T}
"""


def add_models(repository: RepositoryBuilder, gate: Path | None = None) -> RepositoryBuilder:
    """`classifier` and models with something to go wrong or to get right."""
    parameter = f'parameters {{ key: "gate" value {{ string_value: "{gate}" }} }}\n' if gate else ""
    repository.add("classifier", {"model.onnx": onnx_classifier()}, "max_batch_size: 256\n")
    repository.add("moody", {"model.py": MOODY}, "max_batch_size: 64\n" + parameter)
    add_identities(repository)
    repository.add("whole", {"model.py": WHOLE}, "max_batch_size: 0\n")
    models = {"two": TWO, "shout": SHOUT, "tokens": TOKENS, "images": IMAGES, "open": OPEN}
    for name, source in models.items():
        repository.add(name, {"model.py": source}, "max_batch_size: 8\n")
    return repository


def tensorgate(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, run to its end."""
    command = [TENSORGATE, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def refusal(self) -> str:
        """The only line of a command that could not be done."""
        assert (self.returncode, self.stdout, self.stderr.count("\n")) == (2, "", 1), self
        return self.stderr


class Here:
    """Runs commands within this process, where what they import is there already: most tests need no other."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Ended:
        """A command, run to its end."""
        self._capture.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Ended(code, *self._capture.readouterr())


def hurried(**seconds: float) -> list[str | Path]:
    """`tensorgate`, but for what would make a test wait: how often it keeps rows, when it speaks of silence."""
    names = {"keep": "partial._SECONDS", "log": "progress._IN_LOG_S", "silent": "progress._SILENT_S"}
    set_all = "; ".join(f"{names[name]} = {value}" for name, value in seconds.items())
    code = f"from gateway.commands.predict import partial, progress; {set_all}; from gateway.cli import main; main()"
    return [sys.executable, "-c", code]


def interrupted(
    number: signal.Signals,
    when: Callable[[], bool],
    *arguments: str | Path,
    program: Sequence[str | Path] = (TENSORGATE,),
) -> tuple[int, str]:
    """Exit code and stderr of a command that is sent a signal at a certain moment, unless it ends before."""
    process = subprocess.Popen(list(map(str, (*program, *arguments))), stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: when() or process.poll() is not None)
        process.send_signal(number)
    finally:
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def segments(output: Path) -> int:
    """How many segments an unfinished run has written."""
    return len(list(Path(f"{output}.partial").glob("*.arrow")))


def peak_kib(*arguments: str | Path) -> int:
    """The most memory that a command held, from its own /proc entry: rusage would count what forked it."""
    code = (
        "import os, sys; leave = os._exit\n"
        "def tell(code):\n"
        "    print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')), flush=True)\n"
        "    leave(code)\n"
        "os._exit = tell\n"
        "from gateway.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env={**os.environ})
    return int(answer.stdout.split()[-2])


def vectors(rows: np.ndarray) -> pa.Array:
    """An array of rows as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def write(path: Path, **columns: Any) -> Path:
    """A file of these columns, by its suffix; text for .csv may be given as it is."""
    if path.suffix == ".npy":
        np.save(path, *columns.values())
    elif path.suffix == ".npz":
        np.savez(path, **columns)
    elif path.suffix == ".parquet":
        made = {name: vectors(v) if getattr(v, "ndim", 1) == 2 else v for name, v in columns.items()}
        pyarrow.parquet.write_table(pa.table(made), path)
    else:
        pyarrow.csv.write_csv(pa.table(columns), path)
    return path


def read(path: Path) -> dict[str, list[Any]]:
    """The columns of a .parquet or .csv file."""
    table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    return table.to_pydict()


def reasons(target: Path) -> dict[int, str]:
    """The rows that failed and why, as the side file lists them."""
    with Path(f"{target}.errors.csv").open(newline="") as file:
        return {int(row["row"]): row["reason"] for row in csv.DictReader(file)}
