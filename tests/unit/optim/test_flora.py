"""Flora: what random projections keep on average, and agreement with the formula."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.optim.rules.flora import Flora, drawn


def draws(rank: int, side: int, count: int) -> list[torch.Tensor]:
    like = torch.zeros((), dtype=torch.float64)
    return [drawn({"seed": 3}, rank, side, 1, step, like) for step in range(count)]


def test_projections_are_right_on_average() -> None:
    """`E[A^T A] = 1`; the mean of 4000 is off by its own standard error."""
    found = sum(a.mT @ a for a in draws(4, 8, 4000)) / 4000
    assert float((found - torch.eye(8)).abs().max()) < 6 * (2 / 4 / 4000) ** 0.5


def test_a_new_projection_inflates_momentum() -> None:
    """`|c A A_new^T|^2` is n / r times `|c|^2` on average: 8.01 was measured at n / r = 8."""
    kept = gradients((5, 4), 1)[0]
    found = draws(4, 32, 2001)
    sizes = [float((kept @ a @ b.mT).square().sum()) for a, b in pairwise(found)]
    assert sum(sizes) / len(sizes) / float(kept.square().sum()) == pytest.approx(8, rel=0.03)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
@pytest.mark.parametrize("beta", [0.9, None])
def test_it_is_the_formula(shape: tuple[int, int], beta: float | None) -> None:
    weight, given = parameter(shape), gradients(shape, 9)
    tall = shape[0] >= shape[1]
    w = weight.detach().clone() if tall else weight.detach().clone().mT
    m, n = w.shape
    rows, columns = torch.zeros(m, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    c = torch.zeros(m, 3, dtype=torch.float64)
    b = beta or 0.0
    for t, gradient in enumerate(given, 1):
        g = gradient if tall else gradient.mT
        second = 1 - t**-0.8
        rows = second * rows + (1 - second) * (g**2 + 1e-30).mean(1)
        columns = second * columns + (1 - second) * (g**2 + 1e-30).mean(0)
        u = g / (rows[:, None] * columns / rows.mean()).sqrt()
        a = drawn({"seed": 5}, 3, n, 4, t - 1, w)
        change = (1 - b) * u + b * c @ a
        if t % 4 == 0:
            new = drawn({"seed": 5}, 3, n, 4, t, w)
            c, a = c @ a @ new.mT, new
        c = b * c + (1 - b) * u @ a.mT
        change = change / max(1.0, float(change.square().mean().sqrt()))
        w = w - 0.05 * max(1e-3, float(w.square().mean().sqrt())) * change
    rule = Flora([weight], lr=0.05, rank=3, update_every=4, beta=beta, seed=5)
    found = run(rule, weight, given)
    assert apart(found, w if tall else w.mT) < 1e-13
    assert ("momentum" in rule.state[weight]) == (beta is not None)


def test_state_has_a_seed_and_no_projection() -> None:
    weight = parameter((9, 6))
    rule = Flora([weight], rank=3)
    run(rule, weight, gradients((9, 6), 2))
    tensors = {slot for slot, value in rule.state[weight].items() if torch.is_tensor(value)}
    assert tensors == {"step", "momentum", "row_var", "col_var"}


def test_what_is_read_is_written() -> None:
    weight = parameter((9, 6))
    rule = Flora([weight], rank=3)
    run(rule, weight, gradients((9, 6), 3))
    state, group = rule.state[weight], rule.param_groups[0]
    again = rule.write(rule.read(state, weight, group), weight, group)
    assert apart(again["row_var"], state["row_var"]) < 1e-14
    assert (
        apart(
            again["col_var"] / again["col_var"].mean(), state["col_var"] / state["col_var"].mean()
        )
        < 1e-14
    )
