"""A weight as a sum of structures: planned, fitted, saved, reloaded like any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tnc.decide.options import build, print_option
from tnc.fit import Metric, fit_structure
from tnc.net import Signature
from tnc.structures import families

SUMS = ("low-rank + kronecker", "tucker{factors=2} + low-rank")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 40))


@pytest.mark.parametrize("text", SUMS)
def test_a_sum_is_planned_fitted_saved_and_reloaded(text: str, tmp_path) -> None:
    spec = tnc.Spec(version=1, rules=[{"match": "*", "structure": text}], budget={"params": 0.6})
    example = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    made = tnc.compile(model(), spec, example=example, calibration=[example])
    structured = [entry for entry in made.plan.entries if entry.structure is not None]
    assert structured and all(len(entry.structure.terms) == 2 for entry in structured)
    assert {entry.family for entry in structured} == {text}
    found = sum(p.numel() for p in made.model.parameters())
    assert found == made.plan.total.params
    folder = tnc.save(made, tmp_path / "out")
    again = tnc.load(folder, model=model())
    torch.testing.assert_close(again(example), made.model(example), rtol=1e-5, atol=1e-6)
    assert str(again[0].structure if hasattr(again[0], "structure") else again[2].structure)


@pytest.mark.parametrize("text", SUMS)
def test_text_forms_round_trip(text: str) -> None:
    assert print_option(families, build(families, text)) == text


def test_the_fit_by_turns_beats_each_term_alone_and_never_rises() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = draw(24, 3) @ draw(3, 36) + torch.kron(draw(4, 6), draw(6, 6))
    template = build(families, "low-rank + kronecker").template(Signature((24,), (36,)))
    structure = template.at({"r": 3, "k": 1})
    inputs = draw(100, 36)
    for metric in (Metric(), Metric(inputs.T @ inputs)):
        error = fit_structure(weight, structure, "sum", metric).error
        alone = [
            fit_structure(weight, type(structure)(structure.signature, (term,)), "auto", metric)
            for term in structure.terms
        ]
        assert error < 0.5 * min(fitted.error for fitted in alone)
