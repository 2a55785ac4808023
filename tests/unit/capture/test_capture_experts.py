"""Stacks of experts: one site, whatever way their matrices are picked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.zoo import case
from tnc.capture import capture, measure
from tnc.net import Signature

CASES = ("mixture", "mixture-by-expert", "mixture-gathered")


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_pick_experts_is_the_same_site(name: str) -> None:
    model = case(name).build()
    args, kwargs = case(name).inputs()
    trace = capture(model, args, kwargs, graph=False)
    up = trace.site("model.layers.0.mlp.experts.gate_up_proj")
    down = trace.site("model.layers.0.mlp.experts.down_proj")
    assert up.signature == Signature((4, 48), (16,)) and down.signature == Signature((4, 16), (24,))
    assert up.op == "experts" and up.rebuilt and not up.transposed
    assert up.work.rows == 7  # 14 tokens, two experts each, a quarter of the stack a row
    assert up.cost.flops == 2 * 28 * 48 * 16
    assert not trace.untraced


def test_their_inputs_are_measured_together() -> None:
    found = []
    for name in CASES:
        model = case(name).build()
        args, kwargs = case(name).inputs()
        trace = capture(model, args, kwargs, graph=False)
        batch = {"input_ids": kwargs["input_ids"]}
        made = measure(model, trace.sites, [batch], gradients=_probe)
        found.append(made.of("model.layers.0.mlp.experts.gate_up_proj"))
        assert any("measured together" in note for note in made.notes)
    for other in found[1:]:
        assert other.rows == found[0].rows == 28
        torch.testing.assert_close(other.moment, found[0].moment, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(other.outputs, found[0].outputs, rtol=1e-4, atol=1e-9)
    assert found[0].outputs.shape == (4 * 48,)


def _probe(output, batch, generator):
    return output.logits.square().sum()


class Stored(nn.Module):
    """Experts stored inputs first and run in one product, a part of a stack, heads of a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 6, 8) / 3)
        self.second = nn.Parameter(torch.randn(3, 5, 8) / 3)
        self.part = nn.Parameter(torch.randn(3, 5, 8) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.bmm(torch.bmm(x, self.first), self.second.transpose(1, 2))
        return y + torch.bmm(x, self.part[:, :, :6].transpose(1, 2))


def test_experts_stored_inputs_first() -> None:
    model, x = Stored(), torch.randn(3, 4, 6)
    trace = capture(model, (x,), graph=False)
    first, second = trace.site("first"), trace.site("second")
    assert first.transposed and first.signature == Signature((3, 8), (6,))
    assert not second.transposed and second.signature == Signature((3, 5), (8,))
    assert "only a part" in dict(trace.untraced)["part"]
    structure = {"kind": "free-form", "equation": "B[e o r] A[e r i] : i -> e o"}
    rule = {"match": ["first", "second"], "structure": structure, "ranks": "full"}
    made = tnc.compile(model, tnc.Spec(version=1, rules=[rule]), example=((x,), {}))
    torch.testing.assert_close(made.model(x), model(x))
    torch.testing.assert_close(tnc.densify(made.model)(x), model(x))
    layer = made.model.second_structure
    torch.testing.assert_close(layer(x @ model.first), x @ model.first @ model.second.mT)
