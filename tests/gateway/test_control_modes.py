"""Control modes none, poll and explicit: which models serve, and when."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from support.calls import ECHO, ONES, Gate, eventually, index, infer, load, ready, refusal, request, unload
from support.models import RepositoryBuilder, onnx_identity
from support.server import Gateway, launch, serving

from tensorgate_client.wire import inference_pb2 as pb
from tensorgate_client.wire import inference_pb2_grpc

UNKNOWN = "Request for unknown model: 'm' is not found"


def scaling(factor: object) -> dict[str, str]:
    """A model that multiplies by `factor`."""
    return {
        "model.py": f"""
class Model:
    inputs = [("x", "float32", (-1, 4))]
    outputs = [("y", "float32", (-1, 4))]

    def execute(self, inputs):
        return {{"y": inputs["x"] * {factor}}}
"""
    }


@contextmanager
def hammered(gateway: Gateway, model: str) -> Iterator[set[float]]:
    """Clients that call `model` without pause; any failed request fails the test. The answers so far."""
    answers: set[float] = set()
    stop = threading.Event()

    def client() -> int:
        count = 0
        while not stop.is_set():
            answers.add(float(infer(gateway, model, name="x")[0, 0]))
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            yield answers
        finally:
            stop.set()
        assert all(done.result() for done in clients)


def test_models_cannot_be_loaded_by_rpc_unless_allowed(repository):
    """In the default mode loading and unloading by RPC is refused, with the flag that would allow it."""
    repository.add("m", config=ECHO)
    with serving(repository.root) as gateway:
        for change in (load, unload):
            code, details = refusal(lambda change=change: change(gateway, "m"))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "--model-control explicit" in details
        assert infer(gateway, "m").shape == (1, 4)


class TestExplicit:
    """Models are loaded and unloaded by RPC."""

    @pytest.fixture(scope="class")
    @classmethod
    def builder(cls, tmp_path_factory: pytest.TempPathFactory) -> RepositoryBuilder:
        """The repository that the tests of this class change."""
        return RepositoryBuilder(tmp_path_factory.mktemp("explicit") / "models")

    @pytest.fixture(scope="class")
    @classmethod
    def gateway(cls, builder: RepositoryBuilder) -> Iterator[Gateway]:
        """A server that was told to load one model, one that is not there and one that cannot be."""
        builder.add("started", config=ECHO)
        builder.add("left", config=ECHO)
        with serving(
            builder.root, "--model-control", "explicit", "--load-model", "started,nosuch", "--load-model", ".."
        ) as gateway:
            yield gateway

    def test_only_named_models_are_loaded(self, gateway):
        """--load-model chooses what serves from the start; a name without a folder is logged and stops nothing."""
        assert infer(gateway, "started").shape == (1, 4)
        assert index(gateway)["left/"] == ("", "")
        assert refusal(lambda: infer(gateway, "left"))[0] is grpc.StatusCode.NOT_FOUND
        assert "model nosuch: no such folder in the model repository" in gateway.server.log
        assert "model name '..': expected the name of a folder" in gateway.server.log

    def test_load_and_unload(self, gateway, builder):
        """A loaded model answers; an unloaded one is unknown, in the words that existing clients look for."""
        builder.add("m", scaling(1))
        assert not ready(gateway, "m")
        load(gateway, "m")
        assert ready(gateway, "m")
        assert infer(gateway, "m", name="x").tolist() == ONES.tolist()
        unload(gateway, "m")
        assert not ready(gateway, "m")
        assert refusal(lambda: infer(gateway, "m", name="x")) == (grpc.StatusCode.NOT_FOUND, UNKNOWN)
        assert index(gateway)["m/1"] == ("UNAVAILABLE", "unloaded")
        load(gateway, "m")
        assert index(gateway)["m/1"] == ("READY", "")

    @pytest.mark.parametrize("change", [load, unload])
    def test_unknown_model(self, gateway, change):
        """Loading or unloading a model that is not there says so."""
        code, details = refusal(lambda: change(gateway, "phantom"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert details == "Request for unknown model: 'phantom' is not found"
        assert "phantom/" not in index(gateway)

    def test_failed_load_can_be_unloaded_and_mended(self, gateway, builder):
        """A model that failed to load gives its reason, can be unloaded, and loads once mended."""
        folder = builder.add("broken", {"model.onnx": onnx_identity()}, config="nonsense")
        code, details = refusal(lambda: load(gateway, "broken"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert details.startswith("failed to load 'broken': config.pbtxt: ")
        assert index(gateway)["broken/"][0] == "UNAVAILABLE"
        unload(gateway, "broken")
        assert index(gateway)["broken/"] == ("", "")
        assert refusal(lambda: infer(gateway, "broken"))[0] is grpc.StatusCode.NOT_FOUND
        (folder / "config.pbtxt").unlink()
        load(gateway, "broken")
        assert infer(gateway, "broken", name="x").shape == (1, 4)

    def test_reload_drops_no_request(self, gateway, builder):
        """While clients call without pause, every reload takes over without a single failed request."""
        builder.add("busy", scaling(0), config="instance_group { count: 2 }")
        load(gateway, "busy")
        with hammered(gateway, "busy") as answers:
            for factor in range(1, 16):
                builder.add("busy", scaling(factor))
                load(gateway, "busy")
                assert infer(gateway, "busy", name="x")[0, 0] == factor
        assert answers >= {1, 15}

    def test_unchanged_model_is_not_loaded_again(self, gateway, builder, tmp_path):
        """Loading a model whose files did not change costs nothing; touching one loads it anew."""
        gate = Gate(tmp_path / "gate", stage="none")
        folder = builder.add("once", gate.files, gate.config)
        load(gateway, "once")
        load(gateway, "once")
        assert gate.begun("load") == ["1"]
        os.utime(folder / "1" / "model.py", (1, 1))
        load(gateway, "once")
        assert gate.begun("load") == ["1", "1"]
        eventually(lambda: gate.closed)

    def test_failed_reload_keeps_the_former_serving(self, gateway, builder):
        """A change that does not load leaves what served before in service, with the reason beside it."""
        builder.add("kept", scaling(2))
        load(gateway, "kept")
        builder.add("kept", scaling("!"))
        code, details = refusal(lambda: load(gateway, "kept"))
        assert (code, "SyntaxError" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        assert infer(gateway, "kept", name="x")[0, 0] == 2
        state, reason = index(gateway)["kept/1"]
        assert state == "READY"
        assert reason.startswith(
            "reload failed, the former one serves on: model.py line 7 does not import: SyntaxError"
        )
        builder.add("kept", scaling(3))
        load(gateway, "kept")
        assert index(gateway)["kept/1"] == ("READY", "")
        assert infer(gateway, "kept", name="x")[0, 0] == 3

    def test_vanished_folder_keeps_the_former_serving(self, gateway, builder):
        """Loading a model again whose folder is gone fails, and takes nothing out of service."""
        folder = builder.add("vanished", scaling(2))
        load(gateway, "vanished")
        shutil.rmtree(folder)
        assert refusal(lambda: load(gateway, "vanished"))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert infer(gateway, "vanished", name="x")[0, 0] == 2
        unload(gateway, "vanished")
        assert refusal(lambda: load(gateway, "vanished"))[0] is grpc.StatusCode.NOT_FOUND

    def test_config_may_come_with_the_request(self, gateway, builder):
        """The `config` parameter takes the place of config.pbtxt until the next load without it."""
        builder.add("overridden", {"model.onnx": onnx_identity()}, config="max_batch_size: 4")
        load(gateway, "overridden", {"max_batch_size": 2, "instance_group": [{"count": 3}]})
        config = gateway.stub.ModelConfig(pb.ModelConfigRequest(name="overridden")).config
        assert (config.max_batch_size, config.instance_group[0].count) == (2, 3)
        load(gateway, "overridden")
        assert gateway.stub.ModelConfig(pb.ModelConfigRequest(name="overridden")).config.max_batch_size == 4

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ("{", "config parameter: Expecting property name"),
            ("[]", "config parameter: expected a JSON object"),
            ("7", "config parameter: expected a JSON object"),
            ({"max_batchsize": 2}, "config parameter: Message type"),
            ({"max_batch_size": "many"}, "config parameter: "),
            ({"max_batch_size": -2}, "config parameter: max_batch_size is -2"),
        ],
    )
    def test_bad_config_in_a_request(self, gateway, builder, config, reason):
        """A wrong `config` parameter is the caller's fault: the model serves on, and nothing is said against it."""
        builder.add("steady", {"model.onnx": onnx_identity()})
        load(gateway, "steady")
        code, details = refusal(lambda: load(gateway, "steady", config))
        assert (code, reason in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
        assert infer(gateway, "steady", name="x").shape == (1, 4)
        assert index(gateway)["steady/1"] == ("READY", "")

    def test_config_in_a_request_that_does_not_fit_the_model(self, gateway, builder):
        """A `config` parameter that contradicts the model is refused with the reason, and the model serves on."""
        builder.add("firm", {"model.onnx": onnx_identity()})
        load(gateway, "firm")
        config = {"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}]}
        code, details = refusal(lambda: load(gateway, "firm", config))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "config parameter: the model has no" in details
        assert infer(gateway, "firm", name="x").shape == (1, 4)

    def test_impatient_caller_does_not_stop_a_load(self, gateway, builder, tmp_path):
        """A client whose deadline passes during a long load finds the model ready later, not stuck half-way."""
        gate = Gate(tmp_path / "gate", stage="load")
        builder.add("long", gate.files, gate.config)
        call = gateway.stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="long"), timeout=60)
        eventually(lambda: gate.begun("load"))
        call.cancel()
        code, details = refusal(lambda: infer(gateway, "long", np.ones(1, np.float32), "x"))
        assert (code, "is loading" in details) == (grpc.StatusCode.UNAVAILABLE, True)
        gate.open()
        eventually(lambda: ready(gateway, "long"))
        assert gate.begun("load") == ["1"]

    def test_unloading_lets_requests_finish(self, gateway, builder, tmp_path):
        """A request under way when its model is unloaded is answered; one after it is not."""
        gate = Gate(tmp_path / "gate")
        builder.add("leaving", gate.files, gate.config)
        load(gateway, "leaving")
        x = np.ones(1, np.float32)
        calls = [gateway.stub.ModelInfer.future(request("leaving", {"x": x}), timeout=60) for _ in range(3)]
        eventually(gate.begun)
        unloading = gateway.stub.RepositoryModelUnload.future(pb.RepositoryModelUnloadRequest(model_name="leaving"))
        eventually(lambda: not ready(gateway, "leaving"))
        assert refusal(lambda: infer(gateway, "leaving", x, "x"))[0] is grpc.StatusCode.NOT_FOUND
        assert not gate.closed
        gate.open()
        assert all(call.result().raw_output_contents[0] == x.tobytes() for call in calls)
        unloading.result()
        assert gate.closed


def test_star_loads_everything(repository):
    """In explicit mode --load-model '*' starts with every model of the folder."""
    repository.add("a", config=ECHO)
    repository.add("b", config=ECHO)
    with serving(repository.root, "--model-control", "explicit", "--load-model", "*") as gateway:
        assert set(index(gateway, ready=True)) == {"a/1", "b/1"}


def test_server_is_live_before_it_is_ready(repository, tmp_path):
    """While a slow model loads at start the server is live, not ready, and tells early callers to wait."""
    gate = Gate(tmp_path / "gate", stage="load")
    repository.add("slow", gate.files, gate.config)
    with launch("--model-repository", repository.root, "--port", "0") as server:
        port = server.wait_for_log(r"listening on 127.0.0.1:(\d+)").group(1)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            gateway = Gateway(server, "", channel)
            assert stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=True, timeout=60).live
            assert not stub.ServerReady(pb.ServerReadyRequest()).ready
            code, details = refusal(lambda: infer(gateway, "slow", np.ones(1, np.float32), "x"))
            assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "model 'slow' is loading: try again shortly")
            eventually(lambda: gate.begun("load"))
            assert index(gateway)["slow/1"] == ("LOADING", "")
            gate.open()
            server.wait_until_ready()
            assert stub.ServerReady(pb.ServerReadyRequest()).ready
            assert infer(gateway, "slow", np.ones(1, np.float32), "x").tolist() == [1]


def test_hanging_loads_do_not_stop_the_other_models(repository: RepositoryBuilder, tmp_path) -> None:
    """Several models that never finish loading are named in the log, and the others serve all the same."""
    gate = Gate(tmp_path / "gate", stage="load")
    for number in range(5):
        repository.add(f"a_hanging{number}", gate.files, gate.config)
    repository.add("good", config=ECHO)
    with launch("--model-repository", repository.root, "--port", "0") as server:
        server.wait_for_log("model a_hanging0: still loading after 10 s; others no longer wait for it")
        server.wait_for_log("model good version 1 ready")
        gate.open()
        server.wait_for_log("ready: gRPC on .*, 6 models ready")
