"""Spectral convolutions and complex fits against dense oracles."""

from __future__ import annotations

import pytest
import torch

from tnc.decide.options import build
from tnc.errors import FitError, KernelError
from tnc.fit import fit_structure, reconstruct
from tnc.net import Signature
from tnc.nn import SpectralConv
from tnc.structures import families

SHAPE = Signature((5,), (4, 6, 3))
NAMES = ("low-rank", "tucker", "tucker{spatial=true}", "cp", "tensor-train", "low-rank + cp")


def dense(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer of the paper: both corners of the spectrum, one einsum each."""
    spectrum, half = torch.fft.rfft2(x), weight.shape[2] // 2
    m = weight.shape[3]
    out = spectrum.new_zeros(x.shape[0], weight.shape[0], *spectrum.shape[2:])
    corners = (slice(0, half), weight[:, :, :half]), (slice(-half, None), weight[:, :, half:])
    for rows, own in corners:
        out[:, :, rows, :m] = torch.einsum("biyx,oiyx->boyx", spectrum[:, :, rows, :m], own)
    return torch.fft.irfft2(out, s=x.shape[2:])


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_is_the_dense_fourier_layer_at_every_resolution(name: str) -> None:
    template = build(families, name).template(SHAPE)
    made = SpectralConv.initialised(template.at(template.scaled(0.5)), dtype=torch.complex128)
    for size in ((8, 7), (12, 10)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        assert torch.allclose(made(x), dense(x, made.weight), atol=1e-12)
    made(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.is_complex() for p in made.parameters())


@pytest.mark.parametrize("name", ["low-rank", "tucker", "tensor-train"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_fitted_exactly_at_full_rank(name: str, dtype: torch.dtype) -> None:
    weight = torch.randn(SHAPE.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    structure = build(families, name).template(SHAPE).full()
    fitted = fit_structure(weight, structure)
    assert fitted.error < (1e-5 if dtype == torch.complex64 else 1e-8)
    assert all(core.dtype == dtype for core in fitted.cores.values())
    assert torch.allclose(reconstruct(structure, fitted.cores), weight, atol=1e-3)


def test_complex_low_rank_reaches_the_svd() -> None:
    weight = torch.randn(12, 9, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    structure = build(families, "low-rank").template(Signature((12,), (9,))).at({"r": 3})
    values = torch.linalg.svdvals(weight)
    best = float(values[3:].norm() / values.norm())
    assert fit_structure(weight, structure).error == pytest.approx(best, rel=1e-3)


def test_what_cannot_be_is_told() -> None:
    structure = build(families, "low-rank").template(SHAPE).at({"r": 2})
    with pytest.raises(KernelError, match="modes are kept"):
        SpectralConv.initialised(structure)(torch.randn(1, 4, 4, 4))
    weight = torch.randn(SHAPE.shape, dtype=torch.complex64)
    with pytest.raises(FitError, match="takes real weights only"):
        fit_structure(weight, build(families, "cp").template(SHAPE).at({"r": 2}), "cp-als")
