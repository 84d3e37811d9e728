"""What the tests of `tensorgate optimize` share."""

from __future__ import annotations

import pytest
import torch
from support.commands import Here
from support.techniques import apply, digits_recipe, sentences_recipe

from backends.optimize.export_onnx import OnnxExport

torch.set_num_threads(1)  # the suite runs on all processors already; torch's threads would wait for each other


@pytest.fixture
def here(capsys, monkeypatch):
    """Runs `tensorgate ...` within this process."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    return Here(capsys)


@pytest.fixture(scope="session")
def digits():
    """A recipe with a trained network of convolutions, training data and a student."""
    return digits_recipe()


@pytest.fixture(scope="session")
def sentences():
    """A recipe with a transformer: several inputs and outputs, no training data."""
    return sentences_recipe()


@pytest.fixture(scope="session")
def digits_onnx(digits, tmp_path_factory):
    """The classifier's ONNX file, as a variant."""
    return apply(OnnxExport(), digits, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def sentences_onnx(sentences, tmp_path_factory):
    """The transformer's ONNX file, as a variant."""
    return apply(OnnxExport(), sentences, tmp_path_factory.mktemp("sentences"))


@pytest.fixture
def folder(tmp_path):
    """An empty folder."""
    (tmp_path / "variants").mkdir()
    return tmp_path / "variants"


@pytest.fixture(autouse=True)
def _unchanged(request):
    """What every technique promises: the recipe's networks are as they were."""
    recipes = [request.getfixturevalue(name) for name in ("digits", "sentences") if name in request.fixturenames]
    before = [_weights(recipe) for recipe in recipes]
    yield
    for recipe, weights in zip(recipes, before, strict=True):
        after = _weights(recipe)
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def _weights(recipe):
    networks = {"model": recipe.model, "student": recipe.student}
    return {
        f"{kind}.{name}": tensor.clone()
        for kind, network in networks.items()
        if network is not None
        for name, tensor in network.state_dict().items()
    }
