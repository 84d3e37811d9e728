"""A variant as an entry of a model repository: its files and a config.pbtxt with what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from backends.base import Signature, TensorSpec
from backends.optimize.bare import device_of
from backends.optimize.timing import Batching
from backends.optimize.variant import Artifact
from gateway import parameters
from gateway.layout import CONFIG
from tensorgate_client.tensors import datatype_of
from tensorgate_client.wire import model_config_pb2 as pb

_VERSION = "1"
ASIDE = ".unserved"
"""Where files are that did not serve; no model's name, since hidden folders are none."""

_HEAD = """\
# Written by `tensorgate optimize`. max_batch_size and the preferred sizes follow from the latency of the bare file by
# rows; nothing is held back for larger batches (max_queue_delay_microseconds 0): an idle instance takes what is there.
"""


class Entries:
    """The entries of a repository.

    Args:
        root: the repository's folder.
        signature: the tensors of every variant, the batch first.
    """

    def __init__(self, root: Path, signature: Signature) -> None:
        self.root = root
        self._signature = signature

    def __repr__(self) -> str:
        return f"<Entries {self.root}>"

    def add(self, name: str, artifact: Artifact, batching: Batching) -> int:
        """Write an entry in the place of one of the same name; the bytes of its model files."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        version = folder / _VERSION
        shutil.copytree(artifact.file.parent, version)
        config = self._config(artifact, batching)
        (folder / CONFIG).write_text(_HEAD + text_format.MessageToString(config))
        return sum(file.stat().st_size for file in version.rglob("*") if file.is_file())

    def remove(self, name: str) -> None:
        """Set an entry aside, where no server loads it: perhaps another machine could."""
        if (self.root / name).exists():
            aside = self.root / ASIDE / name
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (self.root / name).rename(aside)

    def _config(self, artifact: Artifact, batching: Batching) -> pb.ModelConfig:
        config = pb.ModelConfig(
            backend=artifact.backend,
            max_batch_size=batching.max_batch_size,
            default_model_filename=artifact.file.name,
        )
        if device_of(artifact) == "cpu":  # as it is measured; on a GPU it would be another variant
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU)
        _declare(config.input, self._signature.inputs)
        _declare(config.output, self._signature.outputs)
        config.dynamic_batching.preferred_batch_size.extend(batching.preferred_batch_sizes)
        if artifact.batch_sizes:
            config.parameters[parameters.BATCH_SIZES].string_value = " ".join(map(str, artifact.batch_sizes))
        for key, value in artifact.parameters.items():
            config.parameters[key].string_value = value
        return config


def _declare(tensors: Any, specs: Sequence[TensorSpec]) -> None:
    """What TorchScript and AOTInductor do not say; files that say it are checked against it."""
    for spec in specs:
        name = datatype_of(spec.dtype)
        tensors.add(
            name=spec.name,
            data_type=pb.DataType.Value(f"TYPE_{'STRING' if name == 'BYTES' else name}"),
            dims=spec.shape[1:],
        )
