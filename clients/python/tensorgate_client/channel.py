"""How the client connects: encryption, channel options, retries."""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tensorgate_client.wire import inference_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

# What asks and changes nothing. Probes are absent, since they ask how things are now; loading and unloading, since
# repeating them may undo what somebody else did meanwhile; streams, since gRPC cannot repeat what they have sent.
_RETRIED = ("ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex")

# Another replica, or the same one in a moment, can answer. CANCELLED is what gRPC's core says of calls that reach it
# while its farewell (GOAWAY) is on the way: they have not been executed. Not RESOURCE_EXHAUSTED: a server has too much
# to do, and more requests make it worse, or a message is too large, and it stays so.
# 0.1 + 0.2 + 0.4 + 0.8 s: after a refused connection gRPC waits 1 s for the next, so the last attempts can succeed.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}

# Retries stop after some 500 failures in a row, and come back with successes: they add at most a tenth of the load. It
# is the most that gRPC takes: as many calls may be under way to a gateway that is killed.
_RETRY_THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}

# Calls go round the servers whose health is SERVING; a server that knows no health checks counts as healthy.
_BALANCED = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),  # tensors are large; what is too large is the server's to say
    ("grpc.max_receive_message_length", -1),
    # Load balancers forget a silent connection, Azure's after 240 s, AWS's network balancer after 350 s, and what is
    # sent on it later is lost. So one without calls is closed before that; the next call opens another. Pings would
    # keep it open, but a server with gRPC's defaults answers pings without calls with GOAWAY (ENHANCE_YOUR_CALM).
    ("grpc.client_idle_timeout_ms", 110_000),  # gRPC looks at such intervals: it closes after 110 to 220 s
    # One with a silent call on it, such as a long load, is pinged as often as such a server allows: every 300 s.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A server that was away for a while is found again within seconds; gRPC would wait up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True, slots=True)
class TLS:
    """Encryption; the fields name PEM files.

    Attributes:
        root_certificates: who vouches for the server; by default the authorities that gRPC ships.
        certificate_chain: who the client is, for servers that ask.
        private_key: of that certificate.
    """

    root_certificates: str | os.PathLike[str] | None = None
    certificate_chain: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):
            raise ValueError("certificate_chain and private_key belong together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC makes of the files.

        Raises:
            OSError: one cannot be read.
            ValueError: one is not what it should be; gRPC would only find no server that it trusts.
        """
        self._check()
        files = (self.root_certificates, self.private_key, self.certificate_chain)
        return grpc.ssl_channel_credentials(*(None if file is None else Path(file).read_bytes() for file in files))

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.root_certificates is not None:
                context.load_verify_locations(self.root_certificates)
            if self.certificate_chain is not None:
                context.load_cert_chain(self.certificate_chain, self.private_key)
        except ssl.SSLError as error:
            files = [os.fspath(file) for file in (self.root_certificates or self.certificate_chain,) if file]
            raise ValueError(
                f"{' '.join(files)}: expected PEM certificates and the key that belongs to them: {error}"
            ) from None


def channel_options(address: str, *, retry: bool, balance: bool = False) -> list[tuple[str, Any]]:
    """Options for a channel to `address`, sync or aio."""
    options = list(_OPTIONS)
    if is_local(address):  # what may not leave this machine, as a token, must not go through a proxy either
        options.append(("grpc.enable_http_proxy", 0))
    if "," in address:  # gRPC would send the whole list as :authority, which is none, and some servers refuse that
        options.append(("grpc.default_authority", _addresses(address)[0]))
    config: dict[str, Any] = dict(_BALANCED) if balance else {}
    if retry:  # without, gRPC still repeats by itself what certainly reached no server
        names = [{"service": _SERVICE, "method": method} for method in _RETRIED]
        config["methodConfig"] = [{"name": names, "retryPolicy": _RETRY_POLICY}]
        config["retryThrottling"] = _RETRY_THROTTLING
        # By default a request of over 256 KiB is not retried.
        options.append(("grpc.per_rpc_retry_buffer_size", 2**31 - 1))
    return [*options, ("grpc.service_config", json.dumps(config))]


def is_local(address: str) -> bool:
    """Whether what is sent to `address` stays on this machine, as far as the address says."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    return all(_is_loopback(one) for one in _addresses(address))


def _addresses(target: str) -> list[str]:
    """The addresses in one of gRPC's target names."""
    *_, listed = target.rpartition("/")
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        listed = listed.removeprefix(scheme)
    return listed.split(",")


def _is_loopback(address: str) -> bool:
    before, _, port = address.rpartition(":")
    host = before or port
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False
