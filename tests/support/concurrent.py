"""Calls that run at the same time, and what the server counts of them."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from support.calls import Gate, first_output, request
from support.server import Gateway
from tensorgate_client.wire import inference_pb2 as pb

POISON = 666.0
"""A value that `moody` models fail on."""

UNFIT = 404.0
"""A value that `moody` models refuse as the caller's fault."""

_MOODS = f"""
        if ({POISON} == inputs["x"]).any():
            raise RuntimeError("secret")
        if ({UNFIT} == inputs["x"]).any():
            raise InvalidInput("x: expected anything but {UNFIT:g}")
        return {{"y": inputs["x"] * 2}}
"""


def moody(gate: Gate) -> dict[str, str]:
    """Files of a gate's model that doubles its rows, but fails on `POISON` and refuses `UNFIT`."""
    head, _, tail = gate.MODEL.partition('        return {"y": inputs["x"]}\n')
    return {"model.py": f"from backends.base import InvalidInput\n{head}{_MOODS}{tail}"}


def parameter(key: str, value: object) -> str:
    """A line of config.pbtxt's parameters."""
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def start(gateway: Gateway, model: str, *rows: Any, name: str = "x", timeout: float = 60, **fields: Any) -> grpc.Future:
    """Send rows without waiting. `priority` and `timeout_us` become parameters of the request, other fields its own."""
    message = request(model, {name: np.array(rows, np.float32)}, fields.pop("version", ""))
    message.id = fields.pop("id", "")
    for key, value in (("priority", fields.pop("priority", 0)), ("timeout", fields.pop("timeout_us", 0))):
        if value:
            message.parameters[key].int64_param = value
    assert not fields
    return gateway.stub.ModelInfer.future(message, timeout=timeout)


def in_turn(gateway: Gateway, model: str, *requests: list[Any]) -> list[grpc.Future]:
    """Send requests of these rows, each once the one before has arrived: sent at once, they may change places."""
    calls = []
    for rows in requests:
        calls.append(start(gateway, model, *rows))
        arrived(gateway)
    return calls


def values(call: grpc.Future) -> list[Any]:
    """The first output that a call is answered with."""
    return first_output(call.result(60)).tolist()


def arrived(gateway: Gateway) -> None:
    """Return when all that was sent on the gateway's connection so far has been taken up."""
    for _ in range(3):  # the server takes calls up in their order, and each in a few steps
        gateway.stub.ServerLive(pb.ServerLiveRequest(), timeout=60)


def statistics(gateway: Gateway, model: str, version: str = "") -> pb.ModelStatistics:
    """What the server says of the only version of a model, or of the given one."""
    message = pb.ModelStatisticsRequest(name=model, version=version)
    (found,) = gateway.stub.ModelStatistics(message, timeout=60).model_stats
    return found


def counts(found: pb.ModelStatistics) -> dict[str, int]:
    """The counts of all kinds of events that happened."""
    return {kind.name: entry.count for kind, entry in found.inference_stats.ListFields() if entry.count}


def batches(gateway: Gateway, model: str, version: str = "") -> dict[int, int]:
    """How many batches of which size were executed; with the server's totals checked against it."""
    found = statistics(gateway, model, version)
    sizes = {entry.batch_size: entry.compute_infer.count for entry in found.batch_stats}
    assert sum(size * count for size, count in sizes.items()) == found.inference_count
    assert sum(sizes.values()) == found.execution_count
    return sizes
