"""Muon: its range of singular values, and agreement with `torch.optim.Muon`."""

from __future__ import annotations

import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from tests.unit.optim.given import conditioned, drawn, near, run
from tnc.optim.matrices import QUINTIC, newton_schulz
from tnc.optim.rules.muon import Muon


def mapped(values: torch.Tensor) -> torch.Tensor:
    a, b, c = QUINTIC
    for _ in range(5):
        values = values * (a + b * values**2 + c * values**4)
    return values


def test_the_scalar_map_lies_within_its_measured_range() -> None:
    found = mapped(torch.linspace(0.005, 1, 20001, dtype=torch.float64))
    assert abs(float(found.min()) - 0.682) < 1e-3
    assert abs(float(found.max()) - 1.154) < 1e-3
    slope = float(mapped(torch.tensor(1e-9, dtype=torch.float64)) / 1e-9)
    assert abs(slope - QUINTIC[0] ** 5) < 1e-6 * slope  # 485: the steepness at zero


def test_singular_values_of_conditioned_matrices_end_within_the_range() -> None:
    for shape in [(96, 96), (192, 48), (48, 192)]:
        made = conditioned(*shape, lowest=0.05)
        values = torch.linalg.svdvals(newton_schulz(made))
        assert float(values.min()) >= 0.67 and float(values.max()) <= 1.21
        near(newton_schulz(made).mT, newton_schulz(made.mT.contiguous()), 1e-12)


def test_point_seven_always_is_false() -> None:
    """A square Gaussian has values below .0015 of its norm, which five iterations do not lift."""
    made = torch.randn(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(newton_schulz(made))
    assert float(values.min()) < 0.3
    assert 0.03 < float((values < 0.7).double().mean()) < 0.25
    assert float(values.max()) < 1.21


def test_iteration_is_that_of_torch_in_its_precision() -> None:
    for shape in [(32, 48), (48, 32), (40, 40)]:
        made = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        theirs = _zeropower_via_newtonschulz(made, QUINTIC, 5, 1e-7)
        ours = newton_schulz(made, dtype=torch.bfloat16)
        near(ours.double(), theirs.double(), 5e-2)


def test_twenty_steps_are_those_of_torch() -> None:
    """Theirs iterates in bfloat16, ours in float32 on a CPU: they agree to bfloat16's precision."""
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    for shape, theirs, ours in [
        ((32, 48), "original", "original"),
        ((48, 32), "original", "original"),
        ((48, 32), "match_rms_adamw", "rms"),
    ]:
        start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        gradients = [g.float() for g in drawn(20, *shape)]
        expected, _ = run(
            lambda p, theirs=theirs: torch.optim.Muon(p, adjust_lr_fn=theirs, **options),  # type: ignore[arg-type]
            start,
            gradients,
        )
        found, _ = run(
            lambda p, ours=ours: Muon(p, adjust=ours, **options),  # type: ignore[arg-type]
            start,
            gradients,
        )
        near(found - start, expected - start, 1e-2)
