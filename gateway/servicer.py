"""inference.GRPCInferenceService: one thin method per RPC."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeAlias

from google.protobuf import message as protobuf

from gateway import streaming
from gateway.catalogue import State
from gateway.errors import InvalidRequest, ModelNotFound, ModelNotReady, NotAllowed, NotOffered, let_go
from gateway.logs import ServerLog, about, kind_of
from gateway.message import UNREADABLE, read
from gateway.repository import Repository
from gateway.request import Stages
from gateway.state import ServerState
from gateway.status import Status, code_name, status_of
from gateway.streaming import Stream, StreamLimits
from gateway.transport import Method, OpenStream
from tensorgate_client.wire import inference_pb2 as pb

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NAME = "tensorgate"
EXTENSIONS = (
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "logging",
    "binary_tensor_data",
)
"""The protocol's extensions that work here; ServerMetadata names them, and clients go by that."""

Handler: TypeAlias = Callable[[bytes, float], Awaitable[bytes | Status]]
"""As `Method`, but it may raise errors."""


class Servicer:
    """Answers every RPC of the service that this server offers.

    Args:
        repository: the models.
        state: of the server.
        limits: of each stream.
        log: what LogSettings is about.
        explicit: whether models may be loaded and unloaded by RPC.
    """

    def __init__(
        self, repository: Repository, state: ServerState, limits: StreamLimits, log: ServerLog, *, explicit: bool
    ) -> None:
        self._repository = repository
        self._catalogue = repository.catalogue
        self._state = state
        self._limits = limits
        self._log = log
        self._explicit = explicit

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
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
            "LogSettings": self._log_settings,
        }
        table: dict[str, Method] = {}
        for rpc in SERVICE.methods:
            name = rpc.name
            if name == "ModelInfer":
                handler: Handler = self._model_infer
            elif name in answered:
                handler = _parsing(rpc, answered[name])
            else:
                handler = _refusing(name)
            if not rpc.client_streaming:
                method = self._answering(name, handler)
                if self._state.access and name != "ModelInfer":  # which writes its own line: it knows more
                    method = self._noted(rpc, method)
                table[f"/{SERVICE.full_name}/{name}"] = method
        return table

    def streams(self) -> dict[str, OpenStream]:
        """The RPC that streams, by path."""
        return {f"/{SERVICE.full_name}/{streaming.RPC}": self._open_stream}

    def _open_stream(self, deadline: float, metadata: Mapping[str, object]) -> Stream:
        return Stream(self._catalogue.find, self._state, self._limits, deadline, metadata)

    def _answering(self, rpc: str, handler: Handler) -> Method:
        """The handler, counted, with its errors turned into statuses."""
        state = self._state

        async def answer(message: bytes, deadline: float) -> bytes | Status:
            state.enter()
            try:
                return await handler(message, deadline)
            except Exception as error:  # the table is total: nothing but a status reaches the caller
                status = status_of(error, rpc)
                let_go(error)
                return status
            finally:
                state.leave()

        return answer

    def _noted(self, rpc: Any, method: Method) -> Method:
        """The method, with a line in the access log after each call."""

        async def noted(message: bytes, deadline: float) -> bytes | Status:
            began, answer = time.perf_counter_ns(), None
            try:
                answer = await method(message, deadline)
                return answer
            finally:
                self._note(rpc.name, answer, deadline, began, **_addressee(rpc, message))

        return noted

    def _note(
        self, rpc: str, answer: bytes | Status | None, deadline: float, received_ns: int, **fields: object
    ) -> None:
        if self._state.access:
            code = code_name(answer, deadline, self._limits.max_message_bytes)
            self._state.access.ended(rpc, code, received_ns, **fields)

    async def _server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._state.ready)

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            self._catalogue.find(request.name, request.version)
        except (ModelNotFound, ModelNotReady):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=version(NAME), extensions=EXTENSIONS)

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
            model.stats.fill(stats)
            for (kind, number), held in model.runtime.memory.items():
                stats.memory_usage.add(type=kind, id=number, byte_size=held)
        return response

    async def _model_infer(self, data: bytes, deadline: float) -> bytes | Status:
        stages, message, model = Stages(), UNREADABLE, None
        answer: bytes | Status | None = None
        try:
            self._check_serving()
            message = read(data)
            model = self._catalogue.find(message.name, message.version)
            answer = await model.infer(message, stages, deadline)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s", stages, extra=about(**message.about(model.version), rpc="ModelInfer"))
        except Exception as error:  # as in `_answering`, but here it is known whose request it was
            answer = status_of(error, "ModelInfer", **message.about(model.version if model else None))
            let_go(error)
        finally:
            if self._state.access:
                fields = message.about(model.version if model else None)
                rows = model.rows(message) if model else None
                self._note("ModelInfer", answer, deadline, stages.received, **fields, rows=rows)
        return answer

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

    def _check_serving(self) -> None:
        if self._state.draining:
            raise ModelNotReady("the server is shutting down: try another one")

    async def _log_settings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        chosen = {name: (value.WhichOneof("parameter_choice"), value) for name, value in request.settings.items()}
        self._log.change({name: getattr(value, kind) if kind else None for name, (kind, value) in chosen.items()})
        response = pb.LogSettingsResponse()
        for name, value in self._log.settings.items():
            setattr(response.settings[name], kind_of(value), value)
        return response

    def _check_explicit(self, repository: str) -> None:
        _check_repository(repository)
        if not self._explicit:
            raise NotAllowed("loading and unloading by RPC is off: start the server with --model-control explicit")


def _addressee(rpc: Any, message: bytes) -> dict[str, str]:
    """Which model a call other than an inference is about, for the log."""
    try:
        request = getattr(pb, rpc.input_type.name).FromString(message)
    except protobuf.DecodeError:
        return {}
    if rpc.name.startswith("RepositoryModel"):
        return {"model": request.model_name}
    return {"model": request.name, "version": request.version} if rpc.name.startswith("Model") else {}


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest(f"unknown repository '{name}': this server has one, leave repository_name empty")


def _parsing(rpc: Any, method: Callable[[Any], Awaitable[protobuf.Message]]) -> Handler:
    """`method` between bytes and bytes."""
    request_type = getattr(pb, rpc.input_type.name)

    async def handle(message: bytes, _: float) -> bytes:
        return (await method(request_type.FromString(message))).SerializeToString()

    return handle


def _refusing(rpc: str) -> Handler:
    async def refuse(_: bytes, __: float) -> bytes:
        raise NotOffered(f"this server does not offer {rpc}")

    return refuse
