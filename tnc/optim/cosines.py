"""The orthonormal discrete cosine transform of the last axis, by real Fourier transforms.

`X[k] = s[k] sum_j x[j] cos(pi (2 j + 1) k / 2 n)` with `s[0] = 1 / sqrt(n)`, else `sqrt(2 / n)`:
an orthogonal matrix, which is never made (Makhoul, A Fast Cosine Transform, 1980).
"""

from __future__ import annotations

from functools import lru_cache
from math import pi

import torch
from torch import Tensor


def cosines(tensor: Tensor) -> Tensor:
    """Return the transform of the last axis.

    >>> cosines(torch.eye(2))
    tensor([[ 0.7071,  0.7071],
            [ 0.7071, -0.7071]])
    """
    n = tensor.shape[-1]
    order, _ = _orders(n, tensor.device)
    found = torch.fft.rfft(tensor[..., order]) * _turns(n, tensor.dtype, tensor.device)
    upper = found.imag[..., 1 : (n + 1) // 2].flip(-1).neg()
    result = torch.cat([found.real, upper], -1).mul_((2 / n) ** 0.5)
    result[..., 0] *= 0.5**0.5
    return result


def from_cosines(tensor: Tensor) -> Tensor:
    """Return what `cosines` gave the tensor of: its inverse and transpose."""
    n = tensor.shape[-1]
    _, back = _orders(n, tensor.device)
    scaled = tensor * (n / 2) ** 0.5
    scaled[..., 0] *= 2**0.5
    half = n // 2 + 1
    mirrored = torch.zeros_like(scaled[..., :half])
    mirrored[..., 1:] = scaled[..., n - half + 1 :].flip(-1)
    found = torch.complex(scaled[..., :half], -mirrored)
    found = found * _turns(n, tensor.dtype, tensor.device).conj()
    result: Tensor = torch.fft.irfft(found, n=n)[..., back]
    return result


@lru_cache(maxsize=64)
def _orders(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return even places, then odd ones backwards; and the way back."""
    places = torch.arange(n, device=device)
    order = torch.cat([places[::2], places[1::2].flip(0)])
    return order, torch.argsort(order)


@lru_cache(maxsize=64)
def _turns(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    angles = torch.arange(n // 2 + 1, dtype=torch.float64) * (-pi / (2 * n))
    wide = torch.polar(torch.ones_like(angles), angles)
    return wide.to(device=device, dtype=dtype.to_complex())
