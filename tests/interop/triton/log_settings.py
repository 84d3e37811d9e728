"""Reads and changes log settings through both of tritonclient's clients; `log_settings.py ADDRESS`."""

import asyncio
import json
import sys

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException


def main(address: str) -> None:
    """Print what each step brings, in order."""
    client = triton.InferenceServerClient(address)
    steps = [
        lambda: client.get_log_settings(as_json=True),
        lambda: client.update_log_settings({"log_verbose_level": 1, "log_format": "ISO8601"}, as_json=True),
        lambda: client.update_log_settings({"log_info": False}).settings["log_info"].bool_param,
        lambda: client.update_log_settings({"log_file": "/tmp/log"}),  # noqa: S108
        lambda: client.update_log_settings({"log_error": None}),
        lambda: asyncio.run(again(address)),
    ]
    json.dump([outcome(step) for step in steps], sys.stdout)


async def again(address: str) -> dict:
    """The same through the asyncio client."""
    async with triton_aio.InferenceServerClient(address) as client:
        await client.update_log_settings({"log_info": True, "log_verbose_level": 0, "log_format": "default"})
        return await client.get_log_settings(as_json=True)


def outcome(step: object) -> object:
    """What a step returns, or its error's status and message."""
    try:
        return step()
    except InferenceServerException as error:
        return [error.status(), error.message()]


main(*sys.argv[1:])
