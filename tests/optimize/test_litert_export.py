"""Conversion to .tflite, in front of converters that are scripts: the real one is 2 GB (`make test-litert`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.litert_networks import Convolved, as_file, recipe

from backends.optimize.export_litert import PYTHON, LitertExport
from backends.optimize.variant import TechniqueFailed, Variant

EXPORT = LitertExport(sizes=(1, 4))


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a Python whose converter is a script: $3 is the programs' folder, $4 the file to write."""

    def make(script: str) -> None:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$2" = -c ] && exit 0\n{script}\n')
        python.chmod(0o755)
        monkeypatch.setenv(PYTHON, str(python))

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For what a technique writes."""
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def test_export(converter, tmp_path: Path, folder: Path) -> None:
    """The converter is given a program for each size of batch, and its file, which agrees, is the variant's."""
    module = Convolved()
    file = as_file(module, tmp_path / "given").artifact.file
    converter(f'ls "$3" > {tmp_path}/programs && cp {file} "$4"')
    of = recipe(module, 8, 8, 4)
    assert EXPORT.obstacle(of) == ""
    variant = EXPORT.apply(Variant(module=module), of, folder)
    assert (tmp_path / "programs").read_text().split() == ["b1.pt2", "b4.pt2"]
    assert (variant.name, variant.module, variant.artifact.batch_sizes) == ("litert", None, (1, 4))
    assert [path.name for path in folder.iterdir()] == ["model.tflite"]


def test_file_that_does_something_else(converter, tmp_path: Path, folder: Path) -> None:
    """A file that answers otherwise than the network for one of its sizes is a failed row, with the difference."""
    module, other = Convolved(), Convolved()
    other.head.weight.data *= 2
    file = as_file(other, tmp_path / "given").artifact.file
    converter(f'cp {file} "$4"')
    with pytest.raises(
        TechniqueFailed, match=r"^output 'logits' for a batch of 1 differs by up to .* from the original"
    ):
        EXPORT.apply(Variant(module=module), recipe(module, 8, 8, 4), folder)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'a remark' >&2; echo 'ValueError: no such operator' >&2; exit 1", "it: ValueError: no such operator"),
        ("exit 3", "it: code 3"),
        ('echo done > "$4"', "model.tflite does not serve: model.tflite: The model is not a valid Flatbuffer buffer"),
    ],
)
def test_conversion_that_fails(script: str, reason: str, converter, folder: Path) -> None:
    """A network that the converter does not take is a row with the converter's last words."""
    converter(script)
    with pytest.raises(TechniqueFailed) as caught:
        EXPORT.apply(Variant(module=Convolved()), recipe(Convolved(), 8, 8, 4), folder)
    assert str(caught.value).endswith(reason)


def test_where_the_converter_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no converter reads what to install, and who names a wrong Python what is wrong with it."""
    of = recipe(Convolved(), 8, 8, 4)
    monkeypatch.delenv(PYTHON, raising=False)
    if importlib.util.find_spec("litert_torch") is None:
        assert "pip install 'tensorgate[litert-convert]'" in EXPORT.obstacle(of)
    monkeypatch.setenv(PYTHON, str(tmp_path / "nowhere"))
    assert EXPORT.obstacle(of) == f"{PYTHON} is '{tmp_path}/nowhere': No such file or directory"
    monkeypatch.setenv(PYTHON, "false")
    assert EXPORT.obstacle(of) == f"{PYTHON} is 'false', which has no litert-torch, or is no Python 3.11 or newer"
