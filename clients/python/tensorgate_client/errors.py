"""The one exception that calls raise."""

from __future__ import annotations

import grpc


class InferenceError(Exception):
    """A call, or one batch of a stream, that was not answered well.

    Attributes:
        code: gRPC's status code: INVALID_ARGUMENT also where the client itself saw that a tensor does not fit, UNKNOWN
            for a batch that a server other than tensorgate refused within a stream: the protocol carries no code there.
        message: what was wrong, in the server's words where it had some.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"
