"""Golden identities of LoQT and of its blocks of four bits, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.laws.adapters_data import CASES
from tests.unit.adapters.single import Single, scatter, single
from tnc.adapters import adapt
from tnc.adapters.factors import pair
from tnc.adapters.following import follow
from tnc.adapters.methods.loqt import LoQT
from tnc.adapters.quantised import LEVELS, quantised, restored
from tnc.errors import PlanError


def base(one: Single) -> torch.Tensor:
    return one.delta.method.base(one.delta, one.base)


def test_levels_are_those_of_the_paper() -> None:
    """QLoRA's appendix E, to its printed digits."""
    printed = (
        "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
        "-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 "
        "0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 "
        "0.7229568362236023 1.0"
    )
    assert pytest.approx([float(word) for word in printed.split()], abs=1e-6) == LEVELS


@pytest.mark.parametrize(("count", "block"), [(128, 64), (63, 64), (65, 64), (7, 3), (5, 1)])
def test_blocks_give_the_nearest_level(count: int, block: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes, scales = quantised(values, block)
    assert codes.dtype == torch.uint8
    assert len(codes) == (-(-count // block) * block + 1) // 2
    found = restored(codes, scales, (count,), block)
    table = torch.tensor(LEVELS, dtype=torch.float64)
    for start in range(0, count, block):
        part = values[start : start + block]
        top = part.abs().max()
        nearest = table[(part.unsqueeze(1) / top - table).abs().argmin(1)] * top
        assert torch.allclose(found[start : start + block], nearest, rtol=1e-14, atol=0)
    again, same = quantised(found, block)
    assert torch.equal(restored(again, same, (count,), block), found)
    assert not restored(*quantised(torch.zeros(5), 2), (5,), 2).any()


def test_compensation_is_the_least_squares_fit_and_lowers_the_error() -> None:
    errors = []
    for count in (0, 1, 5):
        one = single(LoQT(rank=2, iterations=count, alpha=0.5, block=8))
        errors.append(float((one.weight() - one.base).norm()))
        b, a = pair(one.delta)
        if not count:
            assert not b.any()
            continue
        fit = torch.linalg.lstsq(0.5 * a.T, (one.base - base(one)).T).solution.T
        assert torch.allclose(b, fit, rtol=0, atol=1e-10)
    assert errors[1] < errors[0]
    assert errors[2] <= errors[1]


def test_a_step_is_galores() -> None:
    """An SGD step on B moves W by `s^2 G P^T P`, P the leading singular vectors of G."""
    one = single(LoQT(rank=2, alpha=1.5))
    before = one.weight()
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.1)
    follow(one.adapters, optimizer)
    one.backward()
    optimizer.step()
    right = torch.linalg.svd(one.full)[2][:2]
    expected = -0.1 * 1.5**2 * one.full @ right.T @ right
    assert torch.allclose(one.weight() - before, expected, rtol=0, atol=1e-10)


def test_schedules() -> None:
    static, growing = LoQT(gap=3), LoQT(gap=3, growth=2.0)
    assert [t for t in range(1, 20) if static.due(t)] == [3, 6, 9, 12, 15, 18]
    assert [t for t in range(1, 40) if growing.due(t)] == [4, 9, 16, 27]


def test_merging_takes_up_the_steps_and_moves_moments() -> None:
    """With blocks of one entry quantising is exact, so merging loses nothing at all."""
    one = single(LoQT(rank=2, block=1, gap=3, iterations=0))
    assert torch.allclose(one.weight(), one.base, rtol=1e-14, atol=0)
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.01, momentum=0.9)
    followed = follow(one.adapters, optimizer)
    core = one.delta.cores["B"]

    def step(scale: torch.Tensor) -> None:
        for parameter in one.adapters.parameters():
            parameter.grad = None
        (one.adapters.model(one.x) * one.target * scale).sum().backward()

    generator = torch.Generator().manual_seed(0)
    scales = [torch.rand(12, 9, generator=generator).double() for _ in range(3)]
    for scale in scales[:2]:
        step(scale)
        optimizer.step()
    step(scales[2])
    moment = 0.9 * optimizer.state[core]["momentum_buffer"] + core.grad
    reference = copy.deepcopy(one.delta)
    old = pair(reference)[1].detach()
    expected = one.weight() - 0.01 * moment @ old
    optimizer.step()
    gradient = (one.target * scales[2]).T @ one.x
    new = pair(one.delta)[1]
    assert torch.allclose(one.weight(), expected, rtol=0, atol=1e-12)
    assert not pair(one.delta)[0].any()
    top = torch.linalg.svd(gradient)[2][:2]
    assert torch.allclose(new.T @ new, top.T @ top, rtol=0, atol=1e-10)
    moved = optimizer.state[core]["momentum_buffer"]
    assert torch.allclose(moved, moment @ old @ new.T, rtol=0, atol=1e-12)
    assert followed.events[0][0] == 3
    assert "merged, requantised with relative error" in followed.events[0][2]
    assert one.delta.probe is None
    assert torch.equal(next(iter(one.adapters.model.parameters())), one.base)


def test_dropped_moments_say_so() -> None:
    one = single(LoQT(rank=2, gap=2, moments="dropped"))
    optimizer = torch.optim.Adam(one.adapters.parameters(), lr=0.01)
    followed = follow(one.adapters, optimizer)
    for _ in range(2):
        one.backward()
        optimizer.step()
    assert "state dropped: B" in followed.events[0][2]
    assert not optimizer.state[one.delta.cores["B"]]


def test_a_gradient_that_is_not_finite_puts_merging_off() -> None:
    one = single(LoQT(rank=2, gap=2))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.01)
    followed = follow(one.adapters, optimizer)
    one.backward()
    optimizer.step()
    assert one.delta.probe is not None
    one.backward()
    one.delta.probe.grad.fill_(torch.nan)
    optimizer.step()
    assert followed.events == [(2, "weight", "merging put off: no finite gradient of the weight")]
    one.backward()
    optimizer.step()
    assert followed.events[1][2].startswith("merged")


@pytest.mark.parametrize("case", ["conv", "tied", "experts", "attention", "transposed"])
def test_every_kind_of_weight_merges(case: str) -> None:
    torch.manual_seed(0)
    model = CASES[case].make().double()
    x = CASES[case].draw()
    x = x.double() if x.is_floating_point() else x
    found = adapt(
        model,
        LoQT(rank=2, block=1, gap=2, iterations=0),
        calibration=[x],
        loss=lambda y, batch: (y**2).mean(),
    )
    scatter(found, 0.05)
    optimizer = torch.optim.Adam(found.parameters(), lr=0.0)
    followed = follow(found, optimizer)
    y = found.model(x).detach()
    for _ in range(2):
        (found.model(x) ** 2).mean().backward()
        optimizer.step()
    assert len(followed.events) == len(found.deltas())
    assert torch.allclose(found.model(x), y, rtol=1e-9, atol=1e-10)


def test_refusals() -> None:
    with pytest.raises(PlanError, match="alpha"):
        LoQT(alpha=0.0)
    model = CASES["compressed"].make().double()
    with pytest.raises(PlanError, match="a base of cores has no entries"):
        adapt(
            model,
            LoQT(rank=2),
            calibration=[CASES["compressed"].draw().double()],
            loss=lambda y, batch: (y**2).mean(),
        )
    one = single(LoQT(rank=2))
    scatter(one.adapters)
    with one.adapters.disabled():
        assert torch.equal(one.adapters.model(one.x), one.x @ one.base.T)
