"""Laws that every registered structure meets: nobody has to remember to add it here."""

from __future__ import annotations

import copy
import pickle
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.laws.data import structures
from tnc.derive import adjoint, core_std, cost, dense, learning_rate_factors, parameters
from tnc.derive.cost import Work
from tnc.derive.draw import draw_svg, draw_text
from tnc.net import Structure, digest, from_json, parse_network, to_json
from tnc.nn import ConvView, EmbeddingView, LinearView, StructuredLayer
from tnc.nn.dense import rebuild

ALL = list(structures())
each = pytest.mark.parametrize(
    ("family", "signature"), [(f, s) for _, f, s in ALL], ids=[name for name, _, _ in ALL]
)


def small(family, signature) -> Structure:
    template = family.template(signature)
    return template.at(template.within(signature.parameters // 2) or template.scaled(0.0))


def layer(structure: Structure, view, bias: bool = True, seed: int = 0) -> StructuredLayer:
    generator = torch.Generator().manual_seed(seed)
    extra = torch.randn(structure.signature.outputs[0], generator=generator, dtype=torch.float64)
    made = StructuredLayer.initialised(
        structure,
        view,
        0.3,
        bias=extra if bias else None,
        generator=generator,
        dtype=torch.float64,
    )
    return made


def einsum_oracle(structure: Structure, cores) -> torch.Tensor:
    """Rebuild the dense weight by one naive einsum over all operands."""
    total = torch.zeros(())
    for term in structure.terms:
        contraction = dense(term)
        letters = {n: chr(97 + k) for k, n in enumerate(sorted(contraction.size))}
        operands = [
            torch.eye(contraction.size[ix[0]], dtype=torch.float64)
            if name.startswith("identity:")
            else cores[name].detach()
            for name, ix in zip(contraction.names, contraction.operands)
        ]
        text = ",".join("".join(letters[n] for n in ix) for ix in contraction.operands)
        out = "".join(letters[n] for n in contraction.output)
        weight = torch.einsum(f"{text}->{out}", *operands).reshape(term.signature.shape)
        total = total + weight[tuple(slice(s) for s in structure.signature.shape)]
    return total


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-10) -> bool:
    return float((a - b).detach().norm()) <= limit * (1 + float(b.detach().norm()))


@each
def test_rebuilt_weight_is_the_naive_einsum(family, signature) -> None:
    structure = small(family, signature)
    made = layer(structure, LinearView() if len(signature.inputs) == 1 else ConvView())
    assert close(made.weight, einsum_oracle(structure, made.tensors()))


@each
def test_forward_is_the_dense_forward(family, signature) -> None:
    structure = small(family, signature)
    if len(signature.inputs) > 1:
        for options in (
            {},
            {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
            {"padding": (1, 1), "padding_mode": "reflect"},
        ):
            made = layer(structure, ConvView(**options))
            kernel = signature.inputs[1:]
            conv = nn.Conv2d(signature.inputs[0], signature.outputs[0], kernel, **options).double()
            conv.weight.data, conv.bias.data = made.weight.detach(), made.bias.detach()
            x = torch.randn(2, signature.inputs[0], 9, 8, dtype=torch.float64)
            assert close(made(x), conv(x))
            assert close(made(x[0]), conv(x[0]))
        return
    for rows in (1, 10**6):
        made = layer(structure, LinearView(rows=rows))
        for shape in ((3,), (2, 4), (), (0,), (2, 1, 3)):
            x = torch.randn(*shape, signature.inputs[0], dtype=torch.float64)
            assert close(made(x), functional.linear(x, made.weight, made.bias))
    table = layer(structure, EmbeddingView(), bias=False)
    ids = torch.randint(0, signature.outputs[0], (3, 4))
    assert close(table(ids), table.weight[ids])


@each
def test_gradients_are_those_of_the_dense_layer_and_of_finite_differences(
    family, signature
) -> None:
    structure = small(family, signature)
    conv = len(signature.inputs) > 1
    made = layer(structure, ConvView(padding=(1, 1)) if conv else LinearView())
    x = torch.randn(
        *((2, signature.inputs[0], 5, 4) if conv else (3, signature.inputs[0])),
        dtype=torch.float64,
        requires_grad=True,
    )
    out = made(x)
    probe = torch.randn_like(out)
    parameters_ = list(made.parameters())
    mine = torch.autograd.grad((out * probe).sum(), [x, *parameters_])
    weight = made.weight
    if conv:
        dense_out = functional.conv2d(x, weight, made.bias, padding=(1, 1))
    else:
        dense_out = functional.linear(x, weight, made.bias)
    theirs = torch.autograd.grad((dense_out * probe).sum(), [x, *parameters_])
    assert all(close(a, b, 1e-9) for a, b in zip(mine, theirs))
    core = next(iter(made.cores.values()))
    direction = torch.randn_like(core)
    step = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            core.add_(sign * step * direction)
            values.append(float((made(x) * probe).sum()))
            core.sub_(sign * step * direction)
    place = next(k for k, p in enumerate(parameters_) if p is core)
    slope = float((mine[1 + place] * direction).sum())
    assert abs((values[0] - values[1]) / (2 * step) - slope) <= 1e-4 * (1 + abs(slope))


@each
def test_adjoints_are_the_gradients_of_the_weight(family, signature) -> None:
    structure = small(family, signature)
    made = layer(structure, LinearView() if len(signature.inputs) == 1 else ConvView())
    if structure.padded:
        return  # the adjoint is of the padded weight; the next law covers it through the layer
    covector = torch.randn(signature.shape, dtype=torch.float64)
    terms = {c.name: term for term in structure.terms for c in term.equation.cores}
    leaves = {n: core.detach().requires_grad_() for n, core in made.tensors().items()}
    for name, core in leaves.items():
        (want,) = torch.autograd.grad((rebuild(structure, leaves) * covector).sum(), core)
        contraction = adjoint(terms[name], name)
        letters = {n: chr(97 + k) for k, n in enumerate(sorted(contraction.size))}
        operands = [covector.reshape([contraction.size[n] for n in contraction.operands[0]])]
        for other, ix in zip(contraction.names[1:], contraction.operands[1:]):
            operands.append(
                torch.eye(contraction.size[ix[0]], dtype=torch.float64)
                if other.startswith("identity:")
                else leaves[other]
            )
        text = ",".join("".join(letters[n] for n in ix) for ix in contraction.operands)
        out = "".join(letters[n] for n in contraction.output)
        assert close(torch.einsum(f"{text}->{out}", *operands), want)


@each
def test_counted_parameters_are_those_of_the_layer(family, signature) -> None:
    structure = small(family, signature)
    made = layer(structure, LinearView() if len(signature.inputs) == 1 else ConvView(), False)
    assert parameters(structure) == sum(p.numel() for p in made.parameters())
    op = "linear" if len(signature.inputs) == 1 else "conv"
    assert cost(structure, Work(op, 10, 10)).flops > 0


@each
def test_initialised_weights_have_the_asked_deviation(family, signature) -> None:
    structure = small(family, signature)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        view = LinearView() if len(signature.inputs) == 1 else ConvView()
        made = StructuredLayer.initialised(structure, view, 0.02, generator=generator)
        assert abs(float(made.weight.pow(2).mean().sqrt()) / 0.02 - 1) < 0.05


@each
def test_text_json_digest_copies_and_drawings(family, signature) -> None:
    structure = small(family, signature)
    assert from_json(to_json(structure)) == structure
    assert digest(from_json(to_json(structure))) == digest(structure)
    for term in structure.terms:
        assert parse_network(str(term)) == term
        assert all(core.name in draw_text(term) for core in term.equation.cores)
        assert draw_svg(term).startswith("<svg") and draw_svg(term).endswith("</svg>")
        assert all(f > 0 for f in learning_rate_factors(term).values())
        assert set(core_std(structure, 1.0)) == set(structure.shapes)
    made = layer(structure, LinearView() if len(signature.inputs) == 1 else ConvView())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters()))
        assert other.structure == structure
    again = StructuredLayer(structure, made.view, dict(made.cores), made.bias, made.positions)
    again.load_state_dict(made.state_dict())


@each
def test_bfloat16_and_export_with_a_dynamic_batch(family, signature) -> None:
    structure = small(family, signature)
    conv = len(signature.inputs) > 1
    made = layer(structure, ConvView(padding=(1, 1)) if conv else LinearView(rows=4)).float()
    x = torch.randn(*((4, signature.inputs[0], 5, 4) if conv else (4, signature.inputs[0])))
    low = copy.deepcopy(made).bfloat16()
    assert close(low(x.bfloat16()).float(), made(x), 0.1)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(made, (x,), dynamic_shapes=({0: batch},)).module()
    more = torch.cat([x, x, x])
    assert close(program(more), made(more), 1e-5)


def test_the_oracle_can_fail() -> None:
    _, family, signature = ALL[0]
    structure = small(family, signature)
    made = layer(structure, LinearView() if len(signature.inputs) == 1 else ConvView())
    wrong = {
        name: core.detach() * (2 if k == 0 else 1)
        for k, (name, core) in enumerate(made.tensors().items())
    }
    assert not close(rebuild(structure, wrong), einsum_oracle(structure, made.tensors()))
    assert prod(signature.shape) == signature.parameters


@settings(max_examples=25, deadline=None)
@given(o=st.integers(1, 9), i=st.integers(1, 9), r=st.integers(1, 5), rows=st.integers(0, 4))
def test_any_size_of_low_rank(o: int, i: int, r: int, rows: int) -> None:
    structure = Structure.of(parse_network(f"B[o r] A[r i] : i -> o | i={i} o={o} r={r}"))
    made = layer(structure, LinearView(rows=max(1, rows)))
    x = torch.randn(rows, i, dtype=torch.float64)
    assert close(made(x), functional.linear(x, made.weight, made.bias))


@pytest.mark.parametrize("ranks", product((1, 2, 3), repeat=4))
def test_a_bias_over_several_output_legs_is_added_once_all_are_there(ranks) -> None:
    sizes = " ".join(f"{bond}={rank}" for bond, rank in zip("rqst", ranks))
    text = f"U[o r] P[p q] G[r q s t] V[s i] Q[t j] : (i j) -> (o p) | i=3 j=4 o=4 p=3 {sizes}"
    made = layer(Structure.of(parse_network(text)), LinearView())
    x = torch.randn(5, 12, dtype=torch.float64)
    assert close(made(x), functional.linear(x, made.weight, made.bias))
