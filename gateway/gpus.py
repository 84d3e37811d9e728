"""The NVIDIA GPUs that this process may use, as the driver's own library (NVML) tells of them.

No runtime has to be imported for that, and nothing is taken of a GPU's memory, as a CUDA context would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

_CHOSEN = "CUDA_VISIBLE_DEVICES"
_importing = Lock()  # who waits for an import that then fails would get the module as far as it came


class NoGpus(Exception):
    """There is no telling which GPUs there are; the message says why."""


class Gpu(NamedTuple):
    """A GPU.

    Attributes:
        uuid: "GPU-" or, for a part of one, "MIG-" and so on.
        handle: NVML's.
    """

    uuid: str
    handle: Any


@dataclass(frozen=True, slots=True)
class GpuReading:
    """A GPU at one moment; None for what it does not tell.

    Attributes:
        utilization: share of the last moments in which it computed, 0 to 1.
        memory_total, memory_used: bytes, by all processes.
        power_w, power_limit_w: watts.
        energy_j: joules since this process read it first.
    """

    uuid: str
    utilization: float | None
    memory_total: float | None
    memory_used: float | None
    power_w: float | None
    power_limit_w: float | None
    energy_j: float | None


def visible() -> list[Gpu]:
    """The GPUs in CUDA's numbering, from 0: all, or those that CUDA_VISIBLE_DEVICES names.

    Of GPUs of different kinds CUDA may number the fastest first, where NVML goes by their slots.

    Raises:
        NoGpus: nvidia-ml-py is not installed, or there is no driver.
    """
    nvml = _nvml()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        there = [Gpu(nvml.nvmlDeviceGetUUID(handle), handle) for handle in handles]
    except nvml.NVMLError as error:
        raise NoGpus(f"the NVIDIA driver says: {error}") from error
    words = os.environ.get(_CHOSEN)
    return there if words is None else list(_chosen(there, words.split(","), nvml))


def _chosen(there: Sequence[Gpu], words: Sequence[str], nvml: Any) -> Iterator[Gpu]:
    """As CUDA reads the variable: numbers or the beginnings of UUIDs, up to the first that names none or one again."""
    taken: set[str] = set()
    for word in map(str.strip, words):
        if word.startswith("MIG-"):
            named = _part(word, nvml)
        elif word.startswith("GPU-"):
            named = [gpu for gpu in there if gpu.uuid.startswith(word)]
        else:
            named = [gpu for index, gpu in enumerate(there) if word == str(index)]
        if len(named) != 1 or named[0].uuid in taken:
            return
        taken.add(named[0].uuid)
        yield named[0]


def _part(uuid: str, nvml: Any) -> list[Gpu]:
    try:
        return [Gpu(uuid, nvml.nvmlDeviceGetHandleByUUID(uuid))]
    except nvml.NVMLError:
        return []


@cache  # of a success alone: a driver may be loaded later
def _nvml() -> Any:
    try:
        with _importing:
            import pynvml  # noqa: PLC0415  # most machines have no GPU, and many no need of it
    except ImportError as error:
        raise NoGpus("nvidia-ml-py is not installed: pip install 'tensorgate[gpu]'") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpus(f"there is no NVIDIA driver: {error}") from error
    return pynvml


class GpuMeter:
    """Reads the visible GPUs, which takes some milliseconds. For one thread."""

    def __init__(self) -> None:
        self._first_mj: dict[str, int] = {}

    def read(self) -> list[GpuReading]:
        """Each GPU now; none where there is no telling, also because the driver has gone since."""
        try:
            gpus, nvml = visible(), _nvml()
        except NoGpus:
            return []
        return [self._reading(gpu, nvml) for gpu in gpus]

    def _reading(self, gpu: Gpu, nvml: Any) -> GpuReading:
        def told(read: Callable[[Any], Any]) -> Any:
            try:
                return read(gpu.handle)
            except nvml.NVMLError:  # not every kind tells everything, and one may fall off the bus
                return None

        memory, busy = told(nvml.nvmlDeviceGetMemoryInfo), told(nvml.nvmlDeviceGetUtilizationRates)
        energy = told(nvml.nvmlDeviceGetTotalEnergyConsumption)
        if energy is not None:
            energy -= self._first_mj.setdefault(gpu.uuid, energy)
        return GpuReading(
            gpu.uuid,
            busy and busy.gpu / 100,
            memory and memory.total,
            memory and memory.used,
            _thousandth(told(nvml.nvmlDeviceGetPowerUsage)),
            _thousandth(told(nvml.nvmlDeviceGetEnforcedPowerLimit)),
            _thousandth(energy),
        )


def _thousandth(value: int | None) -> float | None:
    """NVML tells milliwatts and millijoules."""
    return None if value is None else value / 1000
