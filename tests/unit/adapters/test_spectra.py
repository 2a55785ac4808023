"""Leading singular vectors: exact, of stacks, of complex matrices, and by a randomised range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.unit.adapters.starts import best, drawn, near
from tnc.adapters.calibration import gradients
from tnc.adapters.place import places
from tnc.adapters.spectra import leading
from tnc.capture import capture


def product(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    left, values, right = parts
    return left * values.unsqueeze(-2) @ right


@pytest.mark.parametrize("niter", [None, 3])
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (2, 9, 7)])
def test_is_the_best_part(shape: tuple[int, ...], niter: int | None) -> None:
    matrix = drawn(*shape)
    decay = 4.0 ** -torch.arange(7.0, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = left * decay @ right
    found = leading(matrix, 3, niter, torch.Generator().manual_seed(0))
    assert near(product(found), best(matrix, 3), 1e-9)
    assert near(found[1], decay[:3].expand(found[1].shape), 1e-9)
    eye = torch.eye(3, dtype=torch.float64).expand(*shape[:-2], 3, 3)
    assert near(found[0].mT @ found[0], eye) and near(found[2] @ found[2].mT, eye)


def test_signs_are_fixed() -> None:
    matrix = drawn(9, 7)
    left, _, _ = leading(matrix, 4)
    other, _, _ = leading(matrix.mT, 4)
    top = left.gather(0, left.abs().argmax(0, keepdim=True))
    assert bool((top > 0).all()) and bool((other.abs().amax(0) == other.amax(0)).all())
    assert near(leading(-matrix, 4)[0], left)


def test_ranks_up_to_the_full_one() -> None:
    matrix = drawn(6, 4)
    for niter in (None, 0, 2):
        found = leading(matrix, 4, niter, torch.Generator().manual_seed(0))
        assert near(product(found), matrix)
    assert near(product(leading(torch.zeros(3, 4), 2)), torch.zeros(3, 4))


class Modes(nn.Module):
    """A complex weight for every mode of a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.2 * torch.complex(drawn(4, 5, 6), drawn(4, 5, 6, seed=1)))

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x)[..., :6]
        return torch.fft.irfft(torch.einsum("bix,iox->box", modes, self.w), n=x.shape[-1])


def test_complex_weights() -> None:
    net, x = Modes(), drawn(3, 4, 16)

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        return (output - 1).square().mean()

    place = places(net, capture(net, (x,), {}, graph=False).sites)
    ((_, gradient),) = gradients(net, place, [x], loss)
    (theirs,) = torch.autograd.grad(loss(net(x), x), [net.w])
    assert near(gradient, theirs.permute(1, 0, 2))
    tuned = tnc.adapt(net, "lora-ga{rank=2, scale=unit}", calibration=[x], loss=loss)
    assert near(tuned.model(x), net(x))
    before = tuned.weight("w").detach().clone()
    loss(tuned.model(x), x).backward()
    torch.optim.SGD(tuned.parameters(), lr=1e-6).step()
    moved = (before - tuned.weight("w").detach()).permute(1, 0, 2).reshape(5, -1) / 1e-6
    assert near(moved, best(gradient.reshape(5, -1), 4), 1e-5)
