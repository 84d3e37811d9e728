"""What a model holds in memory, and what of it must not reach callers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.calls import infer
from support.models import RepositoryBuilder, linear, save_exported, save_torchscript
from support.server import serving
from torch import nn

from tensorgate_client import encode_infer_request
from tensorgate_client.wire import inference_pb2 as pb

DECLARED = """
max_batch_size: 8
input [ { name: "input" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ %d ] } ]
"""
WEIGHTS = (4 * 3 + 3) * 4  # bytes of a linear layer from 4 to 3 numbers


def test_statistics_tell_what_pytorch_models_hold(repository: RepositoryBuilder, tmp_path: Path) -> None:
    """An operator reads off ModelStatistics how many bytes a model's weights take, where its format tells."""
    save_exported(linear(), tmp_path / "model.pt2", torch.zeros(2, 4))
    save_torchscript(linear(), tmp_path / "model.pt")
    repository.add("exported", {"model.pt2": tmp_path / "model.pt2"})
    repository.add("script", {"model.pt": tmp_path / "model.pt"}, DECLARED % 3)
    repository.add("echo", config='backend: "echo"')
    with serving(repository.root) as gateway:
        answer = gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=60)
    held = {stats.name: [(m.type, m.id, m.byte_size) for m in stats.memory_usage] for stats in answer.model_stats}
    assert held == {"echo": [], "exported": [("CPU", 0, WEIGHTS)], "script": [("CPU", 0, WEIGHTS)]}


class Remembering(nn.Module):
    """Gives back its own buffer, which the next execution overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 4))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # the name callers know it by
        """Twice the input, kept."""
        self.last.copy_(input * 2)
        return self.last


def test_a_model_that_gives_its_own_buffer_gives_everybody_his_own(
    repository: RepositoryBuilder, tmp_path: Path
) -> None:
    """What a PyTorch model computes into a buffer of its own is not overwritten before it is sent."""
    save_torchscript(Remembering(), tmp_path / "model.pt")
    config = DECLARED.replace("max_batch_size: 8", "max_batch_size: 0").replace("dims: [ ", "dims: [ 1, ")
    repository.add("remembering", {"model.pt": tmp_path / "model.pt"}, config % 4)
    with serving(repository.root) as gateway:
        inputs = [np.full((1, 4), value, np.float32) for value in range(200)]
        calls = [_start(gateway, x) for x in inputs]
        assert [float(_first(call)) for call in calls] == [2.0 * value for value in range(200)]
        assert infer(gateway, "remembering", inputs[3], "input")[0, 0] == 6


def _start(gateway, x):
    return gateway.stub.ModelInfer.future(encode_infer_request("remembering", {"input": x}), timeout=60)


def _first(call):
    return np.frombuffer(call.result().raw_output_contents[0], np.float32)[0]
