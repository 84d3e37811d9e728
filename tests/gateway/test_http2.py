"""The HTTP/2 of our own, with gRPC's own client in front of it."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest
from grpc import Compression
from grpc import StatusCode as Code
from support.calls import eventually

from gateway import http2_messages
from gateway.http2_call import Call
from gateway.native import NativeTransport
from gateway.services import Services
from gateway.status import Status
from gateway.transport import Limits

LIMIT = 8 << 20
SIZES = (0, 1, 5, 16_384, 65_535, 1 << 20, 5 << 20, 3)


async def echo(call: Call) -> None:
    """Gives every message back."""
    while (message := await call.read()) is not None:
        await call.write(message)


class Endpoint(Services):
    """Serves on a loop in a thread of its own."""

    def __init__(self, handler: Callable[[Call], Awaitable[Status | None]]) -> None:
        self.running: set[Call] = set()
        self._handler = handler
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        port = self.do(self._start())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)])
        self.call = self.channel.stream_stream("/any/Method")

    async def _start(self) -> int:
        self.server = NativeTransport(self, {}, {}, {}, Limits(LIMIT))
        port = self.server.bind("127.0.0.1:0")
        await self.server.start()
        return port

    async def serve(self, call: Call) -> Status | None:
        """As `Services.serve`."""
        self.running.add(call)
        try:
            return await self._handler(call)
        finally:
            self.running.remove(call)

    def do(self, work):
        """Have the loop do it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        """End everything."""
        self.channel.close()
        self.do(self.server.stop(None))
        assert not self.running
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def endpoint(handler) -> Iterator[Endpoint]:
    """An endpoint that serves `handler`."""
    served = Endpoint(handler)
    try:
        yield served
    finally:
        served.close()


def ends(call) -> tuple[Code, str]:
    """The status of a call, once it is over."""
    with suppress(grpc.RpcError):
        list(call)
    return call.code(), call.details()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_messages_of_all_sizes(compression: Compression):
    """Messages from none to millions of bytes come back whole and in order, also compressed ones."""
    sent = [bytes([number % 251]) * size for number, size in enumerate(SIZES * 3)]
    with endpoint(echo) as served:
        assert list(served.call(iter(sent), compression=compression, timeout=60)) == sent


def test_many_calls_at_once():
    """A hundred streams on one connection each get their own."""
    with endpoint(echo) as served:
        calls = [(n, served.call(iter([b"%d" % n, bytes(n * 100)] * 5), timeout=60)) for n in range(100)]
        for number, call in calls:
            assert list(call) == [b"%d" % number, bytes(number * 100)] * 5


def test_a_message_over_the_limit():
    """A message over the limit, packed or unpacked, ends its call with what to do; others go on."""
    with endpoint(echo) as served:
        going_on = threading.Event()

        def messages():
            yield b"before"
            going_on.wait(30)
            yield b"after"

        beside = served.call(messages(), timeout=60)
        assert next(beside) == b"before"
        for compression in (None, Compression.Gzip):
            code, told = ends(served.call(iter([bytes(LIMIT + 1)]), compression=compression, timeout=60))
            assert code is Code.RESOURCE_EXHAUSTED
            assert f"larger than max ({LIMIT + 1} vs. {LIMIT})" in told
        going_on.set()
        assert list(beside) == [b"after"]


def test_the_status_reaches_the_caller():
    """A status and its text arrive, whatever characters it has, behind the responses before it."""
    told = "50 % of 'größe' is wrong:\n二"

    async def refuse(call: Call) -> Status:
        await call.write((await call.read() or b"") * 2)
        return Status(Code.FAILED_PRECONDITION, told)

    with endpoint(refuse) as served:
        call = served.call(iter([b"x" * 1_000_000]), timeout=60)
        assert next(call) == b"x" * 2_000_000
        assert ends(call) == (Code.FAILED_PRECONDITION, told)


def test_a_fault_of_the_handler():
    """What goes wrong in the server ends the call with an id, and tells nothing else."""

    async def fail(call: Call) -> None:
        raise KeyError("secret")

    with endpoint(fail) as served:
        code, told = ends(served.call(iter([b""]), timeout=60))
        assert code is Code.INTERNAL
        assert "secret" not in told


def test_cancelled_and_expired_calls_leave_nothing():
    """A caller who cancels, or whose deadline passes, has its handler ended."""
    with endpoint(echo) as served:
        silence = threading.Event()
        cancelled = served.call((silence.wait(30) and b"" for _ in range(1)), timeout=60)
        expired = served.call((silence.wait(30) and b"" for _ in range(1)), timeout=0.2)
        eventually(lambda: served.running)
        assert ends(expired)[0] is Code.DEADLINE_EXCEEDED
        cancelled.cancel()
        eventually(lambda: not served.running)
        silence.set()


def test_a_slow_reader_is_not_read_from():
    """Of a caller who reads nothing no more is taken than fits the windows; once it reads, all of it arrives."""
    taken = 0

    def messages():
        nonlocal taken
        for taken in range(1, 201):  # noqa: B007
            yield bytes(100_000)

    with endpoint(echo) as served:
        call = served.call(messages(), timeout=60)
        first = next(call)
        (running,) = served.running
        eventually(lambda: len(running._out) > 0)
        assert taken < 200
        assert len([first, *call]) == 200


def test_stopping_lets_calls_end():
    """A stop waits for calls under way and cuts off what does not end in time."""
    with endpoint(echo) as served:
        silence = threading.Event()
        call = served.call((silence.wait(30) and b"last" for _ in range(1)), timeout=60)
        eventually(lambda: served.running)
        stopping = asyncio.run_coroutine_threadsafe(served.server.stop(30), served.loop)
        silence.set()
        assert list(call) == [b"last"]
        stopping.result(30)
    with endpoint(echo) as served:
        silence = threading.Event()
        call = served.call((silence.wait(30) and b"" for _ in range(1)), timeout=60)
        eventually(lambda: served.running)
        served.do(served.server.stop(0.05))
        assert ends(call)[0] is Code.UNAVAILABLE
        silence.set()


@pytest.mark.parametrize(
    ("packed", "encoding", "code"),
    [
        (b"no zlib data", "gzip", Code.INVALID_ARGUMENT),
        (zlib.compress(b"x" * 100)[:-8], "deflate", Code.INVALID_ARGUMENT),
        (b"", "snappy", Code.UNIMPLEMENTED),
    ],
)
def test_what_cannot_be_unpacked(packed: bytes, encoding: str, code: Code):
    """A message that claims a compression it has not, or one that nobody offers, is refused and named."""

    async def unpack(call: Call) -> None:
        assert http2_messages.unpacked(packed, encoding, LIMIT)

    with endpoint(unpack) as served:
        ended, told = ends(served.call(iter([]), timeout=60))
        assert ended is code
        assert encoding in told
