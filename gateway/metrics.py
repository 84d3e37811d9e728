"""The metrics page: what was counted, in Prometheus' words.

Triton's names where they mean the same, so that dashboards made for it go on working; `tensorgate_*` beside them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Sample,
    UnknownMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from gateway.gpus import GpuMeter, GpuReading
from gateway.machine import Machine
from gateway.remote.reading import Servers, families
from gateway.stats import BOUNDS_NS, STAGES, Failure, Histogram, ModelStatistics


@dataclass(frozen=True, slots=True)
class ModelReading:
    """A version that answers requests, at one moment.

    Attributes:
        name, version: which.
        stats: a copy.
        waiting: requests that wait to be executed.
        instances: how many it has.
        available: how many of them are there, and not away for a while.
    """

    name: str
    version: str
    stats: ModelStatistics
    waiting: int
    instances: int = 1
    available: int = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """The server, at one moment.

    Attributes:
        models: every version that answers requests.
        in_flight: calls under way, and requests of streams whose response has not been sent.
        streams: open ones.
        cache_entries, cache_bytes, cache_max_bytes, cache_evictions: the response cache's.
        spans_dropped: that found no room or no collector.
        servers: of models that other servers run.
    """

    models: Sequence[ModelReading]
    in_flight: int
    streams: int
    cache_entries: int
    cache_bytes: int
    cache_max_bytes: int
    cache_evictions: int
    spans_dropped: int
    servers: Servers = field(default_factory=dict)


class MetricsPage:
    """Writes readings as pages. May be used on any thread.

    Args:
        build: labels of `tensorgate_build_info`.
    """

    def __init__(self, build: Mapping[str, str]) -> None:
        self._build = InfoMetricFamily("tensorgate_build", "The server's version and what it runs on", dict(build))
        self._process = ProcessCollector(registry=None)
        self._machine = Machine()
        self._gpus = GpuMeter()

    def write(self, reading: Reading, accept: str) -> tuple[bytes, str]:
        """The page in the format that an Accept header asks for, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except Exception:  # a header that the library cannot make out
            encode, content_type = choose_encoder("")
        page = encode(_Collected(self._families(reading)))
        if content_type.startswith("text/plain"):
            page = _UNTYPED.sub(rb"\1 counter", page)
        return page, content_type

    def _families(self, reading: Reading) -> Iterator[Metric]:
        yield from _of_models(reading.models)
        yield from _histograms(reading.models)
        yield from _of_server(reading)
        yield from families(reading.servers)
        yield from self._of_machine()
        yield from _of_gpus(self._gpus.read())
        yield self._build
        yield from self._process.collect()

    def _of_machine(self) -> Iterator[Metric]:
        memory = self._machine.memory()
        yield GaugeMetricFamily("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", self._machine.utilization())
        yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", memory.total)
        yield GaugeMetricFamily("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", memory.used)


@dataclass(frozen=True, slots=True)
class _Collected:
    """What the library's encoders take: a registry of what is there already."""

    families: Iterable[Metric]

    def collect(self) -> Iterator[Metric]:
        for family in self.families:
            family.samples = _Unhurried(family.samples)
            yield family


class _Unhurried(list[Sample]):
    """Lets the event loop have its turn between samples: asking for it, it would wait for 5 ms each time."""

    def __iter__(self) -> Iterator[Sample]:
        for number, sample in enumerate(super().__iter__(), 1):
            yield sample
            if number % _AT_ONCE == 0:
                time.sleep(_TURN_S)


_AT_ONCE = 25  # a quarter of a millisecond's work
_TURN_S = 50e-6


_UNTYPED = re.compile(rb"^(# TYPE nv_\w+) untyped$", re.MULTILINE)
"""Triton's counters have no `_total`, without which OpenMetrics knows no counter: there, and only there, they have no
type, so that a name is the same whatever the format."""

_PER_MODEL = ("model", "version")

_TRITON_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("nv_inference_request_success", "Number of successful inference requests", lambda s: s.success.count),
    ("nv_inference_count", "Number of inferences performed: rows, without cached requests", lambda s: s.rows),
    ("nv_inference_exec_count", "Number of model executions performed: batches", lambda s: s.executions),
    ("nv_inference_request_duration_us", "Cumulative request duration in microseconds", lambda s: s.success.ns / 1000),
    ("nv_inference_queue_duration_us", "Cumulative queuing duration in microseconds", lambda s: s.queue.ns / 1000),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative time of putting batches together in microseconds, for each request of a batch",
        lambda s: s.compute.input_ns / 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative time of executing batches in microseconds, for each request of a batch",
        lambda s: s.compute.infer_ns / 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative time of taking batches apart in microseconds, for each request of a batch",
        lambda s: s.compute.output_ns / 1000,
    ),
    ("nv_cache_num_hits_per_model", "Number of cache hits", lambda s: s.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Number of cache misses", lambda s: s.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Total cache hit duration, in microseconds", lambda s: s.cache_hit.ns / 1000),
    (
        "nv_cache_miss_duration_per_model",
        "Total cache miss duration (lookup and insertion), in microseconds",
        lambda s: s.cache_miss.ns / 1000,
    ),
)

_GAUGES: tuple[tuple[str, str, Callable[[ModelReading], float]], ...] = (
    ("nv_inference_pending_request_count", "Requests that wait to be executed", lambda m: m.waiting),
    ("tensorgate_queue_depth", "Requests that wait to be executed", lambda m: m.waiting),
    ("tensorgate_instances", "Instances of the model", lambda m: m.instances),
    ("tensorgate_instances_available", "Those that are there: others come back by themselves", lambda m: m.available),
    ("nv_model_load_duration_secs", "Model load time in seconds", lambda m: m.stats.load_s),
    ("tensorgate_model_load_seconds", "How long loading took, warm-up included", lambda m: m.stats.load_s),
)

_TRITON_REASONS = {
    "REJECTED": (Failure.QUEUE_FULL, Failure.EXPIRED),
    "CANCELED": (Failure.CANCELLED,),
    "BACKEND": (Failure.INVALID_INPUT, Failure.FAILED),
    "OTHER": (Failure.INVALID_REQUEST, Failure.UNAVAILABLE),
}


def _of_models(models: Sequence[ModelReading]) -> Iterator[Metric]:
    for name, text, value in _TRITON_COUNTERS:
        family = UnknownMetricFamily(name, text, labels=_PER_MODEL)
        for model in models:
            family.add_metric((model.name, model.version), value(model.stats))
        yield family
    yield from _failures(models)
    for name, text, gauge in _GAUGES:
        now = GaugeMetricFamily(name, text, labels=_PER_MODEL)
        for model in models:
            now.add_metric((model.name, model.version), gauge(model))
        yield now


def _failures(models: Sequence[ModelReading]) -> Iterator[Metric]:
    labels = (*_PER_MODEL, "reason")
    theirs = UnknownMetricFamily("nv_inference_request_failure", "Number of failed inference requests", labels=labels)
    ours = CounterMetricFamily("tensorgate_request_failures", "Requests that got no answer", labels=labels)
    for model in models:
        counts = model.stats.failures
        for reason, failures in _TRITON_REASONS.items():
            theirs.add_metric((model.name, model.version, reason), sum(counts[failure] for failure in failures))
        for failure, count in counts.items():
            ours.add_metric((model.name, model.version, failure), count)
    yield theirs
    yield ours


def _histograms(models: Sequence[ModelReading]) -> Iterator[Metric]:
    whole = HistogramMetricFamily(
        "tensorgate_request_duration_seconds", "Answered requests, from arrival to answer", labels=_PER_MODEL
    )
    staged = HistogramMetricFamily(
        "tensorgate_stage_duration_seconds", "Answered requests, by stage", labels=(*_PER_MODEL, "stage")
    )
    rows = HistogramMetricFamily("tensorgate_batch_rows", "Executed batches by their rows", labels=_PER_MODEL)
    for model in models:
        which = (model.name, model.version)
        whole.add_metric(which, *_buckets(model.stats.success))
        for stage in STAGES:
            staged.add_metric((*which, stage), *_buckets(getattr(model.stats, stage)))
        rows.add_metric(which, *_row_buckets(model.stats))
    return iter((whole, staged, rows))


_PER_GPU = ("gpu_uuid",)

_GPU_GAUGES: tuple[tuple[str, str, Callable[[GpuReading], float | None]], ...] = (
    ("nv_gpu_utilization", "GPU utilization rate [0.0 - 1.0]", lambda gpu: gpu.utilization),
    ("nv_gpu_memory_total_bytes", "GPU total memory, in bytes", lambda gpu: gpu.memory_total),
    ("nv_gpu_memory_used_bytes", "GPU used memory, in bytes", lambda gpu: gpu.memory_used),
    ("nv_gpu_power_usage", "GPU power usage in watts", lambda gpu: gpu.power_w),
    ("nv_gpu_power_limit", "GPU power management limit in watts", lambda gpu: gpu.power_limit_w),
)


def _of_gpus(gpus: Sequence[GpuReading]) -> Iterator[Metric]:
    """What they tell; without a GPU, not even the names."""
    for name, text, value in _GPU_GAUGES:
        yield from _of_each(gpus, GaugeMetricFamily(name, text, labels=_PER_GPU), value)
    energy = UnknownMetricFamily("nv_energy_consumption", "GPU energy consumption in joules", labels=_PER_GPU)
    yield from _of_each(gpus, energy, lambda gpu: gpu.energy_j)


def _of_each(
    gpus: Sequence[GpuReading],
    family: GaugeMetricFamily | UnknownMetricFamily,
    value: Callable[[GpuReading], float | None],
) -> Iterator[Metric]:
    for gpu in gpus:
        if (told := value(gpu)) is not None:
            family.add_metric((gpu.uuid,), told)
    if family.samples:
        yield family


_Bucket: TypeAlias = tuple[str, float] | tuple[str, float, Exemplar]

_BOUNDS = [*(str(bound / 1e9) for bound in BOUNDS_NS), "+Inf"]


def _buckets(histogram: Histogram) -> tuple[list[_Bucket], float]:
    """The buckets, each with those before it, and the sum in seconds."""
    buckets: list[_Bucket] = list(zip(_BOUNDS, accumulate(histogram.counts), strict=True))
    for index, (trace_id, ns, at) in histogram.exemplars.items():
        bound, count = buckets[index][:2]
        buckets[index] = bound, count, Exemplar({"trace_id": trace_id}, ns / 1e9, round(at, 3))
    return buckets, histogram.ns / 1e9


_ROWS = [2**power for power in range(11)]


def _row_buckets(stats: ModelStatistics) -> tuple[list[_Bucket], float]:
    """The same of batches, whose exact sizes are known."""
    sizes = [(rows, compute.count) for rows, compute in stats.by_rows.items()]
    buckets: list[_Bucket] = [(f"{bound}.0", sum(count for rows, count in sizes if rows <= bound)) for bound in _ROWS]
    return [*buckets, ("+Inf", stats.executions)], stats.rows


def _of_server(reading: Reading) -> Iterator[Metric]:
    used, most = reading.cache_bytes, reading.cache_max_bytes
    evicted = reading.cache_evictions
    for name, text, value in (
        ("tensorgate_requests_in_flight", "Calls and requests of streams that are under way", reading.in_flight),
        ("tensorgate_streams_open", "Open ModelStreamInfer streams", reading.streams),
        ("tensorgate_response_cache_bytes", "Size of all cached responses", used),
        ("tensorgate_response_cache_max_bytes", "Most that they may take", most),
        ("tensorgate_response_cache_entries", "Cached responses", reading.cache_entries),
        ("nv_cache_num_entries", "Number of responses stored in response cache", reading.cache_entries),
        ("nv_cache_num_evictions", "Number of cache evictions in response cache", evicted),
        ("nv_cache_util", "Cache utilization [0.0 - 1.0]", used / most if most else 0.0),
    ):
        yield GaugeMetricFamily(name, text, value)
    yield CounterMetricFamily("tensorgate_response_cache_evictions", "Cached responses that gave way", evicted)
    dropped = reading.spans_dropped
    yield CounterMetricFamily("tensorgate_spans_dropped", "Spans that found no room or no collector", dropped)
