"""Blocks of learned places and sizes: masks, and what they recover."""

from __future__ import annotations

import pytest
import torch

from tnc.derive import parameters
from tnc.fit import Metric, fit_structure
from tnc.fit.windows import boxes, smooth_masks
from tnc.net import Signature
from tnc.structures import families

BLOCKS = (((0, 10), (0, 14)), ((10, 16), (14, 40)), ((16, 32), (40, 48)))


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks() -> torch.Tensor:
    weight = torch.zeros(32, 48, dtype=torch.float64)
    for number, ((a, b), (c, d)) in enumerate(BLOCKS):
        weight[a:b, c:d] = draw(b - a, 2, seed=number) @ draw(2, d - c, seed=number + 9)
    return weight


@pytest.mark.parametrize("size", [16, 21])
def test_a_sharp_mask_is_the_box(size: int) -> None:
    lengths, starts = torch.tensor([3, 7, size]), torch.tensor([2, size - 3, 0])
    widths = (lengths.double() / size, starts.double() / size)
    smooth = smooth_masks(*widths, size, 1e6)
    # an even number of places leaves one frequency of which only the real part is kept
    assert torch.allclose(smooth, boxes(lengths, starts, size).double(), atol=0.1)
    assert torch.allclose(smooth.sum(1), lengths.double())


@pytest.mark.parametrize("kind", ["plain", "inputs"])
def test_blocks_are_found_where_low_rank_fails(kind: str) -> None:
    weight, rows = blocks(), draw(300, 48, seed=3)
    metric = Metric() if kind == "plain" else Metric(rows.T @ rows / 300)
    signature = Signature((32,), (48,))
    blocked = families.get("generalised-block-low-rank")(components=6).template(signature)
    structure = blocked.at({"n": 2 * 32, "m": 2 * 48})
    low = families.get("low-rank")().template(signature).at({"r": 2})
    assert parameters(structure) == parameters(low)
    error = fit_structure(weight, structure, "gaudi", metric).error
    assert error < 0.3 * fit_structure(weight, low, "svd", metric).error
