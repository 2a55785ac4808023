"""Which matrix a parameter is read as, and the type that Newton-Schulz runs in."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from tests.unit.optim.given import drawn, near, run
from tnc.optim import matrices
from tnc.optim.matrices import as_matrix, iterated_in, matrix_cut, matrix_shape
from tnc.optim.rule import rules
from tnc.optim.rules.muon import Muon

TWO, THREE = nn.Conv2d, nn.Conv3d
KERNELS = [
    TWO(3, 8, 3),
    TWO(3, 64, 7),
    TWO(3, 192, 16, stride=16),
    TWO(16, 16, 3, groups=16),
    TWO(64, 256, 1),
    TWO(2, 16, (1, 7)),
    THREE(3, 32, 3),
    nn.Conv1d(6, 8, 5),
]


@pytest.mark.parametrize("layer", KERNELS, ids=lambda layer: str(tuple(layer.weight.shape)))
def test_a_kernel_is_outputs_by_the_rest(layer: nn.Module) -> None:
    weight = layer.weight.detach()
    assert torch.equal(as_matrix(weight), weight.flatten(1))


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((1, 16, 16, 4), 2),
        ((4, 8, 8, 4), 2),
        ((8, 8, 8, 8), 2),
        ((16, 8, 16, 16), 2),
        ((27, 27, 27, 27), 2),
        ((4, 64, 1), 1),
        ((2, 9, 9, 9), 2),
    ],
)
def test_a_core_is_cut_nearest_to_square(shape: tuple[int, ...], cut: int) -> None:
    assert matrix_cut(shape) == cut
    cuts = [min(prod(shape[:k]), prod(shape[k:])) for k in range(1, len(shape))]
    assert min(matrix_shape(shape)) == max(cuts)


@pytest.mark.parametrize(
    "name", ["muon", "asgo", "dion", "galore", "gradnorm-lorp", "trust-region"]
)
def test_a_rule_trains_a_kernel_as_its_matrix(name: str) -> None:
    kind = rules.get(name)
    options = {"lr": 0.01} | {key: 2 for key in ("rank", "update_every") if key in kind.options()}
    start = drawn(1, 8, 3, 3, 3)[0]
    gradients = drawn(4, 8, 3, 3, 3, seed=1)
    found, _ = run(lambda p: kind(p, **options), start, gradients)
    flat, _ = run(lambda p: kind(p, **options), start.flatten(1), [g.flatten(1) for g in gradients])
    near(found.flatten(1), flat, 1e-12)


def test_the_type_of_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = torch.zeros(200, 300), torch.zeros(40, 300)
    monkeypatch.setattr(matrices, "_multiplies_bfloat16", lambda: True)
    assert iterated_in(large, "auto") is torch.bfloat16
    assert iterated_in(small, "auto") is iterated_in(large, "float32") is torch.float32
    assert iterated_in(large.double(), "auto") is torch.float64
    assert iterated_in(small, "bfloat16") is torch.bfloat16
    monkeypatch.setattr(matrices, "_multiplies_bfloat16", lambda: False)
    assert iterated_in(large, "auto") is torch.float32


@pytest.mark.parametrize("name", ["muon", "root", "trust-region", "lanton"])
def test_both_precisions_take_nearly_the_same_steps(name: str) -> None:
    start = torch.zeros(24, 16)
    gradients = [g.float() for g in drawn(5, 24, 16)]
    found = {
        precision: run(lambda p, o=precision: rules.get(name)(p, precision=o), start, gradients)[0]
        for precision in ("float32", "bfloat16")
    }
    apart = (found["float32"] - found["bfloat16"]).norm() / found["float32"].norm()
    assert 1e-5 < float(apart) < 3e-2


def test_muon_in_bfloat16_takes_the_steps_of_torch() -> None:
    """Closer than in float32: both iterate in the same type."""
    start = torch.randn(32, 48, generator=torch.Generator().manual_seed(2))
    gradients = [g.float() for g in drawn(10, 32, 48)]
    expected, _ = run(lambda p: torch.optim.Muon(p, lr=0.02), start, gradients)
    apart = {}
    for precision in ("float32", "bfloat16"):
        found, _ = run(lambda p, o=precision: Muon(p, lr=0.02, precision=o), start, gradients)
        apart[precision] = float((found - expected).norm() / (expected - start).norm())
    assert apart["bfloat16"] < apart["float32"] < 1e-2
