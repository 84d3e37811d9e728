"""torch.profiler: how long each operator of a program took on the processor, or of the kernels it started on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # there, though not declared
from torch.profiler import ProfilerActivity, profile

from backends.base import Array, Instance, Operation


class TorchProfiler:
    """Profiles instances of a model.

    Args:
        make: a new instance.
        device: where it runs.
    """

    name = "torch.profiler"
    traces = True

    def __init__(self, make: Callable[[], Instance], device: torch.device) -> None:
        self._make = make
        self._device = device

    def instance(self, *, by_node: bool) -> ProfiledProgram:
        """An instance; a program's nodes are told apart by the shapes of their inputs, which costs some time."""
        return ProfiledProgram(self._make(), self._device, by_node=by_node)


class ProfiledProgram:
    """An instance, and the profiler that watches its thread."""

    def __init__(self, instance: Instance, device: torch.device, *, by_node: bool) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports to stderr that it starts and stops
        self._instance = instance
        self._on_cpu = device.type == "cpu"
        self._by_node = by_node
        activities = [ProfilerActivity.CPU] if self._on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        self._profile = profile(activities=activities, record_shapes=by_node)
        self._recording = False

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """As the model's own instances do."""
        return self._instance.execute(inputs)

    def start(self) -> None:
        """Record."""
        self._profile.start()
        self._recording = True

    def stop(self, trace: Path | None) -> list[Operation]:
        """Operators by name, `aten::addmm`; with `by_node`, those whose inputs have other shapes apart."""
        self._end()
        if trace:
            self._profile.export_chrome_trace(str(trace))
        averages = self._profile.key_averages(group_by_input_shape=self._by_node)
        # Kernels on a device are events of their own, and in the times of the operators that started them.
        operators = [event for event in averages if event.device_type == DeviceType.CPU]
        if not self._on_cpu:  # calls of CUDA's own functions are events, too, and started none
            operators = [event for event in operators if event.device_time_total > 0]
        return [self._operation(event) for event in operators]

    def _operation(self, event: Any) -> Operation:
        shapes = [f" {size}" for size in event.input_shapes if size] if self._by_node else []
        name = event.key + "".join(shapes).replace(", ", ",")
        if self._on_cpu:
            return Operation(name, event.count, event.cpu_time_total, event.self_cpu_time_total)
        return Operation(name, event.count, event.device_time_total, event.self_device_time_total)

    def _end(self) -> None:
        if self._recording:
            self._recording = False
            self._profile.stop()

    def close(self) -> None:
        """Stop watching, after a failure too, and close the instance."""
        self._end()
        self._instance.close()
