"""LeNet for 32 x 32 images, and the CIFAR-10 files to train on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.resnet import MEAN, STD


class LeNet(nn.Sequential):
    """LeNet-5 for three colours: 20 and 50 filters of 5 x 5, 500 hidden units."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1250, 500),
            nn.ReLU(),
            nn.Linear(500, classes),
        )


@dataclass(frozen=True)
class Images:
    """Normalised images `[n, 3, 32, 32]` and their classes `[n]`."""

    x: Tensor
    y: Tensor

    @classmethod
    def read(cls, file: Path) -> Images:
        """Read an npz file with `x`, or with `jpeg` and `offset`, and `y`."""
        with np.load(file) as arrays:
            pixels = arrays["x"] if "x" in arrays else _decoded(arrays["jpeg"], arrays["offset"])
            labels = arrays["y"].astype(np.int64)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        return cls((torch.from_numpy(pixels).float() / 255 - mean) / std, torch.from_numpy(labels))

    def joined(self, other: Images) -> Images:
        """Return these images, then the others."""
        return Images(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))

    def batch(self, picked: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images by number, each half of the time mirrored, shifted by up to 4 pixels."""
        x, y = self.x[picked], self.y[picked]
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
        shift = torch.randint(0, 9, (2,), generator=generator).tolist()
        padded = functional.pad(x, (4, 4, 4, 4))
        return padded[:, :, shift[0] : shift[0] + 32, shift[1] : shift[1] + 32], y

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Return the share of images that a model names rightly, in percent."""
        mode = model.training
        model.eval()
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(self.x.split(256), self.y.split(256))
        )
        model.train(mode)
        return 100 * right / len(self.y)


def _decoded(jpeg: np.ndarray, offset: np.ndarray) -> np.ndarray:
    from PIL import Image

    found = np.empty((len(offset) - 1, 3, 32, 32), np.uint8)
    for k in range(len(found)):
        image = Image.open(io.BytesIO(jpeg[offset[k] : offset[k + 1]].tobytes()))
        found[k] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return found
