"""What probes and tools see: grpc.health.v1 and server reflection."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.calls import ECHO, Gate, eventually, load, refusal, unload
from support.models import RepositoryBuilder
from support.server import Gateway, launch, serving

from tensorgate_client.wire import inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
Status = health_pb2.HealthCheckResponse


def health(channel: grpc.Channel, name: str, **options: object) -> int:
    """What Check says."""
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60, **options).status


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server in explicit mode with one good model loaded and one bad one tried."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("health") / "models")
    for name in ("started", "m", "watched"):
        builder.add(name, config=ECHO)
    builder.add("bad", config="nonsense")
    with serving(builder.root, "--model-control", "explicit", "--load-model", "started,bad") as running:
        yield running


@pytest.mark.parametrize("name", ["", SERVICE, "started"])
def test_what_serves_is_serving(gateway, name):
    """The server as a whole, its service and each loaded model report SERVING."""
    assert health(gateway.channel, name) == Status.SERVING


def test_bad_model_is_not_serving(gateway):
    """A model that failed to load reports NOT_SERVING; it does not pull the server down."""
    assert health(gateway.channel, "bad") == Status.NOT_SERVING
    assert health(gateway.channel, "") == Status.SERVING


def test_unknown_name_is_not_found(gateway):
    """A name that is neither service nor model is NOT_FOUND."""
    assert refusal(lambda: health(gateway.channel, "phantom"))[0] is grpc.StatusCode.NOT_FOUND


def test_health_follows_loading_and_unloading(gateway):
    """A model's health changes with RepositoryModelLoad and RepositoryModelUnload."""
    load(gateway, "m")
    assert health(gateway.channel, "m") == Status.SERVING
    unload(gateway, "m")
    assert health(gateway.channel, "m") == Status.NOT_SERVING
    load(gateway, "m")
    assert health(gateway.channel, "m") == Status.SERVING


def test_watcher_sees_every_change(gateway):
    """A client that watches a model is told when it comes and when it goes."""
    stub = health_pb2_grpc.HealthStub(gateway.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="watched"), timeout=60)
    assert next(watch).status == Status.SERVICE_UNKNOWN
    load(gateway, "watched")
    assert next(watch).status == Status.SERVING
    unload(gateway, "watched")
    assert next(watch).status == Status.NOT_SERVING
    watch.cancel()


def test_nothing_is_serving_before_the_models_are_loaded(repository, tmp_path):
    """A probe during start-up sees NOT_SERVING for the server and for the model that loads, then SERVING."""
    gate = Gate(tmp_path / "gate", stage="load")
    repository.add("slow", gate.files, gate.config)
    with launch("--model-repository", repository.root, "--port", "0") as server:
        port = server.wait_for_log(r"listening on 127.0.0.1:(\d+)").group(1)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name in ("", SERVICE, "slow"):
                assert health(channel, name, wait_for_ready=True) == Status.NOT_SERVING
            gate.open()
            eventually(lambda: health(channel, "") == Status.SERVING)
            assert health(channel, "slow") == Status.SERVING


def test_reflection_lists_and_describes_the_services(gateway):
    """Grpcurl and its like find the services and every message of the inference service without a proto file."""
    database = ProtoReflectionDescriptorDatabase(gateway.channel)
    assert {*database.get_services()} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    ours = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert [method.name for method in service.methods] == [method.name for method in ours.methods]
    config = service.methods_by_name["ModelConfig"].output_type.fields_by_name["config"].message_type
    assert config.full_name == "inference.ModelConfig"
    assert "max_batch_size" in config.fields_by_name
