"""What the machine can do at most, as contenders of the same blocks: a product and a copy."""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import PRECISION, Side

EDGE = 1024
"""Edge of the product that measures the peak: 2 EDGE^3 FLOPs."""


class Limits:
    """Hold the buffers of the limits; sides `peak mkl`, `peak onednn` and `copy`.

    The copy has about as many bytes as a cell touches, so its bandwidth is that of the cache or of
    the memory that the cell lives in.
    """

    def __init__(self) -> None:
        self.left, self.right, self.product = (torch.rand(EDGE, EDGE) for _ in range(3))
        self.buffer = torch.zeros(0)

    def sides(self, touched: int) -> list[Side]:
        """Return the sides for a cell that touches so many bytes."""
        if self.buffer.numel() * 4 < touched:
            self.buffer = torch.zeros(touched // 4 + 1)
        half = max(touched // 8, 1)
        source, target = self.buffer[:half], self.buffer[half : 2 * half]

        def multiply() -> object:
            return torch.mm(self.left, self.right, out=self.product)

        peaks = [Side(f"peak {backend}", multiply, backend) for backend in PRECISION]
        return [*peaks, Side("copy", lambda: target.copy_(source))]


def roofline(flops: float, peak_seconds: float, copy_seconds: float) -> float:
    """Return the least seconds of a cell: its FLOPs at the peak, or its bytes at the bandwidth.

    `peak_seconds` are those of the product of EDGE, `copy_seconds` those of the cell's copy, which
    reads one half of the cell's bytes and writes the other.
    """
    return max(flops * peak_seconds / (2 * EDGE**3), copy_seconds)
