"""Handwritten digits: the data, a small CNN, and its model files for every backend."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

_EPOCHS = 12
_BATCH = 64

_CONFIG = """\
# TorchScript carries neither dtypes nor shapes, so they stand here. The other two need no configuration.
max_batch_size: 64
input [ { name: "pixels" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] } ]
"""


@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 images of 8 x 8 pixels, values 0 to 16, shape [n, 1, 8, 8] FP32; a fifth is held out."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


class Network(nn.Module):
    """A CNN with 38,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of the ten digits."""
        return {"logits": self.head(self.features(pixels / 16))}


def load() -> Digits:
    """The data set that ships inside scikit-learn."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32).reshape(-1, 1, 8, 8)
    split = train_test_split(images, labels.astype(np.int64), test_size=0.2, random_state=0, stratify=labels)
    return Digits(split[0], split[2], split[1], split[3])


def write_rows(data: Digits, path: Path) -> None:
    """The held-out images as `tensorgate predict` takes them: a line for each, its label and its pixels."""
    rows = np.column_stack([data.labels, data.images.reshape(len(data.images), -1).astype(np.int64)])
    names = ["label", *(f"pixel_{number}" for number in range(rows.shape[1] - 1))]
    np.savetxt(path, rows, fmt="%d", delimiter=",", header=",".join(names), comments="")


def train(data: Digits) -> Network:
    """A network trained on the training part."""
    torch.manual_seed(0)
    network = Network()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(images)).split(_BATCH):
            loss = nn.functional.cross_entropy(network(images[chosen])["logits"], labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def export(network: Network, repository: Path) -> list[str]:
    """Write the network for every backend into a model repository; the models' names."""
    example = (torch.zeros(2, 1, 8, 8),)  # two rows: with one, torch.export takes the batch size for a constant
    shapes: Any = ({0: torch.export.Dim("batch", min=1, max=64)},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision, which nobody uses, is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes of torch's own exporters
        exported = torch.export.export(network, example, dynamic_shapes=shapes)
        torch.export.save(exported, _file(repository, "digits_pt2", "model.pt2"))
        torch.jit.script(network).save(str(_file(repository, "digits_torchscript", "model.pt")))
        torch.onnx.export(
            network,
            example,
            str(_file(repository, "digits_onnx", "model.onnx")),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    (repository / "digits_torchscript" / "config.pbtxt").write_text(_CONFIG)
    return ["digits_onnx", "digits_pt2", "digits_torchscript"]


def _file(repository: Path, model: str, filename: str) -> Path:
    folder = repository / model / "1"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / filename
