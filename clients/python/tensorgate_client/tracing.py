"""The caller's trace context, passed on where OpenTelemetry is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module


@cache
def trace_injector() -> Callable[[dict[str, str]], None] | None:
    """What writes the current context (W3C traceparent, or what the program chose) into headers, if there is such."""
    try:
        inject: Callable[[dict[str, str]], None] = import_module("opentelemetry.propagate").inject
    except ImportError:
        return None
    return inject
