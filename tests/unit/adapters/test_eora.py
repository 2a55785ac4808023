"""EoRA: the error that stays is the smallest that its rank allows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.laws.adapters_data import compressed
from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.eora import EoRA
from tnc.errors import PlanError

RANK = 3


def lossy(*shape: int) -> tuple[Tensor, Tensor]:
    """A weight, and the same rounded."""
    weight = drawn(*shape)
    return weight, (weight * 1.5).round() / 1.5


def inputs_of(size: int, seen: int) -> Tensor:
    """Inputs (n, size) of unequal variance that leave directions out where `seen` is less."""
    scales = 3.0 ** -torch.arange(float(size), dtype=torch.float64)
    return drawn(40, seen, seed=3) @ (drawn(seen, size, seed=4) * scales)


@pytest.mark.parametrize("alpha", [None, 7.0])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
@pytest.mark.parametrize("seen", [12, 4])
def test_error_is_the_smallest(alpha: float | None, shape: tuple[int, int], seen: int) -> None:
    weight, now = lossy(*shape)
    x = inputs_of(shape[1], seen)
    moment = x.T @ x / len(x)
    method = EoRA(rank=RANK, alpha=alpha)
    cores = parts_of(method, now, moment=moment, original=weight).cores
    lost = weight - now
    found = float(((lost - method.factor(site_of(*shape)) * cores["B"] @ cores["A"]) @ x.T).norm())
    tail = torch.linalg.svdvals(lost @ x.T)[RANK:]
    assert abs(found - float(tail.norm())) < 1e-5 * float((lost @ x.T).norm())
    plain = float(((lost - best(lost, RANK)) @ x.T).norm())
    assert found < 0.9 * plain
    assert near(cores["B"].norm(dim=0), (alpha or RANK) / RANK * cores["A"].norm(dim=1))


def test_is_the_paper_s_product() -> None:
    """`SVD(dW Q sqrt(L))` with eigenvectors of `E[x x^T]`, then `L^-1/2 Q^T` on the right."""
    weight, now = lossy(12, 9)
    x = drawn(40, 9, seed=3) * torch.arange(1, 10)
    moment = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(moment)
    scaled = (weight - now) @ vectors * values.sqrt()
    paper = best(scaled, RANK) / values.sqrt() @ vectors.T
    cores = parts_of(EoRA(rank=RANK), now, moment=moment, original=weight).cores
    assert near(cores["B"] @ cores["A"], paper, 1e-7)
    assert not near(cores["B"] @ cores["A"], best(weight - now, RANK), 0.1)


def test_degenerate_moments_and_residuals_are_safe() -> None:
    weight, now = lossy(8, 6)
    zero = torch.zeros(6, 6).double()
    cores = parts_of(EoRA(rank=RANK), now, moment=zero, original=weight).cores
    assert near(cores["B"] @ cores["A"], best(weight - now, RANK), 1e-7)
    one = zero.clone()
    one[2, 2] = 1.0
    cores = parts_of(EoRA(rank=RANK), now, moment=one, original=weight).cores
    error = (weight - now - cores["B"] @ cores["A"])[:, 2]
    assert float(error.norm()) < 1e-6
    same = parts_of(EoRA(rank=RANK), weight, moment=one, original=weight).cores
    assert not (same["B"] @ same["A"]).any()
    assert float(same["B"].norm() + same["A"].norm()) > 1, "it can still be trained"
    diagonal = torch.rand(6, generator=torch.Generator().manual_seed(0)).double()
    cores = parts_of(EoRA(rank=RANK), now, moment=diagonal, original=weight).cores
    wanted = best((weight - now) * diagonal.sqrt(), RANK) / diagonal.sqrt()
    assert near(cores["B"] @ cores["A"], wanted, 1e-6)


def test_embeddings_count_rows_as_they_are_looked_up() -> None:
    weight, now = lossy(11, 6)
    shares = torch.arange(11.0).double() / 55
    site = site_of(11, 6, op="embedding")
    cores = parts_of(EoRA(rank=RANK), now, site, moment=shares, original=weight).cores
    left = (weight - now - cores["B"] @ cores["A"]) * shares.sqrt()[:, None]
    tail = torch.linalg.svdvals((weight - now) * shares.sqrt()[:, None])[RANK:]
    assert abs(float(left.norm() - tail.norm())) < 1e-6


def test_experts_and_kernels() -> None:
    weight, now = lossy(3, 7, 6)
    x = inputs_of(6, 6)
    site = site_of(3, 7, 6, op="experts", outputs=2)
    cores = parts_of(EoRA(rank=2), now, site, moment=x.T @ x, original=weight).cores
    for e in range(3):
        lost = weight[e] - now[e]
        error = (lost - cores["B"][e] @ cores["A"][e]) @ x.T
        assert abs(float(error.norm() - torch.linalg.svdvals(lost @ x.T)[2:].norm())) < 1e-4
    weight, now = lossy(6, 4, 3, 3)
    cores = parts_of(EoRA(rank=2), now, moment=torch.eye(36).double(), original=weight).cores
    assert cores["A"].shape == (2, 4, 3, 3)
    lost = (weight - now).reshape(6, -1)
    assert near(cores["B"] @ cores["A"].reshape(2, -1), best(lost, 2), 1e-7)


def test_a_compressed_model_comes_nearer_to_the_original() -> None:
    """On cores: the first layer's error on its inputs is what theory says, outputs come nearer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6))
    rules = [{"match": "*", "structure": "low-rank", "keep": 0.5}]
    small = tnc.compile(
        net, tnc.Spec(version=1, round_to=1, rules=rules), example=torch.ones(3, 12)
    )
    base = small.model.double()
    net = net.double()
    x = drawn(30, 12) * torch.arange(1, 13)
    found = [base]
    for rank in (1, 2, 4):
        tuned = tnc.adapt(base, f"eora{{rank={rank}}}", calibration=[x[:15], x[15:]], original=net)
        lost = (net[0].weight - tuned.weight("0.weight")).detach()
        before = net[0].weight.detach() - base[0].weight.detach()
        tail = torch.linalg.svdvals(before @ x.T)[rank:]
        assert abs(float((lost @ x.T).norm() - tail.norm())) < 1e-5 * float((before @ x.T).norm())
        found.append(tuned.model)
    errors = [float((model(x) - net(x)).detach().norm()) for model in found]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * errors[0]


def test_rounded_weights_of_a_dense_model() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv1d(6, 4, 3)).double()
    rounded = copy.deepcopy(net)
    with torch.no_grad():
        for p in rounded.parameters():
            p.copy_((p * 4).round() / 4)
    x = drawn(4, 3, 10)
    tuned = tnc.adapt(rounded, "eora{rank=3}", calibration=[x], original=net)
    before, after = (float((m(x) - net(x)).detach().norm()) for m in (rounded, tuned.model))
    assert after < 0.7 * before


def refitted(*layers: nn.Module, keep: float = 0.4) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A net, the same with every layer fitted to what those before it leave, and its data."""
    torch.manual_seed(0)
    net = nn.Sequential(*layers).double()
    x = [drawn(200, 16, seed=n) * torch.arange(1, 17) / 8 for n in range(5)]
    spec = tnc.Spec(
        version=1,
        round_to=1,
        rules=[{"match": "*", "structure": "low-rank", "keep": keep}],
        passes=[{"kind": "factorize", "refit": 0.01}],
    )
    return net, tnc.compile(net, spec, calibration=x).model.double(), x


def test_toward_the_output_repairs_what_was_fitted_to_its_inputs() -> None:
    net, small, x = refitted(
        nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 8)
    )
    rows = drawn(300, 16, seed=9) * torch.arange(1, 17) / 8

    def error(model: nn.Module) -> float:
        return float((model(rows) - net(rows)).detach().norm() / net(rows).detach().norm())

    found = {
        toward: error(
            tnc.adapt(small, f"eora{{rank=2, toward={toward}}}", calibration=x, original=net).model
        )
        for toward in ("weight", "output")
    }
    assert found["output"] < 0.9 * error(small)
    assert found["output"] < found["weight"]


def test_toward_the_output_is_reduced_rank_regression_after_the_layers_before() -> None:
    net, small, x = refitted(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
    tuned = tnc.adapt(small, "eora{rank=2, toward=output}", calibration=x, original=net)
    data = torch.cat(x)
    with torch.no_grad():
        wanted = net(data)
        inputs = torch.tanh(tuned.model[0](data))  # with the first layer's delta
        left = wanted - small[2](inputs)
        whole = torch.linalg.lstsq(inputs, left).solution
        tail = torch.linalg.svdvals(inputs @ whole)[2:]
        least = ((left - inputs @ whole).square().sum() + tail.square().sum()).sqrt()
        found = (wanted - tuned.model(data)).norm()
    assert float(found) >= float(least) * (1 - 1e-9)
    assert float(found) < 1.001 * float(least)


def test_toward_the_output_refuses_what_is_no_one_layer() -> None:
    net = nn.ModuleDict({"e": nn.Embedding(5, 4), "f": nn.Linear(4, 4)})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = net

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.held["f"](self.held["f"](self.held["e"](ids)))
            return y

    with pytest.raises(PlanError, match="called once"):
        tnc.adapt(
            Net(),
            "eora{rank=1, toward=output}",
            calibration=[torch.arange(5)],
            original=Net(),
        )


def test_messages() -> None:
    base, x = compressed(), torch.ones(3, 12)
    with pytest.raises(PlanError, match="no original model"):
        tnc.adapt(base, "eora{rank=1}", calibration=[x])
    with pytest.raises(PlanError, match="no calibration data"):
        tnc.adapt(base, "eora{rank=1}", example=x, original=base)
    other = nn.Sequential(nn.Linear(12, 11), nn.Tanh(), nn.Linear(11, 6))
    with pytest.raises(PlanError, match=r"in the original it is \(11, 12\)"):
        tnc.adapt(base, "eora{rank=1}", calibration=[x], original=other)
    grouped = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2))
    with pytest.raises(PlanError, match="in groups"):
        tnc.adapt(grouped, "eora{rank=1}", calibration=[torch.ones(1, 4, 5)], original=grouped)
