"""Assembles the gateway, and its life: listen, load, ready, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from contextlib import suppress
from platform import python_version

from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from backends.registry import Registry
from gateway import VERSION, polling
from gateway.cache import ResponseCache
from gateway.engine import Engine, Threads
from gateway.grpcio import GrpcioTransport
from gateway.loader import Loader
from gateway.logs import AccessLog, ServerLog
from gateway.metrics import MetricsPage, ModelReading, Reading
from gateway.metrics_http import MetricsEndpoint
from gateway.model import ServedModel
from gateway.native import NativeTransport
from gateway.observing import Observer
from gateway.repository import Repository
from gateway.servicer import SERVICE, Allowed, Servicer
from gateway.services import Services
from gateway.settings import Settings
from gateway.shared_memory import Regions
from gateway.source import Source, open_source
from gateway.state import ServerState
from gateway.streaming import StreamLimits
from gateway.traces import Traces
from gateway.transport import CannotListen, Limits, Transport
from tensorgate_client.wire import inference_pb2, model_config_pb2

_log = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_FLUSH_S = 0.5  # for answers on their way out; what is left then are idle connections and endless streams
_CLOSE_S = 1.0  # for connections to close and models to free what they hold, whatever the grace left of it


class Server:
    """A gateway over one model repository.

    Args:
        settings: what it was told.
        source: of the models.
        log: clients may change what it takes.
        engine: where models' instances run.
    """

    def __init__(self, settings: Settings, source: Source, log: ServerLog, engine: Engine) -> None:
        self._settings = settings
        self._source = source
        self._traces = Traces(settings, VERSION)
        access = AccessLog() if settings.access_log else None
        self._limit = settings.max_message_mb * 1024 * 1024
        self._observer = Observer(self._traces, log, access, self._limit)
        self._state = ServerState()
        self._health = health.aio.HealthServicer()
        self._cache = ResponseCache(settings.cache_size_mb * 1024 * 1024)
        self._regions = Regions(self._limit) if settings.allow_shared_memory else None
        loader = Loader(engine, settings.default_max_batch_size, self._cache, self._regions)
        self._repository = Repository(source, loader, self._note_model)
        self._wanted: list[str] = []
        self._polling: list[asyncio.Task[None]] = []
        self._transport: Transport | None = None
        self._metrics: MetricsEndpoint | None = None

    def __repr__(self) -> str:
        return f"<Server {self._settings.host} in_flight={self._state.in_flight} {self._repository!r}>"

    def summary(self) -> str:
        """What is being served, in a line."""
        return self._repository.catalogue.summary()

    async def start(self) -> int:
        """Listen, not ready yet; the port.

        Raises:
            CannotListen: the address cannot be had.
        """
        settings = self._settings
        explicit = settings.model_control == "explicit"
        self._wanted = await self._repository.announce(settings.load_model if explicit else ["*"])
        transport = await self._assemble()
        try:
            port = transport.bind(_address(settings, settings.port))
        except CannotListen as error:
            raise CannotListen(
                f"cannot listen on {_address(settings, settings.port)}: the port is taken or the address is not this "
                "machine's; --port and --host choose others"
            ) from error
        await self._start_metrics()
        await transport.start()
        self._transport = transport
        return port

    async def _start_metrics(self) -> None:
        settings = self._settings
        if settings.metrics_port is None:
            return
        transport = "native" if settings.native else "grpcio"
        page = MetricsPage({"version": VERSION, "transport": transport, "python": python_version()})
        address = _address(settings, settings.metrics_port)
        try:
            self._metrics = MetricsEndpoint(settings.host, settings.metrics_port, self._reading, page)
        except OSError as error:
            raise CannotListen(
                f"cannot serve metrics on {address}: the port is taken or the address is not this machine's; "
                "--metrics-port chooses another, '--metrics-port off' does without"
            ) from error
        await self._metrics.start()
        _log.info("metrics on http://%s/metrics", _address(settings, self._metrics.port))

    def _reading(self) -> Reading:
        """All counters at this moment."""
        ready = self._repository.catalogue.ready("", "")
        return Reading(
            [_model_reading(model) for model in ready],
            in_flight=self._state.in_flight,
            streams=self._state.streams,
            cache_entries=self._cache.entries,
            cache_bytes=self._cache.used_bytes,
            cache_max_bytes=self._cache.max_bytes,
            cache_evictions=self._cache.evictions,
            spans_dropped=self._traces.dropped,
            servers={(model.name, str(model.version)): found for model in ready if (found := model.runtime.servers)},
        )

    async def _assemble(self) -> Transport:
        limit = self._limit
        allowed = Allowed(loading=self._settings.model_control == "explicit", shared_memory=self._regions)
        await self._note_server(ready=False)
        limits = StreamLimits(self._settings.stream_window, limit)
        servicer = Servicer(self._repository, self._state, self._observer, limits, allowed)
        methods, streams = servicer.methods(), servicer.streams()
        services = Services()
        self._add_services(services)
        kind = NativeTransport if self._settings.native else GrpcioTransport
        held_to = Limits(limit, self._settings.max_connection_age_s)
        transport = kind(services, methods, streams, servicer.shortcuts(), held_to)
        transport.tls = self._settings.tls
        return transport

    def _add_services(self, server: Services) -> None:
        """Add health and reflection."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflecting = reflection.aio.ReflectionServicer(names, pool=_reflected())
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, server)

    async def load(self) -> None:
        """Load the models that the control mode asks for, then turn readiness on."""
        settings = self._settings
        await self._repository.load_each(self._wanted)
        if settings.model_control == "poll":
            following = polling.follow(self._repository, self._source, settings.poll_interval_s)
            self._polling.append(asyncio.create_task(following))
        if settings.model_control != "explicit":
            self._polling.append(asyncio.create_task(polling.retry(self._repository)))
        self._state.ready = True
        await self._note_server(ready=True)

    async def drain(self) -> bool:
        """Turn readiness off, let requests under way finish, stop; whether all finished within the grace."""
        assert self._transport is not None  # noqa: S101
        grace = self._settings.shutdown_grace_s
        now = asyncio.get_running_loop().time
        deadline = now() + grace
        await self._transport.turn_away()  # first: until clients know, they are served
        drained = asyncio.create_task(self._state.drained())  # refuses what comes from now on
        for task in self._polling:
            task.cancel()
        self._repository.stop()
        with suppress(TimeoutError):  # a watcher that reads nothing must not hold up the rest
            await asyncio.wait_for(self._health.enter_graceful_shutdown(), _FLUSH_S)
        finished = await _within(drained, deadline)
        if not finished:
            _log.warning("requests cut off after %g s of grace: %d", grace, self._state.in_flight)
        sent = finished and await _within(self._transport.sent(), max(deadline, now() + _FLUSH_S))
        # A connection stays until what was sent has left: a peer that reads nothing must not hold up the exit.
        stopping = self._transport.stop(_FLUSH_S if sent else None)
        if not (await _within(stopping, max(deadline, now() + _CLOSE_S)) and sent) and finished:
            finished = False
            _log.warning("answers cut off that have not left after %g s of grace", grace)
        await asyncio.to_thread(self._traces.close, _CLOSE_S)
        if finished and not await _within(self._repository.aclose(), max(deadline, now() + _CLOSE_S)):
            finished = False
            _log.warning("models still busy after %g s of grace, so not closed: %r", grace, self._repository)
        if self._metrics:
            self._metrics.close()
        return finished

    async def _note_server(self, *, ready: bool) -> None:
        for name in ("", SERVICE.full_name):
            await self._health.set(name, _SERVING if ready else _NOT_SERVING)

    async def _note_model(self, name: str, ready: bool) -> None:  # noqa: FBT001  # a listener's plain signature
        await self._health.set(name, _SERVING if ready else _NOT_SERVING)


async def serve(settings: Settings, log: ServerLog) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. A second signal ends the process at once.

    Raises:
        CannotListen: the address cannot be had.
        EngineUnavailable: nor the engine.
        InvalidSettings: what reads the model repository is not installed, or has nowhere to keep files.
        OSError: the model repository cannot be looked through.
    """
    source = open_source(settings)
    await source.names()  # a storage may be slow to answer: until then, a signal ends the process
    engine = await asyncio.to_thread(_engine, settings)
    server = Server(settings, source, log, engine)
    stop = asyncio.Event()
    _on_signals(stop)
    port = await server.start()
    address = _address(settings, port)
    carried = ("native" if settings.native else "grpcio") + (", TLS" if settings.tls else "")
    _log.info("listening on %s (transport %s), loading models", address, carried)
    if hint := await source.hint():
        _log.warning("%s", hint)
    loading = asyncio.create_task(server.load())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        loading.result()
        _log.info("ready: gRPC on %s, %s", address, server.summary())
        await stopping
    loading.cancel()
    _log.info("stopping: letting requests in flight finish (again to stop now)")
    finished = await server.drain()
    await _within(asyncio.to_thread(engine.close), asyncio.get_running_loop().time() + _CLOSE_S)
    _log.info("stopped")
    return 0 if finished else 1


def _model_reading(model: ServedModel) -> ModelReading:
    runtime = model.runtime
    counts = len(runtime.instances), runtime.available
    return ModelReading(model.name, str(model.version), model.stats.copy(), model.waiting, *counts)


def _engine(settings: Settings) -> Engine:
    if settings.engine == "threads":
        return Threads(Registry())
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # or a call after the end would start a cluster
    from gateway.cluster import engine  # noqa: PLC0415  # an extra

    return engine.connect(settings.ray_address)


async def _within(work: Awaitable[None], deadline: float) -> bool:
    """Whether `work` is done by then; what needs no waiting always is."""
    try:
        async with asyncio.timeout_at(deadline):
            await work
    except TimeoutError:
        return False
    return True


def _address(settings: Settings, port: int) -> str:
    return f"[{settings.host}]:{port}" if ":" in settings.host else f"{settings.host}:{port}"  # IPv6 needs brackets


def _on_signals(stop: asyncio.Event) -> None:
    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


def _reflected() -> DescriptorPool:
    """A pool of everything served: ours live in a pool of their own, health and reflection in the default one."""
    pool = DescriptorPool()
    for module in (model_config_pb2, inference_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
