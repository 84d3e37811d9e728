"""The TensorRT that is installed: `tensorrt` 10 or 11, else `tensorrt_rtx`, whose API has the same shape."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from backends.base import LoadError, TensorSpec

NAMES = ("tensorrt", "tensorrt_rtx")

# By name and not by trying: where the first is there and broken, its own error tells what to mend.
_name = next((name for name in NAMES if importlib.util.find_spec(name)), NAMES[-1])
trt: Any = importlib.import_module(_name)

IS_RTX = _name == "tensorrt_rtx"
"""Whether kernels are compiled where they run, when a shape is first seen, and not when the engine is built."""

VERSION = f"{_name} {trt.__version__}"

_WHERE = re.compile(r"^(?:\[[^]]*\]|\S+:) Error Code \d+: |\s*\bIn \S+ at \S+:\d+\s*")
"""What its errors say of its own source: "[file::function::line] Error Code 1: ... In function at file:line"."""

_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}

# Of the library's own: a logger in Python would be called on its threads, which then wait for the GIL while whoever has
# that may be waiting for them. Errors come by way of recorders.
LOGGER: Any = trt.Logger(trt.Logger.INTERNAL_ERROR)
trt.init_libnvinfer_plugins(LOGGER, "")


class Errors(trt.IErrorRecorder):  # type: ignore[misc]  # the library carries no types
    """What the library reports of an object of its own, for a message: its functions only give None or False."""

    def __init__(self) -> None:
        trt.IErrorRecorder.__init__(self)
        self._errors: list[tuple[Any, str]] = []

    def told(self) -> str:
        """The errors since the last time, in a line."""
        texts = [text for _, text in self._errors]
        self.clear()
        return one_line(texts)

    def report_error(self, arg0: Any, arg1: str) -> bool:
        """Called by the library, on any of its threads."""
        self._errors.append((arg0, arg1))
        return True

    def num_errors(self) -> int:
        """How many there are."""
        return len(self._errors)

    def get_error_code(self, arg0: int) -> Any:
        """Of the error of that number."""
        return self._errors[arg0][0]

    def get_error_desc(self, arg0: int) -> str:
        """Of the error of that number."""
        return self._errors[arg0][1]

    def has_overflowed(self) -> bool:
        """Whether there were more than could be kept."""
        return False

    def clear(self) -> None:
        """Forget them."""
        self._errors.clear()


def one_line(texts: Sequence[str]) -> str:
    """The first of the texts, without what is for the library's authors; it repeats itself, and the first say most."""
    told = (_WHERE.sub("", " ".join(text.split())) for text in texts[:3])
    return "; ".join(dict.fromkeys(told)) or "it does not say why"


def tensor_spec(name: str, dtype: Any, shape: Any) -> TensorSpec:
    """A tensor of a network or an engine.

    Raises:
        LoadError: the protocol cannot carry its datatype.
    """
    if dtype.name not in _DTYPES:
        raise LoadError(f"tensor '{name}' is {dtype.name}, which the protocol cannot carry: cast it in the model")
    return TensorSpec(name, np.dtype(_DTYPES[dtype.name]), tuple(shape))
