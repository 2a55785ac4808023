"""Links, shared inputs, dead parameters, graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests import zoo
from tnc.capture import Link, Trace, capture


def _trace(name: str, graph: bool = False) -> Trace:
    case = zoo.case(name)
    args, kwargs = case.inputs()
    return capture(case.build(), args, kwargs, graph=graph)


def _links(model: nn.Module, x: Tensor) -> set[tuple[str, str, str]]:
    found = capture(model, (x,), graph=False).links
    return {(link.kind, link.first, link.second) for link in found}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("bert", "encoder.layer.1.attention.self.{key,query,value}.weight"),
        ("llama", "model.layers.0.self_attn.{k_proj,q_proj,v_proj}.weight"),
        ("llama", "model.layers.1.mlp.{gate_proj,up_proj}.weight"),
        ("vit", "vit.layers.0.attention.{k_proj,q_proj,v_proj}.weight"),
        ("normed", "{left,right}.weight"),
    ],
)
def test_shared_inputs(name: str, group: str) -> None:
    before, _, rest = group.partition("{")
    names, _, after = rest.partition("}")
    want = tuple(before + part + after for part in names.split(","))
    assert want in _trace(name).shared_inputs


def test_shared_inputs_see_through_copies_of_transposed_activations() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)  # a linear layer copies what is not contiguous
            return torch.cat([self.one(x), self.two(x)], -1)

    trace = capture(Transposed(), (torch.ones(2, 3, 4),), graph=False)
    assert trace.shared_inputs == (("one.weight", "two.weight"),)
    assert all(site.biased for site in trace.sites)


def test_batch_norms_of_a_residual_network() -> None:
    links = _trace("resnet20").links
    want = {Link("conv-batchnorm", "conv1", "bn1")} | {
        Link("conv-batchnorm", f"layer{s}.{b}.conv{k}", f"layer{s}.{b}.bn{k}")
        for s in (1, 2, 3)
        for b in (0, 1, 2)
        for k in (1, 2)
    }
    assert set(links) == want


def test_links_of_norms_and_adjacent_layers() -> None:
    links = {(link.kind, link.first, link.second) for link in _trace("normed").links}
    assert links == {
        ("linear-batchnorm", "first", "bn"),
        ("layernorm-linear", "ln", "left"),
        ("layernorm-linear", "ln", "right"),
        ("linear-linear", "down", "up"),
    }
    scaled = {link.second for link in _trace("llama").links if link.first == "model.norm"}
    assert scaled == {"lm_head"}


class Pair(nn.Module):
    """Two layers, with something that must break their link."""

    def __init__(self, breaks: str) -> None:
        super().__init__()
        self.first, self.second, self.breaks = nn.Linear(4, 4), nn.Linear(4, 4), breaks

    def forward(self, x: Tensor) -> object:
        y = self.first(x)
        if self.breaks == "returned":
            return y, self.second(y)
        if self.breaks == "kept":
            self.last = y
        if self.breaks == "in place":
            y.relu_()
        if self.breaks == "residual":
            return self.second(y) + y
        if self.breaks == "part":
            y = y[:1]
        if self.breaks == "turned":
            y = y.reshape(-1, 2, 2).transpose(1, 2).flatten(1)
        if self.breaks == "twice":
            y = self.first(y)
        return self.second(y)


def test_links_are_claimed_only_where_nothing_else_reads() -> None:
    linked = {("linear-linear", "first", "second")}
    assert _links(Pair(""), torch.ones(2, 4)) == linked
    assert _links(Pair(""), torch.ones(2, 3, 4)) == linked
    assert _links(Pair(""), torch.ones(2, 4, 3).transpose(1, 2)) == linked
    for breaks in ("returned", "kept", "in place", "residual", "part", "turned", "twice"):
        assert not _links(Pair(breaks), torch.ones(2, 4)), breaks


def test_batch_norm_over_another_axis_is_no_link() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).eval()
    assert _links(model, torch.ones(2, 5, 5)) == set()
    assert _links(model, torch.ones(2, 5)) == {("linear-batchnorm", "0", "1")}


def test_dead_parameters_and_calls() -> None:
    trace = _trace("shared")
    assert trace.dead == ("unused.bias", "unused.weight")
    assert trace.calls["block"] == 2 and trace.calls["tied"] == 1 and "unused" not in trace.calls
    assert _trace("branching").dead == ("negative.bias", "negative.weight")

    class Wasted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.wasted = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.wasted(x)
            return self.used(x)

    assert capture(Wasted(), (torch.ones(1, 2),)).dead == ("wasted.bias", "wasted.weight")


def test_graphs() -> None:
    trace = _trace("gpt2", graph=True)  # returns a cache that export does not know
    assert trace.how == "export" and trace.graph is not None
    named = {str(node.target) for node in trace.graph.graph.nodes if node.op == "get_attr"}
    assert "transformer.h.0.attn.c_attn.weight" in named
    trace = _trace("branching", graph=True)
    assert trace.how == "recorded" and trace.graph is None
    parts = {traced.path: traced for traced in trace.graphs}
    assert parts["first"].how == "symbolic" and parts["first"].graph is not None
    assert "data-dependent" in parts[""].reason
