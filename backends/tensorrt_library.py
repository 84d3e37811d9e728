"""The TensorRT that is installed: `tensorrt` 10 or 11, else `tensorrt_rtx`, whose API has the same shape."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from backends.base import LoadError, TensorSpec

_log = logging.getLogger(__name__)

NAMES = ("tensorrt", "tensorrt_rtx")

# By name and not by trying: where the first is there and broken, its own error tells what to mend.
_name = next((name for name in NAMES if importlib.util.find_spec(name)), NAMES[-1])
trt: Any = importlib.import_module(_name)

IS_RTX = _name == "tensorrt_rtx"
"""Whether kernels are compiled where they run, when a shape is first seen, and not when the engine is built."""

VERSION = f"{_name} {trt.__version__}"

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

_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.INFO, "INFO": logging.DEBUG}


class _Logger(trt.ILogger):  # type: ignore[misc]  # the library carries no types
    """Passes on what the library tells; it wants one logger for the whole process."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._thread = threading.local()

    def log(self, severity: Any, msg: str) -> None:
        """Called by the library, on whichever thread it is."""
        level = _LEVELS.get(severity.name)
        if level is None:
            return
        kept: list[str] | None = getattr(self._thread, "kept", None)
        text = " ".join(msg.split())
        if kept is not None and level == logging.ERROR:
            kept.append(text)
            level = logging.DEBUG
        _log.log(level, "%s", text)

    @contextmanager
    def errors(self) -> Iterator[list[str]]:
        """What the library calls errors on this thread meanwhile, for a message: its functions only give None."""
        around = getattr(self._thread, "kept", None)
        kept: list[str] = []
        self._thread.kept = kept
        try:
            yield kept
        finally:
            self._thread.kept = around


LOGGER = _Logger()
trt.init_libnvinfer_plugins(LOGGER, "")


def told(errors: list[str]) -> str:
    """The errors in a line; the library repeats itself, and the first says most."""
    return "; ".join(dict.fromkeys(errors[:3])) or "it does not say why"


def tensor_spec(name: str, dtype: Any, shape: Any) -> TensorSpec:
    """A tensor of a network or an engine.

    Raises:
        LoadError: the protocol cannot carry its datatype.
    """
    if dtype.name not in _DTYPES:
        raise LoadError(f"tensor '{name}' is {dtype.name}, which the protocol cannot carry: cast it in the model")
    return TensorSpec(name, np.dtype(_DTYPES[dtype.name]), tuple(shape))
