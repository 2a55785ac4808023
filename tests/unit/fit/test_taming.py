"""Error-preserving correction: components that cancel shrink at the same error."""

from __future__ import annotations

import pytest
import torch

from tests.laws.test_fits import gaussian
from tnc.fit import fit_structure
from tnc.fit.canonical import Canonical
from tnc.fit.canonical_taming import corrected, rebuilt, tamed
from tnc.net import Structure, parse_network


def border(size: int = 6) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A tensor of rank three that tensors of rank two come arbitrarily near to."""
    drawn = torch.nn.functional.normalize(gaussian(2, 3, size), dim=-1)
    a, b = list(drawn[0]), list(drawn[1])
    tensor = sum(
        torch.einsum("i,j,k->ijk", *[b[m] if m == place else a[m] for m in range(3)])
        for place in range(3)
    )
    return tensor, a, b


def degenerate(growth: float) -> tuple[torch.Tensor, Canonical]:
    """Two huge components whose difference is near the tensor, and a small third."""
    tensor, a, b = border()
    each, factors = growth ** (1 / 3), []
    for mode in range(3):
        sign = -1 if mode == 0 else 1
        columns = [each * (a[mode] + b[mode] / growth), sign * each * a[mode]]
        factors.append(torch.stack([*columns, 0.1 * gaussian(6, seed=mode)], 1))
    error = float((tensor - rebuilt(factors)).norm() / tensor.norm())
    return tensor, Canonical(factors, error, 0, True)


@pytest.mark.parametrize("growth", [30.0, 1e3, 1e4])
def test_norms_shrink_by_orders_of_magnitude_at_equal_error(growth: float) -> None:
    tensor, start = degenerate(growth)
    assert start.growth() > 0.5 * growth
    found = tamed(tensor, start)
    assert found.error <= 1.001 * start.error
    assert found.growth() < 2
    assert found.sensitivity() < 1e-1 * start.sensitivity()
    reached = float((tensor - rebuilt(found.factors)).norm() / tensor.norm())
    assert reached == pytest.approx(found.error, abs=1e-7)


def test_a_correction_keeps_its_error_and_never_grows() -> None:
    tensor = gaussian(5, 4, 6)
    start = Canonical([gaussian(n, 4, seed=n) for n in (5, 4, 6)], 0.0, 0, True)
    error = float((tensor - rebuilt(start.factors)).norm() / tensor.norm())
    found = corrected(tensor, start, error)
    assert found.error <= error * (1 + 1e-9)
    sizes = [
        float(torch.stack([f.square().sum(0) for f in one.factors]).prod(0).sum())
        for one in (start, found)
    ]
    assert sizes[1] < 0.9 * sizes[0]


def test_sensitivity_is_the_change_under_noise() -> None:
    found = Canonical([gaussian(n, 3, seed=n) for n in (5, 4, 6)], 0.0, 0, True)
    factors, tensor = found.balanced(), rebuilt(found.factors)
    generator = torch.Generator().manual_seed(0)
    changes = []
    for _ in range(2000):
        moved = [f + 1e-4 * torch.randn(f.shape, generator=generator).double() for f in factors]
        changes.append(float((rebuilt(moved) - tensor).square().sum()) / 1e-8)
    told = sum(changes) / len(changes) / float(tensor.square().sum())
    assert found.sensitivity() == pytest.approx(told, rel=0.05)


def test_cp_tells_its_sensitivity() -> None:
    tensor, _, _ = border()
    text = "A[o r] B[i r] C[w r] : i w -> o | o=6 i=6 w=6 r=2"
    found = fit_structure(tensor, Structure.of(parse_network(text)), "cp-epc")
    plain = fit_structure(tensor, Structure.of(parse_network(text)), "cp-als")
    assert found.note.startswith("sensitivity ")
    assert found.error <= 1.001 * plain.error
