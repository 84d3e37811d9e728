"""What `tensorgate profile` says when it cannot do what it was asked."""

from __future__ import annotations

import pytest
from support.commands import write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no model 'nobody': {root} has broken, classifier, echo, empty, fused, "),
        (["a/b"], "model name 'a/b': expected the name of a folder in the model repository"),
        (["classifier", "--version", "3"], "model 'classifier' has no version '3': expected one of 1, 2"),
        (["classifier", "--version", "one"], "model 'classifier' has no version 'one': expected one of 1, 2"),
        (["broken"], "model broken version 1: model.onnx: "),
        (["misnamed"], "model misnamed: config.pbtxt: name is 'other', the folder is 'misnamed'"),
        (["empty"], "model empty version 1: no model file: expected one of model.onnx, "),
        (["echo"], "model 'echo': backend 'echo' has no profiler; `tensorgate bench echo` measures it from outside"),
        (["whole", "--rows", "2"], "--rows: model 'whole' does not batch"),
        (["classifier", "--map", "x=a"], "--map needs --input"),
        (["classifier", "--input", "none.csv"], "--input: no such file: none.csv"),
        (["classifier", "--trace", "trace.txt"], "--trace: expected .json, got '.txt': trace.txt"),
        (["classifier", "--trace", "none/t.json"], "--trace: no such folder: none"),
        (["two", "--trace", "t.json"], "--trace: cProfile, which profiles model 'two', does not keep single calls"),
    ],
)
def test_mistakes(profile, profiled, arguments, message):
    """What cannot be profiled is said in a line, before anything is measured."""
    assert message.format(root=profiled) in profile(*arguments).refusal


def test_lines_to_write(profile):
    """A model that needs a configuration is refused with the lines to write, as the server's log has them."""
    answer = profile("undeclared")
    assert answer.returncode == 2
    assert "write these lines, with the real values, into undeclared/config.pbtxt" in answer.stderr


def test_random_input_that_does_not_suit(profile):
    """Where random input makes a model fail, its user is told how to give it other input, or of another size."""
    answer = profile("sized", "--rows", "2", "--size", "5")
    assert answer.returncode == 1
    assert answer.stderr == (
        "tensorgate: model 'sized' failed: ValueError: no (2, 5) "
        "(its input was random: --input FILE gives it rows of yours, --size other sizes)\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--model-repository is required (or TENSORGATE_MODEL_REPOSITORY, or "),
        (("--model-repository", "nowhere"), "--model-repository: no such directory: nowhere"),
        (("--model-repository", "{root}/fused"), "looks like one model; a repository is the folder around it: {root}"),
    ],
)
def test_repository(here, profiled, monkeypatch, options, message):
    """A repository that is missing, or is one model, is refused with what to give instead."""
    monkeypatch.delenv("TENSORGATE_MODEL_REPOSITORY", raising=False)
    given = [option.format(root=profiled) for option in options]
    assert message.format(root=profiled) in here("profile", "fused", *given).refusal


def test_missing_runtime(profile, monkeypatch):
    """Whoever lacks a model's runtime reads how to install it."""
    monkeypatch.setattr("backends.registry.BackendInfo.installed", property(lambda info: info.name != "onnxruntime"))
    hint = "model fused version 1: backend 'onnxruntime' is not installed: pip install 'tensorgate[onnx]'"
    assert hint in profile("fused").refusal


def test_rows_that_do_not_suit(profile, tmp_path):
    """Where a file's rows make a model fail, or it refuses them, its reason is told."""
    refused = write(tmp_path / "refused.csv", a=[404.0], b=[0])
    message = "model 'moody' refuses its input: x: expected anything but 404\n"
    assert profile("moody", "--input", refused, "--map", "x=a").refusal.endswith(message)
    failing = profile("moody", "--input", write(tmp_path / "failing.csv", a=[666.0], b=[0]), "--map", "x=a")
    assert (failing.returncode, failing.stderr) == (1, "tensorgate: model 'moody' failed: RuntimeError: secret\n")
