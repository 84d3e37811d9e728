"""A collector that takes spans over OTLP, by gRPC and HTTP, and keeps them."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from support.calls import eventually

SERVER = trace_pb2.Span.SPAN_KIND_SERVER
INTERNAL = trace_pb2.Span.SPAN_KIND_INTERNAL
ERROR = trace_pb2.Status.STATUS_CODE_ERROR


@dataclass(frozen=True)
class Span:
    """A span as it came, ids as hexadecimal text."""

    proto: trace_pb2.Span
    resource: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.proto, name)

    @property
    def trace(self) -> str:
        """The trace's id."""
        return self.proto.trace_id.hex()

    @property
    def id(self) -> str:
        """Its own id."""
        return self.proto.span_id.hex()

    @property
    def parent(self) -> str:
        """The id of the span above it, empty for none."""
        return self.proto.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, Any]:
        """What it says."""
        return _values(self.proto.attributes)

    @property
    def links(self) -> list[tuple[str, str]]:
        """Trace and span that each link leads to."""
        return [(link.trace_id.hex(), link.span_id.hex()) for link in self.proto.links]

    @property
    def key(self) -> tuple[str, str]:
        """What links to it lead to."""
        return self.trace, self.id


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _from_json(body: bytes) -> service.ExportTraceServiceRequest:
    """OTLP's own JSON, which has ids in hexadecimal where protobuf's has base64."""
    request = json_format.Parse(body, service.ExportTraceServiceRequest(), ignore_unknown_fields=True)
    for resource in request.resource_spans:
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            for field in ("trace_id", "span_id", "parent_span_id"):
                setattr(span, field, bytes.fromhex(base64.b64encode(getattr(span, field)).decode()))
    return request


class Collector(service_grpc.TraceServiceServicer):
    """Takes what is exported to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.address = ""
        self.http = ""

    def take(self, request: service.ExportTraceServiceRequest, headers: Mapping[str, str]) -> None:
        """Keep spans."""
        with self._lock:
            self.headers.append({key.lower(): value for key, value in headers.items()})
            for resource in request.resource_spans:
                told = _values(resource.resource.attributes)
                self._spans += [Span(span, told) for scope in resource.scope_spans for span in scope.spans]

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  # the service's name
        """As the protocol has it."""
        self.take(request, {key: str(value) for key, value in context.invocation_metadata()})
        return service.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        """All that came so far."""
        with self._lock:
            return list(self._spans)

    def named(self, name: str) -> list[Span]:
        """Those of a name, which may be the method's alone."""
        return [span for span in self.spans if span.name.rpartition("/")[2] == name]

    def wait(self, name: str, count: int = 1, where: Callable[[Span], bool] = lambda _: True) -> list[Span]:
        """The spans of a name, once there are so many."""
        eventually(lambda: len([span for span in self.named(name) if where(span)]) >= count)
        return [span for span in self.named(name) if where(span)]

    def below(self, parent: Span) -> dict[str, Span]:
        """The spans right below one, by name."""
        return {span.name: span for span in self.spans if (span.trace, span.parent) == parent.key}

    def environment(self, protocol: str = "grpc", **more: str) -> dict[str, str]:
        """Environment variables of a server that exports to it without delay."""
        endpoint = self.address if protocol == "grpc" else self.http
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{endpoint}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            **more,
        }


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on free ports."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    service_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            body = self.rfile.read(int(self.headers["content-length"]))
            json = self.headers["content-type"] == "application/json"
            parse = _from_json if json else service.ExportTraceServiceRequest.FromString
            collector.take(parse(body), dict(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.http = f"127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        http.shutdown()
        http.server_close()
        server.stop(None)
