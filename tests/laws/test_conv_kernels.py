"""However a convolution is run - which way, which memory format, kept or not - it is the same."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.laws.test_convolutions import FAMILIES, signature_of, view_of
from tnc.derive.conv_seconds import Load, ways
from tnc.derive.merge import merged, partitions
from tnc.net import Signature, Structure, parse_network
from tnc.nn import StructuredLayer
from tnc.nn.conv_stage import is_last
from tnc.nn.dense import rebuild
from tnc.structures import families

TUCKER = "U[o r] G[r s h w] V[s i] : i h w -> o | h=3 i=32 o=48 r=40 s=48 w=3"
CP = "O[o r] I[i r] H[h r] W[w r] : i h w -> o | h=3 i=32 o=48 r=20 w=3"
LAST = torch.channels_last


def pair(text: str | Structure, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Return a structured layer and the library's layer of the same weight."""
    structure = Structure.of(parse_network(text)) if isinstance(text, str) else text
    (outputs,), (inputs, *kernel) = structure.signature.outputs, structure.signature.inputs
    dense = nn.Conv2d(inputs, outputs, tuple(kernel), dtype=dtype, **options)
    made = StructuredLayer.initialised(
        structure,
        view_of(dense),
        0.1,
        bias=dense.bias,
        dtype=dtype,
        generator=torch.Generator().manual_seed(1),
    )
    dense.weight.data = made.weight.detach().contiguous()
    return made, dense


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def formats(x: Tensor) -> dict[str, Tensor]:
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return {"first": x, "last": x.to(memory_format=LAST), "strided": wide[..., ::2]}


@pytest.mark.parametrize("named", FAMILIES, ids=lambda named: f"{named[0]}-{named[1]}")
def test_every_structure_in_every_format_at_every_size(named: Any) -> None:
    family, signature = named[1], signature_of(nn.Conv2d(32, 48, 3))
    if family.refuses(signature):
        return
    template = family.template(signature)
    for most, stride in ((2, 1), (16, 2)):
        structure = template.at({name: min(most, bound) for name, bound in template.bounds})
        made, dense = pair(structure, padding=1, stride=stride)
        for shape in ((1, 32, 9, 8), (3, 32, 24, 24), (2, 32, 1, 1)):
            x = image(*shape)
            wanted = dense(x)
            for name, given in formats(x).items():
                with torch.no_grad():
                    twice = [made(given), made(given)]
                for found in (*twice, made(given)):
                    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
                    if name == "last" and given.shape[-1] > 1:
                        assert is_last(found) or not is_last(given)
                    elif name == "first":
                        assert found.is_contiguous()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("text", [TUCKER, CP])
def test_gradients_are_those_of_the_rebuilt_weight(text: str, last: bool) -> None:
    made, _ = pair(text, torch.float64, padding=1, stride=2)
    x = image(2, 32, 7, 8, dtype=torch.float64)
    x = (x.to(memory_format=LAST) if last else x).requires_grad_()
    inputs = (x, *made.cores.values(), made.bias)
    mine = torch.autograd.grad(made(x).square().sum(), inputs)
    y = nn.functional.conv2d(x, made.weight, made.bias, 2, 1)
    theirs = torch.autograd.grad(y.square().sum(), inputs)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b)
    made.requires_grad_(False)
    (frozen,) = torch.autograd.grad(made(x).square().sum(), x)
    torch.testing.assert_close(frozen, theirs[0])


def optimizer_step(layer: StructuredLayer) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def loaded(layer: StructuredLayer) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def loaded_by_assignment(layer: StructuredLayer) -> None:
    state = {name: 2 * value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def other_data(layer: StructuredLayer) -> None:
    for core in layer.cores.values():
        for factor in (2.0, 0.5, 1.5):  # memory that was freed may be given out again
            core.data = core.data * factor


def one_entry(layer: StructuredLayer) -> None:
    with torch.no_grad():
        layer.cores["G" if "G" in layer.cores else "W"].view(-1)[0] += 1


def there_and_back(layer: StructuredLayer) -> None:
    layer.to(torch.float64).to(torch.float32)
    one_entry(layer)


def behind_the_back(layer: StructuredLayer) -> None:
    for core in layer.cores.values():
        core.data.mul_(1.5)


def one_entry_behind_the_back(layer: StructuredLayer) -> None:
    core = layer.cores["G" if "G" in layer.cores else "W"]
    core.data.view(-1)[0] += 1


CHANGES: tuple[Callable[[StructuredLayer], None], ...] = (
    optimizer_step,
    loaded,
    loaded_by_assignment,
    other_data,
    one_entry,
    there_and_back,
    behind_the_back,
    one_entry_behind_the_back,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("text", [TUCKER, CP])
def test_nothing_that_is_kept_goes_stale(text: str, change: Any) -> None:
    made, _ = pair(text, padding=1)
    x = image(1, 32, 12, 12)
    for given in formats(x).values():
        with torch.no_grad():
            before = made(given)
            change(made)
            found = made(given)
        wanted = nn.functional.conv2d(x, made.weight, made.bias, padding=1)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
        assert float((found - before).norm() / wanted.norm()) > 1e-4


def test_kept_weights_are_used_again_and_neither_copied_nor_saved() -> None:
    made, dense = pair(TUCKER, padding=1)
    x, buffer = image(1, 32, 12, 12), io.BytesIO()
    torch.save(made, buffer)
    with torch.no_grad():
        made(x)
        (kept,) = made._prepared._kept._held.values()
        made(x)
        assert list(made._prepared._kept._held.values()) == [kept]
        again = io.BytesIO()
        torch.save(made, again)
        assert abs(len(again.getvalue()) - len(buffer.getvalue())) < 64
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert not len(other._prepared._kept)
            torch.testing.assert_close(other(x), dense(x), rtol=1e-4, atol=1e-4)
        made.train()
        assert not len(made._prepared._kept)


def test_what_was_kept_in_inference_mode_serves_a_gradient_of_the_input() -> None:
    made, dense = pair(TUCKER, padding=1)
    made.requires_grad_(False)
    x = image(1, 32, 12, 12)
    with torch.inference_mode():
        made(x)
    x.requires_grad_()
    (mine,) = torch.autograd.grad(made(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(dense(x).square().sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [TUCKER, CP])
@torch.no_grad()
def test_empty_batches_low_precision_autocast_and_transforms(text: str) -> None:
    made, dense = pair(text, padding=1)
    for given in formats(image(2, 32, 12, 12)).values():
        assert made(given[:0]).shape == dense(given[:0]).shape
        wanted = dense(given)
        made(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert made(given).dtype == torch.bfloat16
            torch.testing.assert_close(made(given).float(), wanted, rtol=0.1, atol=0.1)
        torch.testing.assert_close(made(given), wanted, rtol=1e-4, atol=1e-4)
        mapped = torch.vmap(made)(given.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(mapped, wanted, rtol=1e-4, atol=1e-4)
        half = copy.deepcopy(made).bfloat16()
        torch.testing.assert_close(half(given.bfloat16()).float(), wanted, rtol=0.1, atol=0.1)
        cores = {f"cores.{name}": 2 * core for name, core in made.cores.items()}
        other = torch.func.functional_call(made, cores, (given,))
        assert not torch.allclose(other, wanted)


def test_merged_cores_make_the_same_weight() -> None:
    network = parse_network(CP)
    cores = {core.name: image(*network.shape(core)) for core in network.equation.cores}
    wanted, seen = rebuild(Structure.of(network), cores), 0
    for groups in partitions(network):
        fewer = merged(network, groups)
        held = dict(cores)
        for name, contraction in fewer.made:
            letters = {n: chr(97 + k) for k, n in enumerate(contraction.size)}
            spec = ",".join("".join(letters[n] for n in axis) for axis in contraction.operands)
            out = "".join(letters[n] for n in contraction.output)
            held[name] = torch.einsum(f"{spec}->{out}", *(cores[n] for n in contraction.names))
        left = {core.name: held[core.name] for core in fewer.network.equation.cores}
        found = rebuild(Structure.of(fewer.network), left)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        seen += 1
    assert seen == 15  # all partitions of four cores: every two of them share the rank


def test_two_small_cores_of_a_kernel_become_one_and_a_dense_weight_where_that_is_faster() -> None:
    template = families.get("cp")().template(Signature((64,), (64, 3, 3)))
    (term,) = template.at({"r": 64}).terms
    load = Load(images=16, before=3136, after=3136, kept=True)
    assert str(ways(term, load)[0]) == "I > H > O"
    (full,) = template.at({"r": 576}).terms
    assert str(ways(full, load)[0]) == "O"
