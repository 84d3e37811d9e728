"""`tensorgate health`: whether a server takes requests, for those who can only run a command to find out."""

from __future__ import annotations

from argparse import Namespace

from gateway.commands.connection import make
from gateway.commands.failure import FAILED, CommandFailed
from gateway.commands.saying import say
from tensorgate_client import InferenceClient

_PATIENCE_MS = 2000


def run(flags: Namespace) -> int:
    """Ask once; the exit code.

    Raises:
        CommandFailed: the server is not ready, or there is none. Either has code 1: Docker reserves all others.
    """
    with make(InferenceClient, flags, deadline_ms=_PATIENCE_MS, retry=False) as client:
        if client.is_ready():
            say("ready")
            return 0
        if client.is_live():
            raise CommandFailed(f"the server at {flags.address} is not ready: it is loading models, or ending", FAILED)
    raise CommandFailed(f"no server answers at {flags.address} (--address HOST:PORT, --tls if it has TLS)", FAILED)
