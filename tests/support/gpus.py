"""Machines with GPUs that are not there: what NVML would tell of them, and a backend that says where it was loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NVML = """
import json, os
from types import SimpleNamespace

class NVMLError(Exception):
    pass

def told():
    try:
        return json.loads(open(os.environ["MACHINE"]).read())
    except FileNotFoundError:
        raise NVMLError("Driver Not Loaded") from None

def of(gpu, key):
    known = {row["uuid"]: row for row in told()}
    if key not in known.get(gpu, {}):
        raise NVMLError("Not Supported")
    return known[gpu][key]

def nvmlInit():
    told()

def nvmlDeviceGetCount():
    return len(told())

def nvmlDeviceGetHandleByIndex(index):
    return told()[index]["uuid"]

def nvmlDeviceGetUUID(handle):
    return handle

def nvmlDeviceGetHandleByUUID(uuid):
    if uuid != "MIG-1":
        raise NVMLError("Not Found")
    return uuid

def nvmlDeviceGetMemoryInfo(handle):
    total, used = of(handle, "memory")
    return SimpleNamespace(total=total, used=used)

def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=of(handle, "percent"))

def nvmlDeviceGetPowerUsage(handle):
    return of(handle, "mw")

def nvmlDeviceGetEnforcedPowerLimit(handle):
    return of(handle, "limit_mw")

def nvmlDeviceGetTotalEnergyConsumption(handle):
    return of(handle, "mj")
"""
"""In the place of nvidia-ml-py, which would ask a driver: tells what is in a file, for as long as that is there."""

_BACKEND = """
import itertools, threading
import numpy as np

class Signature:
    inputs = [("x", "float32", (-1, 1))]
    outputs = [("where", object, (-1, 1))]
    max_batch_size = 0

class Backend:
    numbers = itertools.count()
    meetings = {}

    def obstacle(self, source, kind):
        return source.parameters.get(f"no_{kind}", "")

    def load(self, source):
        return Model(source, next(self.numbers))

class Model:
    def __init__(self, source, number):
        self.signature = Signature()
        if source.device == source.parameters.get("odd"):
            self.signature.outputs = [("where", object, (-1, 2))]
        kind, _, index = source.device.partition(":")
        self.memory = {f"{'GPU' if kind == 'cuda' else 'CPU'}:{index or 0}": 100}
        self.where = f"{source.device or 'own choice'} {number}".encode()
        together = int(source.parameters.get("instances", "1"))
        self.meeting = Backend.meetings.setdefault(source.name, threading.Barrier(together))

    def instance(self):
        return self

    def execute(self, inputs):
        self.meeting.wait(60)  # until each instance has a request
        return {"where": np.array([[self.where]] * len(inputs["x"]), object)}

    def close(self):
        pass
"""


class Machine:
    """A machine with GPUs, for servers that are given its `environment`.

    Args:
        folder: where to write what they import.
        gpus: what NVML tells of each GPU: `uuid`, and of `memory` (total, used), `percent`, `mw`, `limit_mw` and `mj`
            what it has.
    """

    def __init__(self, folder: Path, gpus: Sequence[Mapping[str, Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._told = folder / "machine.json"
        self.tells(gpus)
        (folder / "pynvml.py").write_text(_NVML)
        (folder / "where_backend.py").write_text(_BACKEND)
        info = folder / "where_backend-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: where-backend\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tensorgate.backends]\nwhere = where_backend:Backend\n")
        found_first = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self.environment = {"PYTHONPATH": found_first, "MACHINE": str(self._told)}

    def tells(self, gpus: Sequence[Mapping[str, Any]]) -> None:
        """Tell something else from now on."""
        self._told.write_text(json.dumps(list(gpus)))

    def loses_its_driver(self) -> None:
        """As on an update of it."""
        self._told.unlink()
