"""Models that say themselves which numbers of rows they execute: what clients and owners see of it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from support.calls import index, infer, refusal
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.tflite import doubled, tflite_model

from tensorgate_client.wire import inference_pb2 as pb

SIZES = 'parameters { key: "batch_sizes" value { string_value: "%s" } }\n'
BY_FOURS = tflite_model(doubled(4, "b4"), doubled(16, "b16"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A file with signatures for 4 and 16 rows under several configurations, and one for exactly 8."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    for name, config in {
        "unconfigured": "",
        "chosen": "max_batch_size: 4\n" + SIZES % "4",
        "unknown_size": SIZES % "4 8",
        "above": "max_batch_size: 17\n",
        "unbatched": "max_batch_size: 0\n",
        "on_gpu": "instance_group { kind: KIND_GPU }\n",
    }.items():
        repository.add(name, {"model.tflite": BY_FOURS}, config)
    repository.add("eight", {"model.tflite": tflite_model(doubled(8))}, "max_batch_size: 8\n" + SIZES % "8")
    with serving(repository.root) as gateway:
        yield gateway


def _config(gateway: Gateway, model: str) -> pb.ModelConfigResponse:
    return gateway.stub.ModelConfig(pb.ModelConfigRequest(name=model)).config


def test_batches_are_filled_up_to_what_the_model_executes(gateway: Gateway) -> None:
    """A client that sends any number of rows up to the largest size is answered with as many, whatever is executed."""
    for rows in (1, 3, 4, 5, 15, 16):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(infer(gateway, "unconfigured", x, "x"), x * 2, strict=True)
    code, details = refusal(lambda: infer(gateway, "unconfigured", np.ones((17, 4), np.float32), "x"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "17" in details


def test_completed_configuration(gateway: Gateway) -> None:
    """The configuration that a client reads has the largest size as the limit, and the sizes that batches will have."""
    config = _config(gateway, "unconfigured")
    assert config.max_batch_size == 16
    assert config.parameters["batch_sizes"].string_value == "4 16"
    chosen = _config(gateway, "chosen")
    assert (chosen.max_batch_size, chosen.parameters["batch_sizes"].string_value) == (4, "4")


def test_model_for_one_size(gateway: Gateway) -> None:
    """A file for exactly eight rows serves single ones once config.pbtxt says so."""
    np.testing.assert_array_equal(infer(gateway, "eight", np.ones((1, 4), np.float32), "x"), [[2] * 4])


def test_model_that_is_said_not_to_batch(gateway: Gateway) -> None:
    """With max_batch_size: 0 a client sends exactly the sizes there are, and others are the client's mistake."""
    assert infer(gateway, "unbatched", np.ones((4, 4), np.float32), "x").shape == (4, 4)
    assert refusal(lambda: infer(gateway, "unbatched", np.ones((3, 4), np.float32), "x")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "model 'unbatched': the model executes 4, 16 rows at a time, got 3",
    )


def test_sizes_that_the_model_lacks(gateway: Gateway) -> None:
    """The owner who asks for sizes that the file does not have, or for a GPU, reads what there is."""
    reasons = {name: reason for name, (state, reason) in index(gateway).items() if state != "READY"}
    assert reasons == {
        "unknown_size/1": "config.pbtxt: parameter 'batch_sizes': the model executes 4 16 rows: choose of these",
        "above/1": "config.pbtxt: max_batch_size is 17, but the model was built for at most 16",
        "on_gpu/1": "instance_group KIND_GPU: backend 'litert' uses no GPU: say KIND_CPU",
    }
