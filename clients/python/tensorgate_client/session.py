"""What a client is made of, without the I/O: the server's address, how to speak to it, what it said of its models."""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode

from tensorgate_client.channel import TLS, channel_options, is_local
from tensorgate_client.errors import InferenceError
from tensorgate_client.signature import Signature
from tensorgate_client.tracing import trace_injector

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

Token: TypeAlias = str | Callable[[], str]

_FOR_EVER_MS = 1e12  # 30 years; gRPC cannot count on without end

CLOSED = "the client is closed"

_GAVE_UP_WAITING = "Deadline Exceeded"
"""What gRPC says when it is the client whose patience ended; a server says more."""

_CUT_OFF = "RST_STREAM"
"""In what gRPC says of a call that ended without a status: a balancer has lost the server that was answering."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a caller waits, and until when."""

    ms: float
    at: float

    @classmethod
    def after(cls, ms: float | None) -> Deadline | None:
        """The deadline `ms` milliseconds from now, passed already if that is not above 0; None for none.

        Raises:
            ValueError: it is no number.
        """
        if ms is not None and math.isnan(ms):
            raise ValueError("deadline_ms is nan, expected milliseconds, or None for no deadline")
        return None if ms is None or ms > _FOR_EVER_MS else cls(ms, time.monotonic() + ms / 1000)

    @property
    def left_s(self) -> float:
        """Seconds until then."""
        return max(self.at - time.monotonic(), 0)


@dataclass(frozen=True, slots=True)
class Rpc:
    """A unary RPC to make, by its name in the service; one that waits does so until there is a connection."""

    name: str
    request: Message
    deadline: Deadline | None = None
    waits: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What gRPC is to know of it: the seconds it may take from now, and whether it waits."""
        return {"timeout": self.deadline.left_s if self.deadline else None, "wait_for_ready": self.waits}


Steps: TypeAlias = Generator[Rpc, Any, R]
"""A call without its I/O: yields RPCs, is sent their responses or thrown InferenceError, returns the result."""


def looks_like(call: Callable[..., Any], result: str = "") -> Callable[[F], F]:
    """Gives a method the name, documentation and signature of the call behind it: what `help` shows.

    Args:
        call: behind it.
        result: what the method returns, if not what the call's steps do.
    """

    def dress(method: F) -> F:
        signature = inspect.signature(call)
        session, *others = signature.parameters.values()
        parameters = [inspect.Parameter("self", session.kind), *others]
        returned = result or signature.return_annotation.removeprefix("Steps[").removesuffix("]")
        wraps(call)(method)
        vars(method)["__signature__"] = signature.replace(parameters=parameters, return_annotation=returned)
        return method

    return dress


@dataclass(slots=True)
class Session:
    """What all calls of a client share."""

    address: str
    tls: TLS | None
    token: Token | None
    deadline_ms: float | None
    signatures: dict[tuple[str, str], Signature] = field(default_factory=dict)
    """By model and version; only ever a guess, since models are reloaded."""
    closed: bool = False

    def deadline(self, ms: float | None) -> Deadline | None:
        """The caller's deadline, or else the client's."""
        return Deadline.after(self.deadline_ms if ms is None else ms)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Metadata of an RPC made now."""
        headers: dict[str, str] = {}
        if inject := trace_injector():
            inject(headers)
        if self.token:
            headers["authorization"] = _authorization(self.token() if callable(self.token) else self.token)
        return tuple(headers.items())

    def check(self, deadline: Deadline | None) -> None:
        """Whether an RPC can be made at all.

        Raises:
            InferenceError: CANCELLED, the client is closed; DEADLINE_EXCEEDED, its time is over already.
        """
        if self.closed:
            raise InferenceError(StatusCode.CANCELLED, CLOSED)
        if deadline and not deadline.left_s:  # for gRPC, no time is no deadline
            raise self.failure(StatusCode.DEADLINE_EXCEEDED, _GAVE_UP_WAITING, deadline)

    def failure(self, code: StatusCode, details: str | None, deadline: Deadline | None) -> InferenceError:
        """An RPC's status as our error."""
        message = details or "the server gave no reason"
        if code is StatusCode.INTERNAL and _CUT_OFF in message:
            code = StatusCode.UNAVAILABLE
        if code is StatusCode.UNAVAILABLE:
            message = f"{self.address}: {message}"
        elif code is StatusCode.DEADLINE_EXCEEDED and deadline and message == _GAVE_UP_WAITING:
            message = f"no answer from {self.address} within {deadline.ms:g} ms"
        return InferenceError(code, message)


def _authorization(token: str) -> str:
    token = token.strip()  # files end with a newline
    if not (token.isascii() and token.isprintable()):  # gRPC's own message would show it
        raise ValueError("the token has characters that a header cannot carry")
    return f"Bearer {token}"


class Client(ABC):
    """What both clients have in common."""

    def __init__(  # noqa: PLR0913  # each is a fact of its own about the server
        self,
        address: str,
        *,
        tls: TLS | None = None,
        token: Token | None = None,
        allow_plaintext_token: bool = False,
        deadline_ms: float | None = None,
        retry: bool = True,
        balance: bool = False,
    ) -> None:
        """Connects at the first call.

        Args:
            address: "host:port", or another of gRPC's target names such as "unix:/run/gateway.sock".
                "ipv4:10.0.0.1:8001,10.0.0.2:8001" and "dns:///gateways:8001" may name several servers.
            tls: encrypts the connection; without it everything is sent in plaintext.
            token: sent with every RPC as `authorization: Bearer TOKEN`; a function is asked anew for each of them.
            allow_plaintext_token: send the token to another machine although there is no `tls`, because something
                else encrypts the connection, as a service mesh does.
            deadline_ms: milliseconds that a call may take if it is not told otherwise; by default there is no limit.
                It does not apply to streams, loading and unloading.
            retry: repeat what fails with UNAVAILABLE, up to four times within some 1.5 s. False for models
                that keep state between requests, and for measuring.
            balance: spread calls over all servers that the address names and whose health is SERVING. Otherwise all go
                to one of them, and to another when that is gone.

        Raises:
            ValueError: the token would cross the network unencrypted, or is none; a certificate or key is none.
            OSError: a certificate or key cannot be read.
        """
        if isinstance(token, str):
            _authorization(token)
        if token and not (tls or allow_plaintext_token or is_local(address)):
            raise ValueError(
                f"the token would go to {address} unencrypted: give tls=TLS(), or allow_plaintext_token=True if "
                "something else encrypts the connection, as a service mesh does"
            )
        self._session = Session(address, tls, token, deadline_ms)
        self._open(channel_options(address, retry=retry, balance=balance))

    def __repr__(self) -> str:
        session = self._session
        encryption = "TLS" if session.tls else "plaintext"
        return f"<{type(self).__name__} {session.address} {encryption} models={len(session.signatures)}>"

    @abstractmethod
    def _open(self, options: list[tuple[str, Any]]) -> None:
        """Make the channel and its stub."""
