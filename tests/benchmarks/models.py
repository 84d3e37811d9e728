"""The models that are measured, and requests for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import BenchmarkError, progress

_ROOT = Path(__file__).parent.parent.parent
_BUILDER = _ROOT / "clients" / "python" / "examples" / "minilm" / "build_repository.py"
KEPT = _ROOT / ".benchmarks"
_FLOATS = 16
_VOCABULARY = 1000, 30_000  # ids of whole words
_OUTPUT = "sentence_embedding"

MINILM = "minilm"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Model:
    """A model to serve: its config.pbtxt and the files of its version folder."""

    config: str
    files: Mapping[str, Path] = field(default_factory=dict)


def echo(more: str = "", max_batch_size: int = 64, delay_ms: int = 0) -> Model:
    """A model that gives back what it gets; `more` is added to its config.pbtxt."""
    batched = "dynamic_batching { }" if max_batch_size else ""
    tensor = f"data_type: TYPE_FP32 dims: [ {'-1' if max_batch_size else '-1, -1'} ]"
    return Model(
        f"""
backend: "echo"
max_batch_size: {max_batch_size}
input {{ name: "x" {tensor} }}
output {{ name: "y" {tensor} }}
parameters {{ key: "delay_ms" value {{ string_value: "{delay_ms}" }} }}
{batched}
{more}
"""
    )


_FRONT = f"""
class Model:
    inputs = [("x", "float32", (-1, -1))]
    outputs = [("y", "float32", (-1, {_FLOATS}))]

    def execute(self, inputs):
        return {{"y": inputs["x"][:, :{_FLOATS}]}}
"""


def front(folder: Path, more: str = "") -> Model:
    """A model that gives back the beginning of what it gets: much comes in and little goes out, as with images."""
    file = folder / "model.py"
    file.write_text(_FRONT)
    return Model(f"max_batch_size: 64\n{more}\n", {"model.py": file})


def floats(count: int = _FLOATS) -> np.ndarray:
    """A row for `echo`."""
    return np.linspace(0, 1, count, dtype=np.float32).reshape(1, count)


def minilm_file() -> Path:
    """The encoder as ONNX, built once and kept under .benchmarks/.

    Raises:
        BenchmarkError: it cannot be built.
    """
    kept = KEPT / "minilm"
    file = kept / MINILM / "1" / "model.onnx"
    if not file.exists() or file.stat().st_mtime < _BUILDER.stat().st_mtime:
        progress("building all-MiniLM-L6-v2 (once)")
        fresh = KEPT / f"minilm-{os.getpid()}"  # renamed when whole: nobody finds half a model
        built = subprocess.run([sys.executable, _BUILDER, fresh], capture_output=True, text=True, check=False)
        if built.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            raise BenchmarkError(f"all-MiniLM-L6-v2 does not build: {built.stderr.strip().splitlines()[-1]}")
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)
        file.touch()
    return file


def minilm() -> Model:
    """The encoder, batched; all else is read from its file."""
    return Model("dynamic_batching { }", {"model.onnx": minilm_file()})


def tokens(rows: int, length: int) -> dict[str, np.ndarray]:
    """Inputs for `minilm`, the same every time."""
    ids = np.random.default_rng(length).integers(*_VOCABULARY, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones((rows, length), np.int64)}


def embedding(values: list[list[float]]) -> Arrays:
    """The outputs of `minilm`."""
    return {_OUTPUT: np.array(values, np.float32)}
