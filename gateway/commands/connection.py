"""From a command's flags to a client of the server."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gateway.commands.failure import UNFINISHED, USAGE, CommandFailed
from tensorgate_client import TLS, InferenceClient, InferenceError

_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED")

Made = TypeVar("Made")


def make(client: Callable[..., Made], flags: Namespace, **options: Any) -> Made:
    """A client, blocking or aio, of the server that the flags name.

    Raises:
        CommandFailed: a file cannot be read, or the flags contradict each other.
    """
    try:
        plaintext = flags.allow_plaintext_token
        return client(flags.address, tls=_tls(flags), token=_token(flags), allow_plaintext_token=plaintext, **options)
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise CommandFailed(_in_flags(str(error))) from None


@contextmanager
def connected(flags: Namespace, **options: Any) -> Iterator[InferenceClient]:
    """A client of the server that the flags name; what goes wrong with it ends the command.

    Raises:
        CommandFailed: the server cannot be reached, or refused what it was asked.
    """
    with make(InferenceClient, flags, **options) as client:
        try:
            yield client
        except InferenceError as error:
            raise failed(error, flags.address, live=client.is_live(deadline_ms=2000)) from None


def failed(error: InferenceError, address: str, *, live: bool) -> CommandFailed:
    """A call's error as a command's.

    Args:
        error: what the client raised.
        address: of the server.
        live: whether the server answers at all.
    """
    if not live:
        return CommandFailed(f"no server answers at {address} (--address HOST:PORT, --tls if it has TLS)", UNFINISHED)
    return CommandFailed(error.message, UNFINISHED if error.code.name in _AWAY else USAGE)


def _tls(flags: Namespace) -> TLS | None:
    if not (flags.tls or flags.tls_ca or flags.tls_cert or flags.tls_key):
        return None
    return TLS(flags.tls_ca, flags.tls_cert, flags.tls_key)


def _token(flags: Namespace) -> str | None:
    if flags.token_file is not None:
        try:
            token = Path(flags.token_file).read_text().strip()
        except UnicodeDecodeError:
            raise ValueError(f"--token-file {flags.token_file}: expected text") from None
        if not token:
            raise ValueError(f"--token-file {flags.token_file}: it is empty")
        return token
    if flags.token_env is None:
        return None
    if token := os.environ.get(flags.token_env, "").strip():
        return token
    raise ValueError(f"--token-env {flags.token_env}: there is no such environment variable, or it is empty")


def _in_flags(message: str) -> str:
    """A message of the client's in the words of the command line."""
    for python, flag in (
        ("give tls=TLS(), or allow_plaintext_token=True", "give --tls, or --allow-plaintext-token"),
        ("certificate_chain and private_key", "--tls-cert and --tls-key"),
    ):
        message = message.replace(python, flag)
    return message
