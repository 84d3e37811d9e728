"""`tensorgate models`: what a server has, as its operator sees it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.calls import infer
from support.commands import SHOUT, tensorgate
from support.models import RepositoryBuilder
from support.server import TENSORGATE, serving
from support.zoo import onnx_classifier


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory):
    """A gateway whose models are loaded on request: one is, one fails, one is not."""
    builder = RepositoryBuilder(tmp_path_factory.mktemp("controlled") / "models")
    builder.add("classifier", {"model.onnx": onnx_classifier()})
    builder.add("classifier", {"model.onnx": onnx_classifier()}, version=2)
    builder.add("broken", {"model.onnx": b"junk"})
    builder.add("shout", {"model.py": SHOUT})
    load = ("--load-model", "classifier,broken")
    with serving(builder.root, "--model-control", "explicit", *load) as running:
        infer(running, "classifier", np.ones((3, 4), np.float32), "x")
        yield running


@pytest.fixture
def models(controlled, here):
    """Runs `tensorgate models ...`."""
    return lambda *arguments: here("models", *arguments, "--address", controlled.address)


def cells(text: str) -> list[list[str]]:
    """The lines of a table, by its words."""
    return [line.split() for line in text.splitlines()]


def test_list(controlled):
    """All models are listed with version, state and the reason of what does not serve."""
    answer = tensorgate("models", "--address", controlled.address)
    assert answer.returncode == 0, answer.stderr
    head, broken, classifier, shout = cells(answer.stdout)
    assert head == ["model", "version", "state", "reason"]
    assert broken[:3] == ["broken", "1", "UNAVAILABLE"]
    assert "model.onnx:" in broken
    assert classifier == ["classifier", "2", "READY"]
    assert shout == ["shout", "-", "not", "loaded"]


def test_one(models):
    """A model is shown with its inputs and outputs; one that does not serve with its reason."""
    answer = models("classifier")
    assert answer.stdout.startswith("classifier version 2: READY\n")
    assert ["input", "x", "FP32", "[-1,4]"] in cells(answer.stdout)
    assert ["output", "probabilities", "FP32", "[-1,3]"] in cells(answer.stdout)
    assert models("broken").stdout.startswith("broken version 1: UNAVAILABLE model.onnx: ")
    nobody = models("nobody")
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert nobody.stderr == "tensorgate: Request for unknown model: 'nobody' is not found\n"


def test_statistics(models):
    """Requests, rows, batches and times of each model stand in a table, or of one."""
    for names in ((), ("classifier",)):
        head, row = cells(models(*names, "--statistics").stdout)
        assert " ".join(head).startswith("model version requests failed rows runs rows/run queue ms run ms")
        assert row[:7] == ["classifier", "2", "1", "0", "3", "1", "3.00"]
        assert row[-2:] == ["0", "0"]


def test_load_and_unload(models, tmp_path):
    """A model is loaded, with a configuration of the caller's if there is one, and unloaded."""
    assert models("load", "shout").stdout == "shout is loaded: version 1\n"
    assert "takes up to 32 rows a request" in models("shout").stdout
    config = tmp_path / "config.json"
    config.write_text('{"max_batch_size": 5}')
    assert models("load", "shout", "--config", config).returncode == 0
    assert "takes up to 5 rows a request" in models("shout").stdout
    assert models("unload", "shout").stdout == "shout is unloaded\n"
    assert "shout version 1: UNAVAILABLE unloaded" in models("shout").stdout
    failed = models("load", "broken")
    assert failed.returncode == 2
    assert "model.onnx: " in failed.stderr


def test_json(models):
    """Programs get the same as JSON."""
    listed = json.loads(models("--json").stdout)
    assert {"model": "classifier", "version": "2", "state": "READY", "reason": ""} in listed
    assert json.loads(models("classifier", "--json").stdout)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    ]
    assert json.loads(models("--statistics", "--json").stdout)[0]["rows"] == 3


def test_a_full_disk(controlled):
    """Where what was asked for cannot be written, that is said; a reader that has had enough is told nothing."""
    command = [TENSORGATE, "models", "--address", controlled.address]
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (3, "tensorgate: stdout: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["load"], "expected `models` or `models MODEL`"),
        (["a", "b"], "expected `models` or `models MODEL`"),
        (["load", "shout", "--statistics"], "expected `models` or `models MODEL`"),
        (["load", "shout", "--config", "none.json"], "--config: none.json: No such file or directory"),
        (["load", "shout", "--config", __file__], "expected JSON"),
        (["--token-file", "none"], "none: No such file or directory"),
        (["--token-env", "TENSORGATE_NONE"], "--token-env TENSORGATE_NONE: there is no such environment variable"),
        (["--token-file", "/dev/null"], "--token-file /dev/null: it is empty"),
        (["--token-file", __file__], "the token has characters that a header cannot carry"),
        (["--tls-cert", __file__], "--tls-cert and --tls-key belong together: give both or neither"),
        (["--tls-ca", __file__], "test_models.py: expected PEM certificates"),
    ],
)
def test_mistakes(models, arguments, message):
    """What is wrong with a command is said in one line."""
    assert message in models(*arguments).refusal


def test_a_token_does_not_leave_the_machine_unencrypted(tmp_path: Path):
    """Without TLS a token is refused for another machine, in the words of the command line."""
    (tmp_path / "token").write_text("secret\n")
    answer = tensorgate("models", "--address", "gateway.example:443", "--token-file", tmp_path / "token")
    assert answer.returncode == 2
    assert "unencrypted: give --tls, or --allow-plaintext-token" in answer.stderr
    assert "secret" not in answer.stderr
