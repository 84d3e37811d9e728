"""Calls of any number of messages, whichever transport they come by: streams of inferences, and all other services'."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from math import inf
from typing import Any, Protocol

from gateway.status import Status, status_of
from gateway.streaming import Stream
from gateway.tracing import Metadata
from gateway.transport import LATE, STOPPED, OpenStream


class Conversation(Protocol):
    """A call of any number of messages, as bytes.

    Attributes:
        path: of the method.
        deadline: when the caller stops waiting (`time.perf_counter`), infinite if it does not say.
    """

    path: str
    deadline: float

    async def read(self) -> Any:
        """The next message; after the last one something else."""
        ...

    async def write(self, message: bytes, /) -> None:
        """Send a message; returns when there is room for another."""
        ...

    async def flush(self) -> None:
        """Return when everything has been handed to the connection."""
        ...

    def end(self, status: Status | None, /) -> None:
        """Tell the caller that it is over, and how; None if all is well."""
        ...


class Service(Protocol):
    """Answers calls that are no inferences."""

    async def serve(self, call: Conversation, /) -> Status | None:
        """Answer a call; the status it ends with, None if all is well."""
        ...


class Conversations:
    """Those that a transport has under way, a task each.

    Args:
        streams: bidirectional RPCs by path.
        service: every other one.

    Attributes:
        streaming: how many of them are streams of inferences.
    """

    def __init__(self, streams: Mapping[str, OpenStream], service: Service) -> None:
        self._streams = streams
        self._service = service
        self._tasks: set[asyncio.Task[None]] = set()
        self.streaming = 0

    def begin(self, call: Conversation, metadata: Metadata) -> asyncio.Task[None]:
        """Serve a call; whoever cancels the task takes its caller away."""
        task = asyncio.get_running_loop().create_task(self._serve(call, metadata))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self, grace_s: float) -> None:
        """Let them end, and cut off those that do not."""
        if self._tasks and grace_s:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, call: Conversation, metadata: Metadata) -> None:
        status: Status | None = STOPPED
        try:
            status = await self._end_of(call, metadata)
        finally:  # whatever happened, nobody is left waiting
            call.end(status)

    async def _end_of(self, call: Conversation, metadata: Metadata) -> Status | None:
        """Answer a call within its deadline; the status to end it with."""
        try:
            async with asyncio.timeout(None if call.deadline == inf else call.deadline - time.perf_counter()):
                try:
                    status = await self._answer(call, metadata)
                except TimeoutError:
                    raise
                except Exception as error:
                    return status_of(error, call.path)
                await call.flush()
                return status
        except TimeoutError:
            return LATE

    async def _answer(self, call: Conversation, metadata: Metadata) -> Status | None:
        if not (open_stream := self._streams.get(call.path)):
            return await self._service.serve(call)
        self.streaming += 1
        try:
            with open_stream(call.deadline, metadata) as stream:
                status = await carry(stream, call)
            await call.flush()
        finally:
            self.streaming -= 1
        return status


async def carry(stream: Stream, call: Conversation) -> Status | None:
    """Take a stream's messages from a call and bring it the responses; the status to end with, None if all is well."""
    reading = asyncio.create_task(_read(stream, call))
    try:
        while isinstance(response := await stream.next(), bytes):
            await call.write(response)
            stream.sent(response)
    finally:
        reading.cancel()
    return response


async def _read(stream: Stream, call: Conversation) -> None:
    try:
        # An empty message is one, too: only the end is not bytes.
        while isinstance(message := await call.read(), bytes):
            stream.receive(message)
            if stream.full:
                await stream.room()
    except Exception as error:
        stream.break_off(error)
    finally:
        stream.end()
