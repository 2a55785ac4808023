"""Intervals on a circle of n places: smooth masks with gradients, and the boxes they end as."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def smooth_masks(widths: Tensor, starts: Tensor, size: int, sharpness: float) -> Tensor:
    """Return masks `[k, size]` of intervals `starts, starts + widths`, in units of the whole.

    `irfft[w sinc(w f) / sinc(f / n) exp(-i pi f (w + 2 l - 1/n)) exp(-f^2 / 2 sigma^2)]`: a box
    seen through a Gaussian; with sigma to infinity the box itself, where `w n` and `l n` are whole
    (Lee and Kim, Differentiable Learning of Generalized Structured Matrices, 2024, section 4).
    """
    f = torch.arange(size // 2 + 1, dtype=widths.dtype, device=widths.device)
    w, start = widths[:, None], starts[:, None]
    scale = size * w * torch.sinc(w * f) / torch.sinc(f / size)
    scale = scale * torch.exp(-(f**2) / (2 * sharpness**2))
    angle = -pi * f * (w + 2 * start - 1 / size)
    found: Tensor = torch.fft.irfft(torch.complex(scale * angle.cos(), scale * angle.sin()), n=size)
    return found


def boxes(lengths: Tensor, starts: Tensor, size: int) -> Tensor:
    """Return boolean masks `[k, size]` of `lengths` places from `starts` on, around the end."""
    places = torch.arange(size, device=lengths.device)
    return (places - starts[:, None]) % size < lengths[:, None]


def best_starts(energy: Tensor, lengths: Tensor) -> Tensor:
    """Return where an interval of each length holds the most of `energy [k, size]`."""
    size = energy.shape[1]
    sums = torch.cat([energy, energy], 1).cumsum(1)
    sums = torch.cat([sums.new_zeros(len(sums), 1), sums], 1)
    begin = torch.arange(size, device=energy.device).expand_as(energy)
    held = sums.gather(1, begin + lengths[:, None]) - sums.gather(1, begin)
    return held.argmax(1)


def shortest(energy: Tensor, share: float) -> Tensor:
    """Return the length of the shortest interval that holds a share of each row's energy."""
    count, size = energy.shape
    low = torch.ones(count, dtype=torch.long, device=energy.device)
    high = torch.full_like(low, size)
    wanted = share * energy.sum(1)
    sums = torch.cat([energy, energy], 1).cumsum(1)
    sums = torch.cat([sums.new_zeros(count, 1), sums], 1)
    begin = torch.arange(size, device=energy.device).expand(count, size)
    while bool((low < high).any()):
        middle = (low + high) // 2
        held = (sums.gather(1, begin + middle[:, None]) - sums.gather(1, begin)).amax(1)
        enough = held >= wanted
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return high


def whole_lengths(widths: Tensor, size: int, budget: int) -> Tensor:
    """Return whole lengths in proportion to widths: at least 0, at most `size`, `budget` in all."""
    ideal = widths.clamp_min(0).double()
    low, high = 0.0, float(size) / max(1e-9, float(ideal.max()) * 1e-3)
    for _ in range(60):
        middle = (low + high) / 2
        fits = int((ideal * middle).floor().clamp_max(size).sum()) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return (ideal * low).floor().clamp_max(size).long()


def thresholded(widths: Tensor, total: float, least: float) -> Tensor:
    """Return `max(w - tau, least)` with the tau >= 0 for which the sum is at most `total`.

    The proximal operator of `tau ||w||_1`.
    """
    low, high = 0.0, float(widths.max())
    if float(widths.sum()) <= total:
        return widths
    for _ in range(40):
        middle = (low + high) / 2
        fits = float((widths - middle).clamp_min(least).sum()) <= total
        low, high = (low, middle) if fits else (middle, high)
    return (widths - high).clamp_min(least)
