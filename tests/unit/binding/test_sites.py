"""State reaches the cores of every structure at every kind of site: against their own gradients.

What was compiled is made dense again, so that both models have the same weights. A gradient of the
dense one that is pulled to the cores must be the one that the cores get by themselves; with a rate
of zero a momentum after one step is that gradient too. This holds for layouts, paddings, ties and
names at once.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import tnc
from tests.zoo import case

LOW = {"linear": "low-rank", "conv": "tucker", "embedding": "low-rank"}
TRAIN = {"linear": "tensor-train", "conv": "tensor-train", "embedding": "tensor-train"}
BLOCKS = {"linear": "block-tensor-train", "conv": "kronecker", "embedding": "tucker"}
SUMS = {
    "linear": 'sum{terms=["low-rank", "sparse"]}',
    "conv": 'sum{terms=["tucker", "sparse"]}',
    "embedding": "low-rank",
}
SPARSE = {"linear": "sparse", "conv": "sparse", "embedding": "sparse"}
CANONICAL = {"linear": "cp", "conv": "tucker-cp", "embedding": "low-rank"}

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

MEMBERS = {
    "attention-low": ("attention", LOW),
    "attention-train": ("attention", TRAIN),
    "convolutions-low": ("convolutions", LOW),
    "convolutions-train": ("convolutions", TRAIN),
    "crossed-blocks": ("crossed", BLOCKS),
    "functional-low": ("functional", LOW),
    "functional-train": ("functional", TRAIN),
    "gpt2-low": ("gpt2", LOW),
    "gpt2-sums": ("gpt2", SUMS),
    "mixture-gathered-low": ("mixture-gathered", LOW),
    "mixture-by-expert-train": ("mixture-by-expert", TRAIN),
    "prime-canonical": ("prime", CANONICAL),
    "prime-sparse": ("prime", SPARSE),
    "recurrent-sums": ("recurrent", SUMS),
    "recurrent-train": ("recurrent", TRAIN),
    "resnet20-low": ("resnet20", LOW),
    "shared-low": ("shared", LOW),
    "shared-sparse": ("shared", SPARSE),
    "tagger-low": ("tagger", LOW),
    "unet-low": ("unet", LOW),
    "unet-blocks": ("unet", BLOCKS),
    "volume-train": ("volume", TRAIN),
}


def doubled(tree: Any) -> Any:
    return tree_map(lambda x: x.double() if torch.is_floating_point(x) else x, tree)


def loss_of(model: nn.Module, inputs: Inputs) -> Tensor:
    args, kwargs = inputs
    found = model(*args, **kwargs)
    leaves = tree_leaves(dict(found) if hasattr(found, "to_tuple") else found)
    return sum(x.square().mean() for x in leaves if isinstance(x, Tensor) and x.requires_grad)


def compiled(member: str) -> tuple[nn.Module, Inputs]:
    name, structures = MEMBERS[member]
    model, inputs = case(name).build().double(), doubled(case(name).inputs())
    keep = 0.3 if structures is CANONICAL else 0.85  # what takes long to fit
    rules = [
        {"match": "*", "op": op, "structure": kind, "keep": keep, "allow_empty": True}
        | {"min_params": 60 if op != "conv" else 0}
        for op, kind in structures.items()
    ]
    spec = tnc.Spec(version=1, rules=rules, metric="none")
    return tnc.compile(model, spec, example=inputs).model, inputs


@pytest.mark.parametrize("member", MEMBERS)
def test_what_is_pulled_is_the_gradient_of_the_cores(member) -> None:
    made, inputs = compiled(member)
    layers = [layer for layer in made.modules() if isinstance(layer, tnc.StructuredLayer)]
    assert layers
    dense = tnc.densify(made)
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.0, momentum=0.9)
    loss_of(dense, inputs).backward()
    optimizer.step()
    report = tnc.bind(dense, made, optimizer, policy="pull").report
    trained = {n: p for n, p in made.named_parameters() if p.requires_grad}
    assert {line.parameter for line in report.lines} == {n for n, _ in made.named_parameters()}
    pulled = {n: p.grad for n, p in trained.items()}
    made.zero_grad()
    loss_of(made, inputs).backward()
    cores = {id(core) for layer in layers for core in layer.cores.values()}
    for name, parameter in trained.items():
        if parameter.grad is None:
            assert pulled[name] is None
            continue
        momentum = optimizer.state[parameter]["momentum_buffer"]
        for found in (pulled[name], momentum):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-8, atol=1e-12, msg=name)
        if id(parameter) in cores:
            line = next(line for line in report.lines if line.parameter == name)
            assert line.deed == "moved", line


BACK = ["attention-train", "convolutions-low", "gpt2-low", "shared-low", "unet-low"]


@pytest.mark.parametrize("member", BACK)
def test_a_momentum_that_is_lifted_pulls_back_to_itself(member) -> None:
    """Cores to dense and to cores again: `J^T lift(J^T g) = J^T g`."""
    made, inputs = compiled(member)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0, momentum=0.9)
    loss_of(made, inputs).backward()
    optimizer.step()
    optimizer.zero_grad()
    wanted = {
        name: optimizer.state[p]["momentum_buffer"].clone()
        for name, p in made.named_parameters()
        if optimizer.state.get(p)
    }
    dense, again = tnc.densify(made), copy.deepcopy(made)
    report = tnc.bind(made, dense, optimizer).report
    assert {line.deed for line in report.lines} <= {"carried", "moved", "new"}
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for p in dense.parameters()
    ]
    tnc.bind(dense, again, optimizer, policy="pull")
    for name, parameter in again.named_parameters():
        if name in wanted:
            found = optimizer.state[parameter]["momentum_buffer"]
            assert float((found - wanted[name]).norm()) <= 1e-6 * float(wanted[name].norm()), name
