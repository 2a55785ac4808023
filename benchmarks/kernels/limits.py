"""What the machine can do at most, as contenders of the same blocks: a product and a copy."""

from __future__ import annotations

import torch

from benchmarks.kernels.place import Place
from benchmarks.kernels.timing import Side
from tnc.kernels.device import CPU

EDGES = {CPU: 1024}
EDGE = 8192
"""Edge of the product that measures the peak: 2 EDGE^3 FLOPs; the CPU has its own."""


def edge(place: Place) -> int:
    """Return the edge of the product that measures the peak of a place."""
    return EDGES.get(place.device, EDGE)


class Limits:
    """Hold the buffers of the limits; sides `peak LIBRARY` and `copy`.

    The copy has about as many bytes as a cell touches, so its bandwidth is that of the cache or of
    the memory that the cell lives in.
    """

    def __init__(self, place: Place) -> None:
        size = edge(place)
        self.place = place
        self.left, self.right, self.product = (
            torch.rand(size, size).to(place.device, place.dtype) for _ in range(3)
        )
        self.buffer = torch.zeros(0, dtype=place.dtype, device=place.device)

    def sides(self, touched: int) -> list[Side]:
        """Return the sides for a cell that touches so many bytes."""
        item = self.buffer.element_size()
        if self.buffer.numel() * item < touched:
            self.buffer = self.buffer.new_zeros(touched // item + 1)
        half = max(touched // (2 * item), 1)
        source, target = self.buffer[:half], self.buffer[half : 2 * half]

        def multiply() -> object:
            return torch.mm(self.left, self.right, out=self.product)

        peaks = [Side(f"peak {name}", multiply, name) for name in self.place.backends]
        return [*peaks, Side("copy", lambda: target.copy_(source))]


def roofline(flops: float, place: Place, peak_seconds: float, copy_seconds: float) -> float:
    """Return the least seconds of a cell: its FLOPs at the peak, or its bytes at the bandwidth.

    `peak_seconds` are those of the product of the place's edge, `copy_seconds` those of the cell's
    copy, which reads one half of the cell's bytes and writes the other.
    """
    return max(flops * peak_seconds / (2 * edge(place) ** 3), copy_seconds)
