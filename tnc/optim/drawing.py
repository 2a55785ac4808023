"""Random numbers that a parameter's seed and a count determine, so that nothing drawn is kept."""

from __future__ import annotations

import torch

_STRIDE = 0x9E3779B97F4A7C15
_BITS = (1 << 63) - 1


def generator(seed: int, draw: int, device: torch.device) -> torch.Generator:
    """Return the generator of the draw of that number, on a device.

    Neighbouring seeds and draws give unrelated numbers (the mixing of SplitMix64). Devices of
    different types draw different ones.
    """
    mixed = (seed * _STRIDE + draw + 1) * _STRIDE & _BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _BITS
    return torch.Generator(device).manual_seed(mixed ^ mixed >> 31)
