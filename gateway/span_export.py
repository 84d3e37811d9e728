"""Takes spans where OpenTelemetry's environment variables say, on a thread of its own.

A collector that is dead, slow or wrong costs the spans alone: what waits is bounded, what finds no room or is not taken
is counted, and the log says so once a minute. Needs the packages opentelemetry-sdk and opentelemetry-exporter-otlp.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from os import environ
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from gateway.spans import Attributes, SpanBuilder
from gateway.tracing import Tracer

_log = logging.getLogger(__name__)

_SAY_AGAIN_S = 60.0
_CALLS = 64
"""Calls that are turned into spans at a time; seven spans each are what OpenTelemetry exports at a time by default."""

_REST = 2.0
"""How long to pause after work, in its own terms: a span costs as much as a quarter of a small request, and requests go
first. What does not find its way out so is dropped."""

_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class CannotExport(Exception):
    """The environment names an exporter that is not installed or not known; the message says which."""


class _Heard(logging.Handler):
    """What the library has said last."""

    words = "no collector took them"

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.words = record.getMessage().splitlines()[0][:300]


class SpanExport:
    """Exports what a tracer has finished, from `start` to `close`.

    Args:
        tracer: whose calls.
        version: of the server.
        server: attributes of every server span.

    Attributes:
        dropped: spans that no collector took.

    Raises:
        CannotExport: the environment asks for what there is not.
    """

    def __init__(self, tracer: Tracer, version: str, server: Attributes) -> None:
        self._tracer = tracer
        self._exporters = _exporters()
        self._delay_s = _number("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        tracer.most = _number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        defaults = {} if environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "tensorgate"}
        resource = Resource(defaults).merge(_without_unknown_name(Resource.create()))
        self._builder = SpanBuilder(resource, InstrumentationScope("tensorgate", version), server)
        self.dropped = 0
        self._said = -_SAY_AGAIN_S
        self._unsaid = 0
        self._leaving = 0
        self._heard = _Heard()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="span-export", daemon=True)

    def __repr__(self) -> str:
        return f"<SpanExport waiting={len(self._tracer.finished)} dropped={self.dropped}>"

    def start(self) -> None:
        """Export from now on."""
        library = logging.getLogger("opentelemetry")  # it would tell of every failure
        library.addHandler(self._heard)
        library.propagate = False
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Export what waits, within `timeout_s`."""
        self._closing.set()
        self._thread.join(timeout_s)
        waiting = sum(call.stages.passed + 1 for call in self._tracer.finished)
        if lost := self._unsaid + self._leaving + waiting:
            _log.warning("%d further spans were not exported: %s", lost, self._heard.words)
        for exporter in self._exporters:
            exporter.shutdown()

    def _work(self) -> None:
        due = time.monotonic() + self._delay_s
        while not self._closing.wait(_LOOK_S):
            if len(self._tracer.finished) >= _CALLS or time.monotonic() >= due:
                self._export_all()
                due = time.monotonic() + self._delay_s
        self._export_all()
        self._hand_over([*self._builder.batches(every=True)])

    def _export_all(self) -> None:
        finished = self._tracer.finished
        while finished:
            began = time.thread_time()
            spans: list[ReadableSpan] = []
            for _ in range(min(_CALLS, len(finished))):
                spans += self._builder.call(finished.popleft())
            self._hand_over([*spans, *self._builder.batches()])
            self._closing.wait(_REST * (time.thread_time() - began))
        self._hand_over([*self._builder.batches()])

    def _hand_over(self, spans: Sequence[ReadableSpan]) -> None:
        if not spans:
            return
        for exporter in self._exporters:
            started = time.monotonic()
            try:
                self._leaving = len(spans)
                taken = exporter.export(spans) is SpanExportResult.SUCCESS
                why = f"{self._heard.words} ({time.monotonic() - started:.1f} s)"
            except Exception as error:  # whatever an exporter does, requests are none of its business
                taken, why = False, f"{type(error).__name__}: {error}"
            self._leaving = 0
            if not taken:
                self.dropped += len(spans)
                self._unsaid += len(spans)
                self._say(why)

    def _say(self, why: str) -> None:
        if time.monotonic() - self._said >= _SAY_AGAIN_S:
            _log.warning("%d spans were dropped: %s (OTEL_EXPORTER_OTLP_ENDPOINT says where to)", self._unsaid, why)
            self._said, self._unsaid = time.monotonic(), 0


_LOOK_S = 0.05


def _without_unknown_name(resource: Resource) -> Resource:
    """OpenTelemetry's own default for the service's name says less than ours."""
    attributes = dict(resource.attributes)
    if str(attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        del attributes[SERVICE_NAME]
    return Resource(attributes)


def _exporters() -> list[SpanExporter]:
    """Those that OTEL_TRACES_EXPORTER names, OTLP by default, over OTEL_EXPORTER_OTLP_[TRACES_]PROTOCOL."""
    names = [name.strip() for name in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",") if name.strip()]
    if names in ([], ["none"]):
        raise CannotExport("OTEL_TRACES_EXPORTER is 'none': traces would go nowhere")
    return [_made(name) for name in names]


def _made(name: str) -> SpanExporter:
    entry = name
    if name == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        variable = next((name for name in variables if environ.get(name)), "")
        protocol = environ.get(variable, "grpc")
        if protocol not in _PROTOCOLS:
            raise CannotExport(f"{variable}: expected {' or '.join(_PROTOCOLS)}, got '{protocol}'")
        entry = _PROTOCOLS[protocol]
    found = entry_points(group="opentelemetry_traces_exporter", name=entry)
    if not found:
        raise CannotExport(f"OTEL_TRACES_EXPORTER: '{name}' is not installed ('tensorgate[otlp]' brings otlp)")
    made: Callable[[], Any] = next(iter(found)).load()
    try:
        exporter: SpanExporter = made()
    except Exception as error:  # each has its own ways not to like a variable
        raise CannotExport(f"OpenTelemetry's variables for exporter '{name}': {error}") from error
    return exporter


def _number(variable: str, default: int) -> int:
    text = environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) else default
