"""Every structure under every convolution: one to three axes, plain and transposed, in groups."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from tests.laws.data import OPTIONS
from tnc.capture.moments import patches
from tnc.derive.chain import chain
from tnc.derive.grouped import grouped
from tnc.errors import KernelError
from tnc.net import Signature, Structure, parse_network
from tnc.nn import ConvView, StructuredLayer, view_from_json
from tnc.structures import families

KERNELS = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}
PLAIN: tuple[dict[str, Any], ...] = (
    {},
    {"stride": 2, "padding": 1, "dilation": 2},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "circular"},
    {"groups": 2, "padding": 1},
    {"groups": 4, "stride": 2},
)
TRANSPOSED: tuple[dict[str, Any], ...] = (
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3, "dilation": 2, "output_padding": 2},
    {"groups": 2, "stride": 2},
    {"groups": 4, "padding": 1},
)
CASES = [
    *((n, False, options) for n, options in product(KERNELS, PLAIN)),
    *((n, True, options) for n, options in product(KERNELS, TRANSPOSED)),
]
FAMILIES = [
    (name, family(**options))
    for name, family in sorted(families.all().items())
    for options in OPTIONS.get(name, ({},))
]


def dense_layer(n: int, transposed: bool, options: dict[str, Any]) -> nn.Module:
    name = f"Conv{'Transpose' if transposed else ''}{n}d"
    torch.manual_seed(0)
    made: nn.Module = getattr(nn, name)(8, 12, KERNELS[n], **options).double()
    return made


def view_of(layer: Any, pixels: int = 1024) -> ConvView:
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")
    options = {name: getattr(layer, name) for name in names}
    if not layer.transposed:
        del options["output_padding"]
    return ConvView(transposed=layer.transposed, pixels_in=pixels, pixels_out=pixels, **options)


def signature_of(layer: Any) -> Signature:
    weight = layer.weight.transpose(0, 1) if layer.transposed else layer.weight
    return Signature(tuple(weight.shape[:1]), tuple(weight.shape[1:]))


def structured(layer: nn.Module, structure: Structure, pixels: int) -> StructuredLayer:
    generator = torch.Generator().manual_seed(1)
    view, dtype = view_of(layer, pixels), torch.float64
    made = StructuredLayer.initialised(
        structure, view, 0.5, bias=layer.bias, generator=generator, dtype=dtype
    )
    layer.weight.data = made.weight.detach()
    return made


@pytest.mark.parametrize("named", FAMILIES, ids=lambda named: f"{named[0]}-{named[1]}")
def test_every_structure_is_the_librarys_layer(named: Any) -> None:
    family, ran = named[1], 0
    for n, transposed, options in CASES:
        layer = dense_layer(n, transposed, options)
        signature = signature_of(layer)
        if family.refuses(signature):
            continue
        template = family.template(signature)
        ranks = {name: min(2, bound) for name, bound in template.bounds}
        made = structured(layer, template.at(ranks), 10**6)
        x = torch.randn(2, 8, *(7, 6, 5)[:n], dtype=torch.float64)
        for image in (x, x[0]):
            torch.testing.assert_close(made(image), layer(image), msg=f"{named} {n} {options}")
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels")
        assert [getattr(made, k) for k in names] == [getattr(layer, k) for k in names]
        again = made.view.dense_layer(signature, bias=True)
        assert repr(again) == repr(layer) and again.weight.shape == layer.weight.shape
        assert view_from_json(made.view.as_json()) == made.view
        ran += 1
    matrices_only = ("tree", "_modes=(2")
    told = str(named[1])
    assert (
        ran
        or named[0].split("-")[0] in ("free", "stacked")
        or any(option in told for option in matrices_only)
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_run_as_chains_and_never_rebuild(transposed: bool) -> None:
    layer = dense_layer(2, transposed, {"groups": 4, "padding": 1})
    text = "B[o r] A[r i h w] : i h w -> o"
    sizes = "h=3 i=8 o=3 r=1 w=2" if transposed else "h=3 i=2 o=12 r=1 w=2"
    made = structured(layer, Structure.of(parse_network(f"{text} | {sizes}")), 10**4)
    (term,) = made._prepared.terms
    assert term.whole is not None and "g" in term.whole.network.size
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(made(x), layer(x))
    (mine,) = torch.autograd.grad(made(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(mine, theirs)
    assert made.cores["A"].grad is None
    made(x).sum().backward()
    assert all(float(core.grad.abs().sum()) > 0 for core in made.cores.values())


def test_groups_are_cut_where_a_leg_allows_it() -> None:
    network = parse_network("B[a b r] A[r i h] : i h -> (a b) | a=2 b=6 i=4 h=3 r=2")
    assert str(grouped(network, 4)) == (
        "B[a g b r] A[r i h] : (a g i) h -> (a g b) | a=2 b=3 g=2 h=3 i=4 r=2"
    )
    assert grouped(network, 1) is network
    assert grouped(network, 8) is None  # 8 of (2, 6) ends within a leg
    shared = parse_network("A[d o i h] : (d i) h -> (d o) | d=2 h=1 i=2 o=3")
    assert grouped(shared, 2) is None


def test_a_kernel_axis_over_two_cores_is_no_chain() -> None:
    network = parse_network("A[i p r] B[r q o] : i (p q) -> o | i=2 o=3 p=2 q=2 r=2")
    assert chain(network, 10, 10) is None
    layer = nn.Conv1d(2, 3, 4, stride=2).double()
    made = structured(layer, Structure.of(network), 1000)
    x = torch.randn(2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(made(x), layer(x))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_patches_are_what_the_weight_multiplies(case: Any) -> None:
    n, transposed, options = case
    layer = dense_layer(n, transposed, options)
    if layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return  # groups are not measured, other paddings are done before the convolution
    x = torch.randn(2, 8, *(7, 6, 5)[:n], dtype=torch.float64)
    names = ["stride", "padding", "dilation"] + ["output_padding"] * transposed
    rows = torch.cat(list(patches(x, KERNELS[n], {k: getattr(layer, k) for k in names})))
    weight = layer.weight.transpose(0, 1) if transposed else layer.weight
    out = (rows @ weight.flatten(1).T + layer.bias).unflatten(0, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(out, layer(x).flatten(2))


def test_a_size_asked_for_at_the_call() -> None:
    layer = dense_layer(2, True, {"stride": 2, "padding": 1})
    made = structured(
        layer,
        Structure.of(parse_network("B[o r] A[r i h w] : i h w -> o | h=3 i=8 o=12 r=2 w=2")),
        9,
    )
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    for size in ((9, 10), (10, 11), (2, 12, 10, 10)):
        torch.testing.assert_close(made(x, output_size=size), layer(x, output_size=size))
    torch.testing.assert_close(made(x[0], (10, 10)), layer(x[0], (10, 10)))
    with pytest.raises(KernelError, match="output_size"):
        made(x, output_size=(20, 20))


def test_options_that_do_not_fit_are_told() -> None:
    with pytest.raises(KernelError, match="stride"):
        ConvView(stride=(1, 1)).options((3, 3, 3))
    assert view_from_json({"view": "conv2d", "stride": [2, 1]}) == ConvView(stride=(2, 1))
