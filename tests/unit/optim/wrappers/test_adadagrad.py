"""Batch sizes by the norm test."""

from __future__ import annotations

import pytest
import torch

from tnc.errors import BindError
from tnc.optim.wrappers.adadagrad import NormTest


def test_no_variance_leaves_the_size() -> None:
    test = NormTest(size=4, most=1000, eta=0.01)
    gradient = torch.randn(5)
    for _ in range(10):
        for _ in range(3):
            test.observe([gradient, None], 2)
        assert test.advance() == 4


def test_it_is_the_formula_for_parts_of_any_sizes() -> None:
    torch.manual_seed(0)
    sizes = [2, 5, 3]
    parts = [torch.randn(7, dtype=torch.float64) for _ in sizes]
    test = NormTest(size=10, most=10**6, eta=0.3)
    for part, samples in zip(parts, sizes):
        test.observe([part[:3], part[3:]], samples)
    mean = sum(n * g for n, g in zip(sizes, parts)) / 10  # type: ignore[operator]
    spread = sum(n * float((g - mean).square().sum()) for n, g in zip(sizes, parts)) / 2
    wanted = spread / (0.09 * float(mean.square().sum()))
    assert test.advance() == max(10, int(wanted) + 1)


def test_the_estimate_is_unbiased() -> None:
    torch.manual_seed(0)
    found = []
    for _ in range(400):
        test = NormTest(size=1, most=10**9, eta=1.0)
        for samples in (1, 4, 8):
            noise = torch.randn(samples, 6, dtype=torch.float64).mean(0)
            test.observe([noise], samples)
        found.append(test._spread / 2)
    assert abs(sum(found) / 400 / 6 - 1) < 0.1


def test_sizes_stay_below_most_and_resume() -> None:
    test = NormTest(size=2, most=16)
    test.observe([torch.tensor([1.0])], 1)
    test.observe([torch.tensor([-1.0])], 1)
    assert test.advance() == 16
    other = NormTest(size=2, most=16)
    other.load_state_dict(test.state_dict())
    assert other.size == 16
    with pytest.raises(BindError, match=r"seen 0 part"):
        other.advance()
    with pytest.raises(BindError, match="size 3 is not between"):
        NormTest(size=3, most=2)
