"""What a server writes into its log, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from support.calls import eventually
from support.server import Gateway, ServerProcess
from tensorgate_client.wire import inference_pb2 as pb

JSON = ("--log-format", "json")


def entries(server: ServerProcess, logger: str = "") -> list[dict[str, Any]]:
    """All lines so far, or those of one logger; each has to be a JSON object."""
    found = [json.loads(line) for line in server.log.split("\n") if line]
    return [entry for entry in found if logger in ("", entry["logger"])]


def calls(server: ServerProcess, count: int) -> list[dict[str, Any]]:
    """The lines of the access log, as soon as there are so many; not one more may be there."""
    found = eventually(lambda: len(lines := entries(server, "gateway.access")) >= count and lines)
    assert len(found) == count
    return found


def change_log(gateway: Gateway, **settings: bool | int | str | None) -> Mapping[str, bool | int | str]:
    """Change these settings by RPC; all settings afterwards. None sends a setting without a value."""
    message = pb.LogSettingsRequest()
    for name, value in settings.items():
        setting = message.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            setting.uint32_param = value
        elif value is not None:
            setting.string_param = value
    answered = gateway.stub.LogSettings(message, timeout=30).settings
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in answered.items()}
