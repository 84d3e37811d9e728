"""Where a model's instances compute: `instance_group` against what the machine and the backend have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from backends.base import LoadError
from gateway import gpus
from gateway.gpus import NoGpus
from tensorgate_client.wire import model_config_pb2 as pb

_log = logging.getLogger(__name__)

CPU, GPU, BACKENDS_CHOICE = "cpu", "cuda", ""

Obstacle = Callable[[str], str]
"""Why a model cannot be loaded on a kind of device, "cpu" or "cuda"; "" if it can."""

_Group = pb.ModelInstanceGroup


def settle(declared: Sequence[_Group], name: str, obstacle: Obstacle, count: int = 1) -> tuple[list[_Group], list[str]]:
    """The groups as they really are, and the device of each instance in their order.

    Args:
        declared: of config.pbtxt, checked; none stand for one of KIND_AUTO.
        name: the model's.
        obstacle: what keeps its backend from a kind of device.
        count: of instances in a group that names none.

    Returns:
        Groups of KIND_GPU with their `gpus`, KIND_CPU or KIND_MODEL, and devices: "cpu", "cuda:1", or "" for the
        backend's own choice.

    Raises:
        LoadError: a group asks for what is not there, or the backend cannot use.
    """
    groups: list[_Group] = []
    devices: list[str] = []
    for index, written in enumerate(declared or [_Group()]):
        group = _Group()
        group.CopyFrom(written)
        group.name = group.name or f"{name}_{index}"
        group.count = group.count or count
        if group.kind == _Group.KIND_AUTO:
            _choose(group, name, obstacle)
        devices += _devices(group, obstacle) * group.count
        groups.append(group)
    return groups, devices


def _choose(group: _Group, name: str, obstacle: Obstacle) -> None:
    """A GPU where there is one that the backend can use, else the CPU."""
    backends, missing = obstacle(GPU), _missing(group.gpus)
    on_cpu = bool(backends or missing) and not obstacle(CPU)
    group.kind = _Group.KIND_CPU if on_cpu else _Group.KIND_GPU
    if on_cpu:
        del group.gpus[:]
        level = logging.DEBUG if missing else logging.INFO  # a GPU that is left idle may be a mistake
        _log.log(level, "model %s: instance group %s is on the CPU: %s", name, group.name, missing or backends)


def _devices(group: _Group, obstacle: Obstacle) -> list[str]:
    """The devices of a group, of which each has `count` instances."""
    if group.kind == _Group.KIND_MODEL:
        return [BACKENDS_CHOICE]
    on_gpu = group.kind == _Group.KIND_GPU
    if problem := obstacle(GPU if on_gpu else CPU) or (on_gpu and _missing(group.gpus)):
        raise LoadError(f"instance_group {_Group.Kind.Name(group.kind)}: {problem}")
    if not on_gpu:
        return [CPU]
    if not group.gpus:
        group.gpus.extend(range(len(gpus.visible())))
    return [f"{GPU}:{number}" for number in group.gpus]


def _missing(wanted: Sequence[int]) -> str:
    """What is missing of the GPUs, of which there has to be one at least; "" if nothing is."""
    try:
        count = len(gpus.visible())
    except NoGpus as error:
        return str(error)
    if beyond := [number for number in wanted if number >= count]:
        numbers = "0" if count == 1 else f"0 to {count - 1}"
        return f"there is no GPU {beyond[0]}: this server sees {count}" + (f" (gpus: {numbers})" if count else "")
    return "" if count else "this server sees no GPU"
