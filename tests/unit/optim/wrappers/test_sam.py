"""SAM and GAM on quadratic losses, and their balls in factor and in weight space."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tnc.binding import WeightBall
from tnc.errors import BindError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.optim.wrappers.ball import Euclidean
from tnc.optim.wrappers.gam import GAM
from tnc.optim.wrappers.sam import SAM


def quadratic() -> tuple[nn.Parameter, Tensor]:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    return nn.Parameter(torch.randn(6, dtype=torch.float64)), root @ root.mT / 6


def closure(wrapped: SAM | GAM, w: nn.Parameter, h: Tensor):  # type: ignore[no-untyped-def]
    def loss() -> Tensor:
        wrapped.zero_grad()
        found = w @ h @ w / 2
        found.backward()
        return found

    return loss


def test_sam_adds_the_hessian_along_the_gradient() -> None:
    w, h = quadratic()
    before = w.detach().clone()
    sam = SAM(torch.optim.SGD([w], lr=1.0), rho=0.3)
    loss = sam.step(closure(sam, w, h))
    gradient = h @ before
    wanted = gradient + 0.3 * h @ gradient / gradient.norm()
    assert float((before - w - wanted).detach().abs().max()) < 1e-14
    assert float(loss.detach()) == float(before @ h @ before / 2)


def test_gam_adds_the_gradient_of_the_largest_gradient_norm() -> None:
    w, h = quadratic()
    before = w.detach().clone()
    gam = GAM(torch.optim.SGD([w], lr=1.0), rho=0.3, strength=0.7, reach=0.5)
    gam.step(closure(gam, w, h))
    gradient = h @ before
    bend = h @ gradient / gradient.norm()
    far = h @ (before + 0.3 * bend / bend.norm())
    wanted = gradient + 0.7 * 0.3 * h @ far / far.norm()
    assert float((before - w - wanted).detach().abs().max()) < 1e-13


def test_without_a_radius_it_is_the_optimizer() -> None:
    w, h = quadratic()
    twin = nn.Parameter(w.detach().clone())
    sam = SAM(torch.optim.AdamW([w]), rho=0.0)
    adam = torch.optim.AdamW([twin])
    for _ in range(3):
        sam.step(closure(sam, w, h))
        adam.zero_grad()
        (twin @ h @ twin / 2).backward()
        adam.step()
    assert torch.equal(w, twin)


def test_parameters_come_back_after_an_error() -> None:
    w, h = quadratic()
    before = w.detach().clone()
    sam = SAM(torch.optim.SGD([w], lr=1.0), rho=0.3)
    first = closure(sam, w, h)
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return first()

    with pytest.raises(RuntimeError, match="out of memory"):
        sam.step(loss)
    assert torch.equal(w, before)
    with pytest.raises(BindError, match="rho is -1"):
        SAM(torch.optim.SGD([w]), rho=-1.0)
    with pytest.raises(BindError, match="nearby points"):
        sam.step(None)  # type: ignore[arg-type]


def layer() -> StructuredLayer:
    torch.manual_seed(0)
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=4 r=2 i=5"))
    cores = {"B": 3 * torch.randn(4, 2).double(), "A": torch.randn(2, 5).double() / 5}
    return StructuredLayer(structure, LinearView(), cores, torch.zeros(4).double())


def test_the_weight_ball_moves_weights_along_the_tangent_gradient() -> None:
    made = layer()
    b, a = made.cores["B"], made.cores["A"]
    dense, slope = torch.randn(4, 5).double(), torch.randn(4).double()
    given = {b: dense @ a.detach().mT, a: b.detach().mT @ dense, made.bias: slope}
    found = WeightBall(made, 60).ascent(given)  # type: ignore[arg-type]
    with torch.no_grad():
        moved = found[b] @ a + b @ found[a]
        left = b @ torch.linalg.inv(b.mT @ b) @ b.mT
        right = a.mT @ torch.linalg.inv(a @ a.mT) @ a
        tangent = left @ dense + dense @ right - left @ dense @ right
        size = (tangent.square().sum() + slope.square().sum()).sqrt()
        assert float((moved - tangent / size).abs().max()) < 1e-10
        assert float((found[made.bias] - slope / size).abs().max()) < 1e-10  # type: ignore[index]


def test_the_weight_ball_does_not_see_the_gauge() -> None:
    made = layer()
    b, a = made.cores["B"], made.cores["A"]
    dense = torch.randn(4, 5).double()
    weights, factors = [], []
    for scale in (1.0, 10.0):
        with torch.no_grad():
            b.mul_(scale)
            a.div_(scale)
            given = {b: dense @ a.mT, a: b.mT @ dense}
            for ball, kept in ((WeightBall(made, 60), weights), (Euclidean(), factors)):
                found = ball.ascent(given)  # type: ignore[attr-defined]
                kept.append(found[b] @ a + b @ found[a])
    assert float((weights[0] - weights[1]).abs().max()) < 1e-8
    assert float((factors[0] - factors[1]).abs().max()) > 1e-2


def test_sam_trains_cores_in_the_weight_ball() -> None:
    made = layer()
    x, y = torch.randn(9, 5).double(), torch.randn(9, 4).double()
    sam = SAM(torch.optim.SGD(made.parameters(), lr=0.02), rho=0.05, ball=WeightBall(made))

    def loss() -> Tensor:
        sam.zero_grad()
        found = (made(x) - y).square().mean()
        found.backward()
        return found

    losses = [float(sam.step(loss).detach()) for _ in range(15)]
    assert losses[-1] < losses[0]
