"""inference.GRPCInferenceService: one thin method per RPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf import message as protobuf

from gateway import VERSION, streaming, unary
from gateway.catalogue import State
from gateway.errors import InvalidRequest, ModelNotFound, ModelNotReady, NotAllowed, NotOffered, let_go
from gateway.logs import kind_of
from gateway.model import ServedModel
from gateway.observing import Observer
from gateway.repeats import Repeats
from gateway.repository import Repository
from gateway.request import Stages
from gateway.shared_memory import Regions
from gateway.shared_memory_rpcs import SharedMemoryRpcs
from gateway.state import ServerState
from gateway.status import CANCELLED, Status, status_of
from gateway.streaming import Caller, Stream, StreamLimits
from gateway.tracing import CallTrace, Metadata, parent_of
from gateway.transport import Answer, Method, OpenStream, Pending, Shortcut
from gateway.unary import UnaryCall
from tensorgate_client.wire import inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NAME = "tensorgate"
EXTENSIONS = (
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "binary_tensor_data",
    "trace",
    "logging",
)
"""The protocol's extensions that work here; ServerMetadata names them, and clients go by that."""

_SHARED_MEMORY = "system_shared_memory"
"""Another one, where it is allowed."""

_INFER_NAME = f"{SERVICE.full_name}/{unary.RPC}"

Handler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""A serialized request to the serialized response; raises errors."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What callers may do beyond asking.

    Attributes:
        loading: whether models may be loaded and unloaded by RPC.
        shared_memory: the regions in which tensors may lie; None if they may not.
    """

    loading: bool
    shared_memory: Regions | None


class Servicer:
    """Answers every RPC of the service that this server offers.

    Args:
        repository: the models.
        state: of the server.
        observer: told of each call.
        limits: of each stream.
        allowed: to callers.
    """

    def __init__(
        self, repository: Repository, state: ServerState, observer: Observer, limits: StreamLimits, allowed: Allowed
    ) -> None:
        self._repository = repository
        self._catalogue = repository.catalogue
        self._state = state
        self._observer = observer
        self._limits = limits
        self._allowed = allowed
        self._repeats = Repeats(self._find)

    def methods(self) -> dict[str, Method]:
        """The unary RPCs by path; messages pass as bytes, so that each decides what it parses."""
        answered: dict[str, Callable[[Any], Awaitable[protobuf.Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "TraceSetting": self._trace_setting,
            "LogSettings": self._log_settings,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
        }
        if self._allowed.shared_memory is not None:
            answered |= SharedMemoryRpcs(self._allowed.shared_memory).by_name()
        table: dict[str, Method] = {}
        for rpc in SERVICE.methods:
            name = rpc.name
            handler = _parsing(rpc, answered[name]) if name in answered else _refusing(name)
            if not rpc.client_streaming:
                table[f"/{SERVICE.full_name}/{name}"] = self._answering(rpc, handler)
        table[f"/{SERVICE.full_name}/{unary.RPC}"] = self._model_infer
        return table

    def shortcuts(self) -> dict[str, Shortcut]:
        """What a transport may ask first, by path."""
        return {f"/{SERVICE.full_name}/{unary.RPC}": self._answer_at_once}

    def streams(self) -> dict[str, OpenStream]:
        """The RPC that streams, by path."""
        return {f"/{SERVICE.full_name}/{streaming.RPC}": self._open_stream}

    def _open_stream(self, deadline: float, metadata: Metadata) -> Stream:
        return Stream(self._catalogue.find, self._state, self._observer, self._limits, Caller(deadline, metadata))

    def _answering(self, rpc: Any, handler: Handler) -> Method:
        """The handler, counted and observed, with its errors turned into statuses."""
        state, observer, name = self._state, self._observer, f"{SERVICE.full_name}/{rpc.name}"

        async def run(message: bytes, deadline: float, metadata: Metadata, answered: Answer) -> None:
            call = None
            if observer.on:
                call = CallTrace(name, Stages(), parent_of(metadata), deadline)
                call.name(*_addressee(rpc, message))
                observer.begin(call)
            state.enter()
            answer: bytes | Status = CANCELLED
            try:
                answer = await handler(message)
            except Exception as error:  # the table is total: nothing but a status reaches the caller
                answer = status_of(error, rpc.name, **(call.about() if call else {}))
                let_go(error)
            finally:
                state.leave()
                if call:
                    observer.end(call, answer)
            answered(answer)

        return lambda *call: asyncio.get_running_loop().create_task(run(*call))

    async def _server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._state.ready)

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            model = self._catalogue.find(request.name, request.version)
        except (ModelNotFound, ModelNotReady):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=model.runtime.available > 0)

    async def _server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        more = () if self._allowed.shared_memory is None else (_SHARED_MEMORY,)
        return pb.ServerMetadataResponse(name=NAME, version=VERSION, extensions=(*EXTENSIONS, *more))

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        model = self._catalogue.find(request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=self._catalogue.ready_versions(model.name),
            platform=model.runtime.platform,
            inputs=[tensor(name=r.name, datatype=r.datatype, shape=r.shape) for r in model.inputs.values()],
            outputs=[tensor(name=r.name, datatype=r.datatype, shape=r.shape) for r in model.outputs.values()],
        )

    async def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=self._catalogue.find(request.name, request.version).config)

    async def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        response = pb.ModelStatisticsResponse()
        for model in self._catalogue.ready(request.name, request.version):
            stats = response.model_stats.add(name=model.name, version=str(model.version))
            model.stats.copy().fill(stats)
            for (kind, number), held in model.runtime.memory.items():
                stats.memory_usage.add(type=kind, id=number, byte_size=held)
        return response

    def _model_infer(self, data: bytes, deadline: float, metadata: Metadata, answer: Answer) -> Pending | None:
        call = UnaryCall(self._state, self._observer, answer, self._repeats)
        if self._observer.on:
            call.trace = CallTrace(_INFER_NAME, call.stages, parent_of(metadata), deadline)
        return call.begin(data, deadline, self._find)

    def _answer_at_once(self, data: bytes) -> bytes | None:
        told_of = self._observer.on or unary.log.isEnabledFor(logging.DEBUG)
        return None if told_of else self._repeats.answer(data)

    def _find(self, name: str, version: str) -> ServedModel:
        self._check_draining()
        return self._catalogue.find(name, version)

    def _check_draining(self) -> None:
        if self._state.draining:
            raise ModelNotReady("the server is shutting down: try another one")

    async def _trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        if request.model_name and request.model_name not in self._catalogue.entries:
            raise ModelNotFound(request.model_name)
        wanted = {name: list(setting.value) for name, setting in request.settings.items()}
        response = pb.TraceSettingResponse()
        for name, values in self._observer.traces.settings.change(request.model_name, wanted).items():
            response.settings[name].value.extend(values)
        return response

    async def _log_settings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        chosen = {name: (value.WhichOneof("parameter_choice"), value) for name, value in request.settings.items()}
        log = self._observer.log
        log.change({name: getattr(value, kind) if kind else None for name, (kind, value) in chosen.items()})
        response = pb.LogSettingsResponse()
        for name, value in log.settings.items():
            setattr(response.settings[name], kind_of(value), value)
        return response

    async def _repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        rows = await self._repository.index()
        model = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[model(**row._asdict()) for row in rows if row.state == State.READY or not request.ready]
        )

    async def _repository_model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        self._check_explicit(request.repository_name)
        files = [key for key in request.parameters if key.startswith("file:")]
        if files:
            raise NotOffered(f"loading a model from uploaded files ({files[0]}): put them into the model repository")
        override = request.parameters["config"].string_param if "config" in request.parameters else ""
        await self._repository.load(request.model_name, override)
        return pb.RepositoryModelLoadResponse()

    async def _repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        self._check_explicit(request.repository_name)
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _check_explicit(self, repository: str) -> None:
        _check_repository(repository)
        if not self._allowed.loading:
            raise NotAllowed("loading and unloading by RPC is off: start the server with --model-control explicit")


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest(f"unknown repository '{name}': this server has one, leave repository_name empty")


def _addressee(rpc: Any, message: bytes) -> tuple[str, str]:
    """Which model and version a call other than an inference is about."""
    try:
        request = getattr(pb, rpc.input_type.name).FromString(message)
    except protobuf.DecodeError:
        return "", ""
    if rpc.name.startswith("RepositoryModel"):
        return request.model_name, ""
    return (request.name, request.version) if rpc.name.startswith("Model") else ("", "")


def _parsing(rpc: Any, method: Callable[[Any], Awaitable[protobuf.Message]]) -> Handler:
    """`method` between bytes and bytes."""
    request_type = getattr(pb, rpc.input_type.name)

    async def handle(message: bytes) -> bytes:
        return (await method(request_type.FromString(message))).SerializeToString()

    return handle


def _refusing(rpc: str) -> Handler:
    how = " without --allow-shared-memory" if rpc.startswith("SystemSharedMemory") else ""

    async def refuse(_: bytes) -> bytes:
        raise NotOffered(f"this server does not offer {rpc}{how}")

    return refuse
