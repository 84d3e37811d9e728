"""tritonclient.grpc loads and unloads models of a gateway under explicit control."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.models import RepositoryBuilder
from support.server import Gateway, serving
from support.zoo import onnx_classifier

NOT_FOUND = "Request for unknown model: 'classifier' is not found"
NOBODY = ["StatusCode.NOT_FOUND", "Request for unknown model: 'nobody' is not found"]


@pytest.fixture(scope="module")
def gateway(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A server that loads nothing by itself."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("classifier", {"model.onnx": onnx_classifier()})
    with serving(repository.root, "--model-control", "explicit") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def steps(gateway: Gateway, tritonclient: Any) -> list[Any]:
    """What each step of `control.py` brought."""
    return tritonclient("control.py", gateway.address, "classifier")


def test_nothing_serves_before_it_is_loaded(steps: list[Any]) -> None:
    """Before it is loaded a model is listed without a state, not ready, and calls to it say that it is unknown."""
    index, ready, refused = steps[:3]
    assert index == {"models": [{"name": "classifier"}]}
    assert ready is False
    assert refused == ["StatusCode.NOT_FOUND", NOT_FOUND]


def test_a_loaded_model_answers(steps: list[Any]) -> None:
    """Loading makes a model ready and callable."""
    loaded, ready, rows = steps[3:6]
    assert (loaded, ready, rows) == (None, True, 3)


def test_a_configuration_sent_along_counts(steps: list[Any]) -> None:
    """A configuration in the load call replaces the model's own, and its limits hold from then on."""
    loaded, config, refused, rows = steps[6:10]
    assert loaded is None
    assert config["max_batch_size"] == 2
    assert config["parameters"] == {"owner": {"string_value": "me"}}
    assert refused[0] == "StatusCode.INVALID_ARGUMENT"
    assert refused[1].startswith("model 'classifier': expected 1 to 2 rows (max_batch_size), got 3")
    assert rows == 2


def test_a_failed_load_leaves_the_former_serving(steps: list[Any]) -> None:
    """A load that fails says why, and the model that served before still does."""
    broken, rows, uploaded, unknown = steps[10:14]
    assert broken[0] == "StatusCode.INVALID_ARGUMENT"
    assert broken[1].startswith("model 'classifier': config parameter: ")
    assert rows == 2
    assert uploaded[0] == "StatusCode.UNIMPLEMENTED"
    assert "file:1/model.onnx" in uploaded[1]
    assert unknown == NOBODY


def test_an_unloaded_model_is_gone(steps: list[Any]) -> None:
    """Unloading takes a model out of service, says so in the index, and loading it again brings it back."""
    unloaded, ready, index, refused, unknown, loaded, rows = steps[14:]
    assert (unloaded, ready) == (None, False)
    unavailable = {"name": "classifier", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert index == {"models": [unavailable]}
    assert refused == ["StatusCode.NOT_FOUND", NOT_FOUND]
    assert unknown == NOBODY
    assert (loaded, rows) == (None, 3)
