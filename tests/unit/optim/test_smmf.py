"""SMMF: factors that keep sums, bits that are bits, and agreement with the formula."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.optim.rules.smmf import Smmf, rank_one, square_shape
from tnc.optim.signs import pack_signs, packed_size, signed


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (9, 1)])
def test_factors_keep_row_and_column_sums(shape: tuple[int, int]) -> None:
    matrix = gradients(shape, 1)[0].abs()
    product = torch.outer(*rank_one(matrix))
    assert apart(product.sum(0), matrix.sum(0)) < 1e-15
    assert apart(product.sum(1), matrix.sum(1)) < 1e-15


def test_factors_are_exact_on_rank_one() -> None:
    matrix = torch.outer(gradients((7,), 1)[0].abs(), gradients((5,), 1, 1)[0].abs())
    assert apart(torch.outer(*rank_one(matrix)), matrix) < 1e-15
    assert apart(torch.outer(*rank_one(matrix + torch.eye(7, 5))), matrix + torch.eye(7, 5)) > 0.01
    assert not torch.outer(*rank_one(torch.zeros(3, 2))).any()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 101])
def test_signs_are_bits(size: int) -> None:
    entries = gradients((size,), 1)[0]
    packed = pack_signs(entries)
    assert packed.dtype is torch.uint8
    assert packed.untyped_storage().nbytes() == packed_size(size) == -(-size // 8)
    assert torch.equal(signed(entries.abs(), packed), entries)


def test_square_shapes() -> None:
    assert square_shape(1536 * 384) == (768, 768)
    assert square_shape(13) == (13, 1)
    for entries in range(1, 50):
        a, b = square_shape(entries)
        assert a * b == entries
        assert a >= b
        assert not any(entries % k == 0 for k in range(b + 1, int(entries**0.5) + 1))


def test_it_is_the_formula() -> None:
    weight, given = parameter((4, 6)), gradients((4, 6), 9)
    expected = weight.detach().clone()
    mean, square = torch.zeros(6, 4, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.float64)
    for t, gradient in enumerate(given, 1):
        g = gradient.reshape(6, 4)
        first, second = 0.9 * 0.999 ** (t - 1), 1 - t**-0.5
        m, v = first * mean + (1 - first) * g, second * square + (1 - second) * g**2
        expected = expected - 0.05 * (m / (v.sqrt() + 1e-8)).reshape(4, 6)
        size = m.abs()
        mean = size.sum(1)[:, None] * size.sum(0) / size.sum() * m.sign()
        square = v.sum(1)[:, None] * v.sum(0) / v.sum()
    found = run(Smmf([weight], lr=0.05, decay_rate=0.5), weight, given)
    assert apart(found, expected) < 1e-13


def test_what_is_read_is_written() -> None:
    weight = parameter((4, 6))
    rule = Smmf([weight])
    run(rule, weight, gradients((4, 6), 3))
    state, group = rule.state[weight], rule.param_groups[0]
    moments = rule.read(state, weight, group)
    again = rule.write(moments, weight, group)
    for slot, value in again.items():
        assert apart(value.double(), state[slot].double()) < 1e-14, slot
