"""Engines built from ONNX files. Needs no GPU with TensorRT-RTX, the model's own with TensorRT."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import LoadError
from backends.tensorrt_library import IS_RTX, LOGGER, VERSION, Errors, one_line, tensor_spec, trt
from backends.tensorrt_profile import Sizes

_log = logging.getLogger(__name__)

_TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an engine is built.

    Attributes:
        sizes: of the inputs.
        tf32: whether FP32 is multiplied as TF32: three decimal digits less, several times as fast.
        graphs: whether its executions are to be recorded as CUDA graphs.
    """

    sizes: Sizes
    tf32: bool = True
    graphs: bool = False


def build(file: Path, recipe: Recipe, about: str) -> Any:
    """Build an engine; its plan, a buffer.

    Args:
        file: in ONNX; weights in files of their own are found beside it.
        recipe: how.
        about: the model, for progress in the log.

    Raises:
        LoadError: the file is no ONNX that the library can execute, or the recipe does not fit it.
    """
    progress, errors = _Progress(about), Errors()
    try:
        plan = _plan(file, recipe, progress, errors)
    except (RuntimeError, TypeError, ValueError) as error:  # as its bindings do where a constructor gives nothing
        errors.report_error(None, str(error))
        plan = None
    if plan is None:
        raise LoadError(f"{file.name}: {VERSION} fails to build an engine: {errors.told()}")
    _log.info("%s: engine built in %.1f s, %.1f MB", about, progress.seconds, plan.nbytes / 1e6)
    return plan


def _plan(file: Path, recipe: Recipe, progress: _Progress, errors: Errors) -> Any:
    builder = trt.Builder(LOGGER)
    # Precision is what the file says: TensorRT 11 knows no other networks, 10 has to be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse_from_file(str(file)):
        raise LoadError(f"{file.name}: {VERSION} does not take it: {_parse_errors(parser)}")
    config = builder.create_builder_config()
    _configure(builder, config, network, recipe)
    config.progress_monitor = progress
    builder.error_recorder = errors  # not before: a network that has it when it is parsed crashes when it is freed
    return builder.build_serialized_network(network, config)


def _configure(builder: Any, config: Any, network: Any, recipe: Recipe) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    profile = builder.create_optimization_profile()
    ranges = recipe.sizes.profile([tensor_spec(tensor.name, tensor.dtype, tensor.shape) for tensor in inputs])
    for name, (low, usual, high) in ranges.items():
        profile.set_shape(name, low, usual, high)
    if ranges:
        config.add_optimization_profile(profile)
    if not recipe.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.graphs and IS_RTX:  # or they might allocate memory, which CUDA forbids while it records a graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _parse_errors(parser: Any) -> str:
    found = []
    for error in (parser.get_error(index) for index in range(parser.num_errors)):
        node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_operator() else ""
        found.append(node + error.desc())
    return one_line(found)


class _Progress(trt.IProgressMonitor):  # type: ignore[misc]  # the library carries no types
    """Says every few seconds what the builder is at; called on threads of its own."""

    def __init__(self, about: str) -> None:
        trt.IProgressMonitor.__init__(self)
        self._about = about
        self._started = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:  # noqa: ARG002  # its interface
        """A phase begins."""
        with self._lock:
            self._steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step of a phase is done; False would end the build."""
        with self._lock:
            if time.monotonic() - self._told >= _TELL_EVERY_S:
                self._told = time.monotonic()
                of = self._steps.get(phase_name, 0)
                _log.info("%s: building, %.0f s: %s %d of %d", self._about, self.seconds, phase_name, step + 1, of)
        return True

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._steps.pop(phase_name, None)
