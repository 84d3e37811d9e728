"""What a server's error means: for those who wait, for the server, and for trying another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from grpc import StatusCode

from backends.base import InvalidInput
from gateway.errors import DeadlineExceeded, GatewayError, ModelNotReady, QueueFull

_LONGEST = 500  # characters of what a server says
_ADDRESS = re.compile(r"\bipv[46]:\S+: |\bqtype=\w+ ")  # in the words of gRPC's core
_TOO_LARGE = ("larger than max", "exceeds maximum size")  # in the words of gRPC's implementations


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to make of a failed call.

    Attributes:
        error: for those who wait.
        lost: whether to send the server nothing more until it says that it is ready.
        fault: whether that is the server's, and not the caller's.
        executed: whether the batch may have been executed all the same.
    """

    error: Exception
    lost: bool = False
    fault: bool = True
    executed: bool = True

    def elsewhere(self, *, idempotent: bool) -> bool:
        """Whether to try another server."""
        return self.lost and (idempotent or not self.executed)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """Of a status that is nobody's fault who waits. The server's own words are not for them."""

    kind: type[GatewayError]
    text: str
    lost: bool = False
    executed: bool = True


_GONE = _Meaning(ModelNotReady, "the server that it ran on is gone: try again", lost=True)
_MEANINGS: Mapping[StatusCode, _Meaning] = {
    StatusCode.UNAVAILABLE: _GONE,
    StatusCode.CANCELLED: _GONE,  # not by us: a server that stops and waits no longer
    StatusCode.NOT_FOUND: _Meaning(ModelNotReady, "no server has it: try again later", lost=True, executed=False),
    StatusCode.RESOURCE_EXHAUSTED: _Meaning(QueueFull, "the server that it runs on has too much to do"),
    StatusCode.DEADLINE_EXCEEDED: _Meaning(DeadlineExceeded, "not answered in time by the server that it runs on"),
}


def judge(error: grpc.RpcError, address: str, model: str) -> Verdict:
    """The verdict on a call.

    Args:
        error: that it ended with.
        address: of the server.
        model: as it is called there.
    """
    code, text = error.code(), _text(error)
    if code in (StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE):
        return Verdict(
            InvalidInput(text.removeprefix(f"model '{model}': ")), fault=False
        )  # callers may know it by another name
    if code is StatusCode.RESOURCE_EXHAUSTED and any(words in text for words in _TOO_LARGE):
        return Verdict(InvalidInput(f"too large for the server that it runs on: {text}"), fault=False)
    if meaning := _MEANINGS.get(code):
        return Verdict(meaning.kind(meaning.text), meaning.lost, executed=meaning.executed)
    return Verdict(RuntimeError(f"{address}: {said(error)}"))


def said(error: grpc.RpcError) -> str:
    """A failed call's status in a line, for the log: the same whichever of a name's addresses was tried last."""
    return f"{error.code().name}: {_ADDRESS.sub('', _text(error))}"


def _text(error: grpc.RpcError) -> str:
    text = " ".join((error.details() or "").split()) or "no reason given"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
