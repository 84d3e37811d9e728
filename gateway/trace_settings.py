"""What is traced: as the server is told at its start, and as TraceSetting changes it later, in Triton's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from gateway.errors import InvalidRequest
from gateway.tracing import Sampling, Tracer

_LEVEL, _RATE, _COUNT, _MODE = "trace_level", "trace_rate", "trace_count", "trace_mode"
_FIELDS = {_LEVEL: "on", _RATE: "rate", _COUNT: "left"}
_OFF, _ON = "OFF", "TIMESTAMPS"
_MODE_NAME = "opentelemetry"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SAMPLERS: Mapping[str, tuple[bool, float | None]] = {
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
    "traceidratio": (False, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "parentbased_traceidratio": (True, None),
}
"""OpenTelemetry's: whether the caller's decision goes first, and the rate, None if OTEL_TRACES_SAMPLER_ARG has it."""


class InvalidSampler(ValueError):
    """An OTEL_TRACES_SAMPLER that is not known, or a rate that is none."""


def switched_off(environ: Mapping[str, str]) -> bool:
    """Whether the environment forbids all of it."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def sampling_of(rate: float | None, environ: Mapping[str, str]) -> Sampling:
    """What is sampled from the start.

    Args:
        rate: share of the calls, if a setting says so. It goes before OTEL_TRACES_SAMPLER; the caller's decision goes
            before it.
        environ: environment variables. Without a rate they turn tracing on, by saying where spans go.

    Raises:
        InvalidSampler: they name a sampler that is not known.
    """
    if switched_off(environ):
        return Sampling()
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter == "none":
        return Sampling()
    if rate is not None:
        return Sampling(on=True, rate=rate)
    if not (exporter or any(environ.get(name) for name in _ENDPOINTS)):
        return Sampling()
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
    if name not in _SAMPLERS:
        raise InvalidSampler(f"OTEL_TRACES_SAMPLER: expected {', '.join(_SAMPLERS)}, got '{name}'")
    parent_based, fixed = _SAMPLERS[name]
    if fixed is None:
        fixed = _rate_of(environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1")
    return Sampling(on=parent_based or fixed > 0, rate=fixed, parent_based=parent_based)


def _rate_of(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise InvalidSampler(f"OTEL_TRACES_SAMPLER_ARG: expected a number from 0 to 1, got '{text}'")
    return rate


class TraceSettings:
    """The settings as clients read and change them.

    Args:
        tracer: that goes by them.
        turned_on: called before anything is traced; raises NotAllowed if nothing can be.
    """

    def __init__(self, tracer: Tracer, turned_on: Callable[[], None]) -> None:
        self._tracer = tracer
        self._turned_on = turned_on
        self._initial = tracer.sampling
        self._own: dict[str, dict[str, Any]] = {}  # of a model, by the fields of its sampling

    def change(self, model: str, settings: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Change those that are named; all of them as they are then.

        Args:
            model: whose; empty for all that have none of their own.
            settings: by name; no value at all puts one back to what holds for all models, or held at the start.

        Raises:
            InvalidRequest: a name or value is not known.
            NotAllowed: nothing can be traced.
        """
        tracer = self._tracer
        self._count_down()
        now = tracer.by_model.get(model, tracer.sampling)
        own = dict(self._own.get(model, {}))
        default = tracer.sampling if model else self._initial
        for name, values in settings.items():
            given = [value for value in values if value]
            now = _changed(now, default, name, given)
            if name in _FIELDS:
                own.pop(_FIELDS[name], None)
                if given:
                    own[_FIELDS[name]] = getattr(now, _FIELDS[name])
        if now.on:
            self._turned_on()
        if model:
            self._own[model] = own
        else:
            tracer.sampling = now
        self._apply()
        return _shown(tracer.by_model.get(model, tracer.sampling))

    def _apply(self) -> None:
        """Work out what holds for each model with settings of its own; the others it shares with all."""
        tracer = self._tracer
        for model, own in list(self._own.items()):
            if not own:
                del self._own[model]
                tracer.by_model.pop(model, None)
                continue
            tracer.by_model[model] = replace(tracer.sampling, **own)

    def _count_down(self) -> None:
        """Note how many may still be sampled of the models that have a count of their own."""
        for model, own in self._own.items():
            if "left" in own:
                own["left"] = self._tracer.by_model[model].left


def _changed(now: Sampling, default: Sampling, name: str, values: Sequence[str]) -> Sampling:
    """`now` with one setting changed."""
    if name == _LEVEL:
        levels = {value.upper() for value in values}
        if unknown := levels - {_OFF, _ON}:
            raise InvalidRequest(f"{_LEVEL}: expected {_OFF} or {_ON}, got '{', '.join(sorted(unknown))}'")
        return replace(now, on=_ON in levels if levels else default.on)
    if name == _RATE:
        if not values:
            return replace(now, rate=default.rate)
        number = _number(_RATE, values, least=0)
        return replace(now, rate=1 / number if number else 0.0)
    if name == _COUNT:
        count = _number(_COUNT, values, least=-1) if values else default.left
        return replace(now, left=inf if count == -1 else count)
    if name == _MODE and list(values) in ([], [_MODE_NAME]):
        return now
    raise InvalidRequest(
        f"trace setting '{name}' cannot be changed: expected {_LEVEL}, {_RATE} or {_COUNT}; where spans go is said by "
        "OpenTelemetry's environment variables"
    )


def _number(name: str, values: Sequence[str], least: int) -> int:
    try:
        number = int(values[0])
    except ValueError:
        number = least - 1
    if number < least or len(values) > 1:
        raise InvalidRequest(f"{name}: expected a whole number, at least {least}, got '{', '.join(values)}'")
    return number


def _shown(sampling: Sampling) -> dict[str, list[str]]:
    rate = round(1 / sampling.rate) if sampling.rate else 0
    return {
        _LEVEL: [_ON if sampling.on else _OFF],
        _RATE: [str(rate)],
        _COUNT: [str(-1 if sampling.left == inf else int(sampling.left))],
        _MODE: [_MODE_NAME],
    }
