"""Where a model's servers are, and how they are asked: the `parameters` of config.pbtxt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc.experimental import ChannelOptions

from backends.base import LoadError, ModelSource, switch, warn_of_unknown
from gateway import parameters
from tensorgate_client.channel import TLS, channel_options

_URLS, _MODEL, _VERSION, _TIMEOUT, _IDEMPOTENT = "urls", "model", "version", "timeout_s", "idempotent"
_TLS, _CA, _CERT, _KEY, _TOKEN = "tls", "tls_ca", "tls_cert", "tls_key", "token_file"
_KNOWN = (_URLS, _MODEL, _VERSION, _TIMEOUT, _IDEMPOTENT, _TLS, _CA, _CERT, _KEY, _TOKEN)

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):([0-9]{1,5})")
_TIMEOUT_S = 60.0

# Probed every second, they are needed again soon: gRPC would wait for up to two minutes before it connects again.
_BACKOFF = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 2_000}
_ON_THIS_THREAD = {ChannelOptions.SingleThreadedUnaryStream: 1}


@dataclass(frozen=True, slots=True)
class Options:
    """What config.pbtxt says of a model's servers.

    Attributes:
        addresses: "host:port" of each server.
        model, version: what it is called there; no version leaves the choice to the server.
        credentials: of the connections; None for plain text.
        timeout_s: how long a batch may take, whatever its callers' deadlines.
        idempotent: whether a batch may be sent again that may have been executed already.
    """

    addresses: Sequence[str]
    model: str
    version: str
    credentials: grpc.ChannelCredentials | None
    timeout_s: float
    idempotent: bool

    @classmethod
    def of(cls, source: ModelSource) -> Options:
        """The options of a source.

        Raises:
            LoadError: a parameter does not hold; the message says which, and what was expected.
        """
        warn_of_unknown(source, _KNOWN)
        return cls(
            addresses(source),
            source.parameters.get(_MODEL, "").strip() or source.name,
            source.parameters.get(_VERSION, "").strip(),
            _credentials(source),
            parameters.seconds(_TIMEOUT, source.parameters.get(_TIMEOUT, str(_TIMEOUT_S)).strip()),
            switch(source, _IDEMPOTENT, default=True),
        )

    def channel(self, address: str) -> grpc.Channel:
        """A channel to one of the servers; it connects when it is used."""
        options = list((dict(channel_options(address, retry=False)) | _BACKOFF | _ON_THIS_THREAD).items())
        if self.credentials is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, self.credentials, options)


def addresses(source: ModelSource) -> Sequence[str]:
    """The servers' addresses, each once.

    Raises:
        LoadError: there is none, or one is no address.
    """
    found = source.parameters.get(_URLS, "").replace(",", " ").split()
    wrong = next((address for address in found if not _is_address(address)), "")
    if wrong or not found:
        got = f"'{wrong}'" if wrong else "none"
        raise LoadError(f"parameter '{_URLS}': expected servers as 'host-a:8001, host-b:8001', got {got}")
    return tuple(dict.fromkeys(found))


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and 0 < int(match[2]) < 2**16


def _credentials(source: ModelSource) -> grpc.ChannelCredentials | None:
    if not switch(source, _TLS, default=False):
        needs = [name for name in (_CA, _CERT, _KEY, _TOKEN) if source.parameters.get(name)]
        if needs:
            raise LoadError(f"parameter '{needs[0]}' is for encrypted connections: add '{_TLS}' with the value 'true'")
        return None
    ca, cert, key, token = (_file(source, name) for name in (_CA, _CERT, _KEY, _TOKEN))
    try:
        credentials = TLS(ca, cert, key).credentials()
    except ValueError as error:
        raise LoadError(f"parameters of '{_TLS}': {error}") from error
    if token is None:
        return credentials
    return grpc.composite_channel_credentials(credentials, grpc.metadata_call_credentials(_Token(token)))


def _file(source: ModelSource, name: str) -> Path | None:
    """A file that a parameter names, relative to the model's folder."""
    if not (text := source.parameters.get(name, "").strip()):
        return None
    path = source.directory.parent / text
    try:
        path.read_bytes()
    except OSError as error:
        raise LoadError(f"parameter '{name}': {text}: {error.strerror}") from error
    return path


class _Token(grpc.AuthMetadataPlugin):
    """Adds a bearer token to each call; read each time, since tokens are renewed in their files."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, _: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """As gRPC has it."""
        try:
            callback((("authorization", f"Bearer {self._file.read_text().strip()}"),), None)
        except (OSError, ValueError) as error:
            callback((), error)
