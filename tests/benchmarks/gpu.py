"""Part `gpu`: two real networks on an NVIDIA GPU behind the gateway against their backends in a bare loop."""

from __future__ import annotations

import itertools
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.gpu_models import NETWORKS
from benchmarks.models import Model
from benchmarks.report import BenchmarkError, number, progress, say, spread, table
from benchmarks.served import Body, Target, served
from benchmarks.worker import Worker
from gateway.gpus import NoGpus, visible

_LEVELS = (32, 128)
_SIZES = (16, 32, 64)
_INSTANCES = (1, 2)
_CLIENTS = 8
_STAGES = ("decode", "queue", "assemble", "infer", "split", "encode")
_PER_BATCH = {"assemble": "compute_input", "infer": "compute_infer", "split": "compute_output"}


@dataclass(frozen=True, slots=True)
class Contender:
    """A network on a backend."""

    network: str
    backend: str
    suffix: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tables call it."""
        return "_".join((self.network, self.backend, *self.parameters.values()))

    def served(self, file: Path, instances: int) -> Model:
        """The model that the gateway serves."""
        lines = [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in self.parameters.items()]
        group = f"instance_group {{ kind: KIND_GPU gpus: 0 count: {instances} }}"
        head = f'backend: "{self.backend}" max_batch_size: {max(_SIZES)} dynamic_batching {{ }}'
        return Model("\n".join([head, group, *lines]), {f"model{self.suffix}": file})


@dataclass(slots=True)
class Series:
    """What was measured of a contender at a level, round by round; stages in milliseconds a request."""

    rates: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def run(*, quick: bool) -> None:
    """Measure and print.

    Raises:
        BenchmarkError: there is no GPU.
    """
    try:
        gpus = visible()
    except NoGpus as error:
        raise BenchmarkError(f"part gpu needs a GPU: {error}") from None
    if not gpus:
        raise BenchmarkError("part gpu needs a GPU, and this process sees none")
    rounds, seconds = (1, 0.4) if quick else (2, 1.2)
    for network in NETWORKS:
        _measure(list(_contenders(network)), rounds, seconds)


def _measure(contenders: Sequence[Contender], rounds: int, seconds: float) -> None:
    """Measure one network, and print."""
    with Worker("benchmarks.gpu_models") as bare, tempfile.TemporaryDirectory(prefix="tensorgate-bench-") as folder:
        built = _built(bare, Path(folder), contenders)
        models = {
            f"{c.name}_{count}": c.served(_file(Path(folder), c), count) for c in contenders for count in _INSTANCES
        }
        with served(models, "--max-message-mb", "128") as target, _clients() as clients:
            load = Load(target, clients)
            series: dict[tuple[str, int], Series] = defaultdict(Series)
            bares: dict[tuple[str, int], list[float]] = defaultdict(list)
            bodies = {name: _body(target, name, built) for name in models}
            for turn, contender in itertools.product(range(rounds), contenders):
                progress(f"gpu: round {turn + 1} of {rounds}: {contender.name}")
                for size in _SIZES:
                    bares[contender.name, size].append(_bare(bare, contender, Path(folder), size, seconds))
                for count, level in itertools.product(_INSTANCES, _LEVELS):
                    name = f"{contender.name}_{count}"
                    load.measure(bodies[name], level, seconds, series[name, level])
    _report(contenders, series, bares)


def _contenders(network: str) -> Iterator[Contender]:
    yield Contender(network, "torch", ".pt2", {"dtype": "fp32"})
    yield Contender(network, "torch", ".pt2", {"dtype": "fp16"})
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        yield Contender(network, "onnxruntime", ".onnx")
    if _tensorrt():
        yield Contender(network, "tensorrt", ".onnx")


def _tensorrt() -> bool:
    from backends.base import LoadError, ModelSource  # noqa: PLC0415
    from backends.registry import Registry  # noqa: PLC0415  # its runtimes are looked for once more

    registry = Registry()
    try:
        info = registry.info("tensorrt")
        return not registry.obstacle(info, ModelSource("m", 1, Path(), Path("model.onnx")), "cuda")
    except LoadError:
        return False


def _file(folder: Path, contender: Contender) -> Path:
    return folder / f"{contender.network}{contender.suffix}"


def _built(bare: Worker, folder: Path, contenders: Sequence[Contender]) -> dict[str, dict[str, Any]]:
    built = {}
    for network in {c.network for c in contenders}:
        progress(f"gpu: writing {network}")
        onnx = any(c.suffix == ".onnx" for c in contenders)
        built[network] = bare("build", network=network, folder=str(folder), onnx=onnx)
        if not built[network]["trained"]:
            say(f"{network}: its trained weights are not there, so these are random: the speed is the same")
    return built


def _body(target: Target, name: str, built: Mapping[str, dict[str, Any]]) -> Body:
    network = next(network for network in built if name.startswith(network))
    described = NETWORKS[network]
    expected = {output: np.array(values, np.float32) for output, values in built[network]["answer"].items()}
    return target.body(name, described.inputs(1), expected, described.tolerance)


def _bare(bare: Worker, contender: Contender, folder: Path, rows: int, seconds: float) -> float:
    answer = bare(
        "measure",
        name=contender.name,
        backend=contender.backend,
        file=str(_file(folder, contender)),
        parameters=dict(contender.parameters),
        network=contender.network,
        rows=rows,
        seconds=seconds / 2,
    )
    return float(answer["rate"])


@contextmanager
def _clients() -> Iterator[list[Worker]]:
    """Load generators: one in Python sends fewer requests than a GPU answers."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker("benchmarks.generator")) for _ in range(_CLIENTS)]


class Load:
    """Sends requests from several processes at once."""

    def __init__(self, target: Target, clients: Sequence[Worker]) -> None:
        self._target = target
        self._clients = clients
        self._rates: dict[tuple[str, int], float] = {}

    def measure(self, body: Body, in_flight: int, seconds: float, series: Series) -> None:
        """A round, after a short one that warms up and tells how many requests it takes."""
        key = body.model, in_flight
        if key not in self._rates:
            self._rates[key] = self._run(body, in_flight, 8 * in_flight, Series())
            self._rates[key] = self._run(body, in_flight, self._count(key, 0.3), Series())
        self._rates[key] = self._run(body, in_flight, self._count(key, seconds), series)

    def _count(self, key: tuple[str, int], seconds: float) -> int:
        return max(round(self._rates[key] * seconds), 4 * key[1])

    def _run(self, body: Body, in_flight: int, count: int, series: Series) -> float:
        each, level = -(-count // len(self._clients)), in_flight // len(self._clients)
        before, stages = self._target.counts(body.model), _stages(self._target, body.model)
        with self._target.answers_all(body.model, each * len(self._clients)), ThreadPoolExecutor() as threads:
            calls = [
                threads.submit(
                    client, "closed", address=self._target.address, bodies=[str(body.file)], in_flight=level, count=each
                )
                for client in self._clients
            ]
            answers = [call.result() for call in calls]
        rate = sum(answer["rate"] for answer in answers)
        series.rates.append(rate)
        series.latencies_ms += [ms for answer in answers for ms in answer["latencies_ms"]]
        series.busy.append(statistics.mean(answer["processor_s"] / answer["seconds"] for answer in answers))
        after = self._target.counts(body.model)
        if before and after:
            executed = after.since(before)
            series.rows.append(executed.rows / executed.executions)
        for stage, total in _stages(self._target, body.model).items():
            series.stages[stage].append((total - stages[stage]) / (each * len(self._clients)))
        return float(rate)


def _stages(target: Target, model: str) -> dict[str, float]:
    """Milliseconds that a model's requests have spent in each stage so far, all together."""
    page = target.metrics()
    found = {}
    for stage in _STAGES:
        part = _PER_BATCH.get(stage)
        name, label, scale = "tensorgate_stage_duration_seconds_sum", f'stage="{stage}",', 1000.0
        if part:
            name, label, scale = f"nv_inference_{part}_duration_us", "", 1e-3
        match = re.search(rf'^{name}{{model="{model}",{label}version="1"}} (\S+)$', page, re.MULTILINE)
        assert match, (stage, model)
        found[stage] = float(match[1]) * scale
    return found


def _report(
    contenders: Sequence[Contender],
    series: Mapping[tuple[str, int], Series],
    bares: Mapping[tuple[str, int], list[float]],
) -> None:
    table(
        "gpu: backends in a bare loop on one thread, copies to the GPU and back included, rows/s",
        "none: it is what the gateway is held against",
        ("", *(f"{size} rows a call" for size in _SIZES)),
        [(c.name, *(number(bares[c.name, size]) for size in _SIZES)) for c in contenders],
    )
    rows, stages = [], []
    for contender, count, level in itertools.product(contenders, _INSTANCES, _LEVELS):
        found = series[f"{contender.name}_{count}", level]
        best = max((size for size in _SIZES if size <= level), key=lambda s, n=contender.name: np.median(bares[n, s]))
        over = [rate / bare for rate, bare in zip(found.rates, bares[contender.name, best], strict=True)]
        p50, p99 = np.percentile(found.latencies_ms, (50, 99))
        which = (contender.name, str(count), str(level))
        rows.append(
            (*which, number(found.rates), str(best), spread(over), f"{p50:.2f}", f"{p99:.2f}", number(found.busy, 2))
        )
        stages.append((*which, number(found.rows, 1), *(number(found.stages[stage], 3) for stage in _STAGES)))
    table(
        "gpu: through the gateway, one row a request, over the bare loop at its best batch up to the number in flight",
        "over bare >= 0.9",
        ("", "instances", "in flight", "requests/s", "bare batch", "over bare", "p50 ms", "p99 ms", "clients busy"),
        rows,
    )
    table(
        "gpu: the server's stages, milliseconds a request in the mean; assemble, infer and split are the whole batch's",
        "none",
        ("", "instances", "in flight", "rows/batch", *_STAGES),
        stages,
    )
