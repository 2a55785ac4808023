"""Golden identities of LoRA-Pro, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.adapters.single import Single, scatter, single
from tnc.adapters.factors import pair, pair_gradients
from tnc.adapters.following import follow
from tnc.adapters.methods.lora_pro import LoRAPro, adjusted, equivalent, gram, sylvester
from tnc.errors import BindError

Case = tuple[Tensor, Tensor, Tensor, float]


def case(kind: str = "full", s: float = 1.7) -> Case:
    """Return B, A, G and s."""
    generator = torch.Generator().manual_seed(1)
    b, a, g = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((9, 3), (3, 7), (9, 7))
    )
    if kind == "zero":
        b = torch.zeros_like(b)
    if kind == "deficient":
        b[:, 2], a[1] = b[:, 0] - b[:, 1], 2 * a[0]
    return b, a, g, s


def outside(left: Tensor, right: Tensor, g: Tensor) -> Tensor:
    """Return `(I - P_B) G (I - P_A)` by pseudo-inverses: another way than the code's."""
    projector_b, projector_a = left @ torch.linalg.pinv(left), torch.linalg.pinv(right) @ right
    return (torch.eye(9) - projector_b) @ g @ (torch.eye(7) - projector_a)


@pytest.mark.parametrize("kind", ["full", "zero", "deficient"])
@pytest.mark.parametrize("s", [1.0, 16 / 8**0.5])
def test_the_equivalent_gradient_is_a_projection(kind: str, s: float) -> None:
    b, a, g, s = case(kind, s)
    found = equivalent(b, a, s * g @ a.T, s * b.T @ g, s)
    assert torch.allclose(found, g - outside(b, a, g), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["full", "zero", "deficient"])
def test_it_does_not_depend_on_x(kind: str) -> None:
    b, a, g, s = case(kind)
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    g_b, g_a = adjusted(b, a, s * g @ a.T, s * b.T @ g, s, x)
    found = s * (b @ g_a + g_b @ a)
    assert torch.allclose(found, g - outside(b, a, g), rtol=0, atol=1e-10)


def test_x_solves_its_equation_and_is_nearest_to_the_plain_gradients() -> None:
    b, a, g, s = case()
    right = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = sylvester(b, a, right)
    assert float((gram(b.T) @ x + x @ gram(a) - right).norm()) < 1e-10
    g_b, g_a = s * g @ a.T, s * b.T @ g

    def distance(pair: tuple[Tensor, Tensor]) -> float:
        return float(((pair[0] - g_b) ** 2).sum() + ((pair[1] - g_a) ** 2).sum())

    best = distance(adjusted(b, a, g_b, g_a, s))
    into = torch.linalg.inv(b.T @ b) / s**2
    x = sylvester(b, a, -into @ g_a @ a.T)
    assert best == pytest.approx(distance(adjusted(b, a, g_b, g_a, s, x)), rel=1e-12)
    for number in range(3):
        noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(number)) * 0.1
        assert distance(adjusted(b, a, g_b, g_a, s, x + noise.double())) > best


def test_from_zero_it_is_the_gradient_on_the_rows_of_a() -> None:
    b, a, g, s = case("zero")
    found = equivalent(b, a, s * g @ a.T, s * b.T @ g, s)
    assert torch.allclose(found, g @ torch.linalg.pinv(a) @ a, rtol=0, atol=1e-12)


def test_inner_product_with_plain_gradients_is_the_square() -> None:
    b, a, g, s = case()
    g_b, g_a = s * g @ a.T, s * b.T @ g
    new_b, new_a = adjusted(b, a, g_b, g_a, s)
    inner = (g_b * new_b).sum() + (g_a * new_a).sum()
    square = (equivalent(b, a, g_b, g_a, s) ** 2).sum()
    assert float(inner) == pytest.approx(float(square), rel=1e-12)


def stepped(one: Single, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        one.backward()
        optimizer.step()


def test_a_step_moves_the_weight_by_the_projection() -> None:
    one = single(LoRAPro(rank=2, alpha=6.0))
    scatter(one.adapters)
    before, (b, a) = one.weight(), (t.detach().clone() for t in pair(one.delta))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1e-7)
    follow(one.adapters, optimizer)
    stepped(one, optimizer)
    expected = one.full - outside(b, a, one.full)
    assert torch.allclose((before - one.weight()) / 1e-7, expected, rtol=1e-4, atol=1e-4)


def test_adam_normalises_the_equivalent_gradient() -> None:
    """Against the algorithm written down naively, three steps, moments of the full matrix."""
    one = single(LoRAPro(rank=2, adam=True))
    scatter(one.adapters)
    b, a = (t.detach().clone() for t in pair(one.delta))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1e-2)
    follow(one.adapters, optimizer)
    stepped(one, optimizer, 3)
    m = v = torch.zeros(9, 7, dtype=torch.float64)
    for t in range(1, 4):
        g = one.full - outside(b, a, one.full)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        x = sylvester(b, a, -torch.linalg.inv(b.T @ b) @ (b.T @ u) @ a.T)
        new_a = torch.linalg.inv(b.T @ b) @ (b.T @ u) + x @ a
        rest = u @ a.T - b @ torch.linalg.pinv(b) @ u @ a.T
        new_b = rest @ torch.linalg.inv(a @ a.T) - b @ x
        b, a = b - 1e-2 * new_b, a - 1e-2 * new_a
    for ours, theirs in zip(pair(one.delta), (b, a)):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-9)


def test_adam_has_the_memory_that_it_tells_and_takes_sgd_alone() -> None:
    one = single(LoRAPro(rank=2, adam=True))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1e-2)
    follow(one.adapters, optimizer)
    stepped(one, optimizer)
    held = sum(v.numel() * v.element_size() for v in one.delta.memory.values())
    assert held == one.delta.method.memory_bytes(one.delta.site) == 2 * 9 * 7 * 8
    with pytest.raises(BindError, match="normalises gradients itself"):
        follow(one.adapters, torch.optim.Adam(one.adapters.parameters()))


def test_gradients_that_are_not_there_are_left_alone() -> None:
    one = single(LoRAPro(rank=2))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1e-2)
    follow(one.adapters, optimizer)
    optimizer.step()
    assert pair_gradients(one.delta) is None
