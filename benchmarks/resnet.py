"""The CIFAR ResNets of He et al. (2016): three stages of 16, 32 and 64 channels."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: subsampling, zero channels."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.added = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.added:
            half = self.added // 2
            short = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(short, (0, 0, 0, 0, half, self.added - half))
        return functional.relu(out + x)


class ResNet(nn.Module):
    """`6 n + 2` layers; images (batch, 3, 32, 32) to logits (batch, 10)."""

    def __init__(self, n: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n)
        self.layer2 = _stage(16, 32, n)
        self.layer3 = _stage(32, 64, n)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(inside: int, outside: int, n: int) -> nn.Sequential:
    first = Block(inside, outside, outside // inside)
    return nn.Sequential(first, *(Block(outside, outside, 1) for _ in range(n - 1)))


def resnet20() -> ResNet:
    """Build ResNet-20 (0.27 million parameters) without weights."""
    return ResNet(3)


def read_resnet20(file: Path) -> ResNet:
    """Read ResNet-20 with its weights, in evaluation mode."""
    from safetensors.torch import load_file

    model = resnet20()
    counters = {k for k in model.state_dict() if k.endswith("num_batches_tracked")}
    found = model.load_state_dict(load_file(file), strict=False)
    if found.unexpected_keys or set(found.missing_keys) - counters:
        raise SystemExit(f"{file} is no ResNet-20: {found}")
    return model.eval()
