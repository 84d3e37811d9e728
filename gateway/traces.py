"""Tracing as a part of the server: switched on by settings, the environment or an RPC, exporting from then on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import environ
from typing import TYPE_CHECKING

from gateway.errors import NotAllowed
from gateway.settings import InvalidSettings, Settings, tracing_installed
from gateway.trace_settings import InvalidSampler, TraceSettings, sampling_of, switched_off
from gateway.tracing import Sampling, Tracer

if TYPE_CHECKING:
    from gateway.span_export import SpanExport

_log = logging.getLogger(__name__)

_HINT = "tracing is not installed: pip install 'tensorgate[otlp]'"


class Traces:
    """What decides, what it goes by, and what exports.

    Args:
        settings: of the server.
        version: of the server.

    Raises:
        InvalidSettings: OpenTelemetry's environment variables ask for what there is not.
    """

    def __init__(self, settings: Settings, version: str) -> None:
        try:
            sampling = sampling_of(settings.trace_rate, environ)
        except InvalidSampler as error:
            raise InvalidSettings(str(error)) from None
        if sampling.on and not tracing_installed():
            _log.warning("OpenTelemetry's environment variables ask for traces, but %s", _HINT)
            sampling = Sampling()
        self.tracer = Tracer(sampling)
        if settings.trace_slow_ms is not None:
            self.tracer.slow_ns = settings.trace_slow_ms * 1e6
        self.settings = TraceSettings(self.tracer, self._turned_on)
        self._version = version
        self._server: Mapping[str, str | int] = {"server.address": settings.host}
        self._export: SpanExport | None = None
        if sampling.on:
            self._start()

    def __repr__(self) -> str:
        return f"<Traces {self.tracer.sampling} {self._export!r}>"

    @property
    def dropped(self) -> int:
        """Spans that found no room or no collector."""
        return self.tracer.dropped + (self._export.dropped if self._export else 0)

    def close(self, timeout_s: float) -> None:
        """Export what waits, within `timeout_s`."""
        self.tracer.sampling, self.tracer.by_model = Sampling(), {}
        if self._export:
            self._export.close(timeout_s)

    def _turned_on(self) -> None:
        if not tracing_installed():
            raise NotAllowed(f"{_HINT}, on the server's machine")
        if switched_off(environ):
            raise NotAllowed("tracing is switched off by OTEL_SDK_DISABLED in the server's environment")
        try:
            self._start()
        except InvalidSettings as error:
            raise NotAllowed(str(error)) from None

    def _start(self) -> None:
        if self._export:
            return
        from gateway.span_export import CannotExport, SpanExport  # noqa: PLC0415  # an extra, and slow to import

        try:
            self._export = SpanExport(self.tracer, self._version, self._server)
        except CannotExport as error:
            raise InvalidSettings(str(error)) from None
        self._export.start()
